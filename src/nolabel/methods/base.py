"""Base of methods: modules whose `forward` gives the loss. `training/loop.py` knows nothing else of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn

from nolabel.networks.backbones import Backbone
from nolabel.networks.positions import Resampling
from nolabel.optim.schedules import Clock
from nolabel.views import View


@dataclass(frozen=True)
class MethodConfig:
    """Settings of a method; the defaults of each subclass are its paper's.

    A setting of the loss or of a schedule has the mark CHANGEABLE: it may change on resume. The others shape networks,
    views or the state of the method, and stay.
    """

    advice: ClassVar[Mapping[str, str]] = {}
    """Advice of the health monitor in place of its general one, by a key of `health.facts.GENERAL_ADVICE`. {name} is
    replaced by the option of that setting and its value now."""
    positions: ClassVar[Resampling] = "timm"
    """Way in which the authors resample the position embeddings of a ViT for views of another size."""

    def resolve(self, num_images: int, batch_size: int, total_steps: int) -> Self:
        """The same settings with every `auto` replaced. Called once, before the first step of a new run."""
        return self

    @property
    def image_size(self) -> int:
        """Side in pixels of the largest view: the size to evaluate at."""
        raise NotImplementedError


MakeBackbone = Callable[[float], Backbone]
"""Function that builds a new backbone with the given rate of drop path."""


class Method(nn.Module):
    """Base of all methods. `forward` collects what the step needs, `after_step` moves everything that remembers."""

    Config: ClassVar[type[MethodConfig]]
    couples_batch: ClassVar[bool] = False
    """Whether the loss of an image depends on the others of its batch, so that splitting the batch changes it."""
    min_images: ClassVar[int] = 1
    """Least number of images in a forward pass, over all processes: 2 where the loss compares images of the batch."""
    free: ClassVar[tuple[str, ...]] = ()
    """Names of parameters with neither weight decay nor clipping (MSN's prototypes)."""

    @property
    def sync_batchnorm(self) -> bool:
        """Whether BatchNorm sees the joined batch of all processes; MoCo's alternative is to shuffle the images."""
        return True

    @property
    def backbone(self) -> Backbone:
        """The network to evaluate and to ship."""
        raise NotImplementedError

    def views(self) -> tuple[View, ...]:
        """The views of an image that `forward` expects, in order."""
        raise NotImplementedError

    def check(self) -> list[str]:
        """Check settings before the first step: warnings for risky ones, UsageError for those that cannot work."""
        return []

    def forward(self, views: Sequence[Tensor], clock: Clock) -> Mapping[str, Tensor]:
        """Compute "loss" and metrics (0-d tensors) from `views`: one normalised batch (B, 3, size, size) per view."""
        raise NotImplementedError

    def before_step(self, clock: Clock) -> None:
        """Change gradients between their clipping and the optimizer step."""

    def after_step(self, clock: Clock, ok: Tensor) -> None:
        """Update teachers and queues after the optimizer step. Nothing may move if `ok` (0-d) is 0: step not finite."""

    def settings(self, clock: Clock) -> Mapping[str, float]:
        """Scheduled values of this step for the log, such as the teacher's momentum."""
        return {}
