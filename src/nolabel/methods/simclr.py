"""SimCLR: a simple framework for contrastive learning (Chen et al., ICML 2020, arXiv 2002.05709).

Two views of an image must find each other among the views of all other images of the batch. No teacher, no queue:
what it needs is a large batch, and it is the quickest of the methods to learn something on few images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from nolabel.losses.contrastive import nt_xent
from nolabel.methods.base import MakeBackbone, Method, MethodConfig
from nolabel.networks.backbones import Backbone
from nolabel.networks.heads import Projector
from nolabel.optim.schedules import Clock
from nolabel.settings import CHANGEABLE
from nolabel.views import View


@dataclass(frozen=True)
class SimCLRConfig(MethodConfig):
    """Settings of SimCLR; defaults: ImageNet, ResNet-50 (Chen et al. 2020)."""

    size: int = 224
    """Side of both views in pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area of a crop as a share of the image."""
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    """Strength of brightness, contrast, saturation and hue."""
    blur: float = 0.5
    """Probability of a Gaussian blur."""
    projection_dim: int = 128
    """Width of the projections that are compared."""
    projector_layers: int = 2
    """Layers of the projector: 2 in the first paper, 3 in the second (arXiv 2006.10029)."""
    temperature: Annotated[float, CHANGEABLE] = 0.1
    """Temperature of the contrastive loss."""

    @property
    def image_size(self) -> int:
        return self.size


class SimCLR(Method):
    """See the module docstring."""

    Config: ClassVar[type[MethodConfig]] = SimCLRConfig
    couples_batch: ClassVar[bool] = True
    min_images: ClassVar[int] = 2

    def __init__(self, config: SimCLRConfig, make_backbone: MakeBackbone) -> None:
        super().__init__()
        self.config = config
        self.student = make_backbone(0.0)
        self.projector = Projector(self.student.num_features, config.projection_dim, config.projector_layers)

    @property
    def backbone(self) -> Backbone:
        return self.student

    def views(self) -> tuple[View, ...]:
        c = self.config
        view = View(c.size, c.scale, jitter=c.jitter, blur=c.blur)
        return (view, view)

    def forward(self, views: Sequence[Tensor], clock: Clock) -> Mapping[str, Tensor]:
        a, b = self.projector(self.student(torch.cat(list(views))).pooled).chunk(2)
        loss, accuracy = nt_xent(a, b, self.config.temperature)
        return {"loss": loss, "positive_first": accuracy}
