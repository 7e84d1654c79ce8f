"""DenseCL: dense contrastive learning (Wang et al., CVPR 2021, arXiv 2011.09157), and MoCo v2 (arXiv 2003.04297).

A query must find its key, the output of a momentum network for another view of the image, among the keys of earlier
images in a queue. DenseCL does this for the whole image and for each location. It pairs a location with the location of
the other view whose backbone feature is most similar. Without the dense part (dense_weight 0) it is MoCo v2.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import torch
import tyro
from torch import Tensor

from nolabel import distributed
from nolabel.distributed.shuffle import average_statistics, shuffle, unshuffle
from nolabel.errors import UsageError
from nolabel.losses.contrastive import info_nce
from nolabel.methods.base import MakeBackbone, Method, MethodConfig
from nolabel.networks.backbones import Backbone
from nolabel.networks.heads import DenseProjector
from nolabel.networks.initial import initialize_resnet
from nolabel.networks.matching import match, place_share, pool, unit
from nolabel.networks.modes import evaluating
from nolabel.networks.network import Network
from nolabel.networks.queue import Queue
from nolabel.networks.teacher import move_teacher
from nolabel.optim.schedules import Clock
from nolabel.settings import CHANGEABLE
from nolabel.views import View


def check_locations(net: Backbone, size: int, num_grid: int | None) -> None:
    """UsageError where views of `size` pixels leave `net` one location, or `num_grid` does not divide their grid."""
    with evaluating(net):
        rows, columns = net(next(net.parameters()).new_zeros(1, 3, size, size)).grid
    if rows * columns < 2:
        raise UsageError(
            f"Views of {size} px leave {net.name} one location, and the dense loss compares several.\n"
            "Use larger views (--method.size), --backbone-args output_stride=8 for a ResNet, "
            "or MoCo v2 (--method.dense-weight 0)."
        )
    if num_grid is not None and (num_grid < 1 or rows % num_grid or columns % num_grid):
        raise UsageError(
            f"--method.num-grid {num_grid} does not divide the {rows} x {columns} locations of a view of {size} px.\n"
            "Use a divisor of both, or leave it out."
        )


@dataclass(frozen=True)
class DenseCLConfig(MethodConfig):
    """Settings of DenseCL; defaults: ImageNet, ResNet-50 (Wang et al. 2021)."""

    advice: ClassVar[Mapping[str, str]] = {
        "contrast": "Lower --optim.lr, or {temperature}; a larger batch or queue gives more negatives.",
        "locations": "Give the dense loss a warm-up, {dense_warmup_steps}, or a smaller share, {dense_weight}.",
    }

    size: int = 224
    """Side of both views in pixels."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Area of a crop as a share of the image."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strength of brightness, contrast, saturation and hue."""
    blur: float = 0.5
    """Probability of a Gaussian blur."""
    temperature: Annotated[float, CHANGEABLE] = 0.2
    """Temperature of both contrastive losses."""
    queue_size: int | Literal["auto"] = 65536
    """Keys of earlier images; auto: the largest power of two within a quarter of the images, at least one batch."""
    momentum: Annotated[float, CHANGEABLE] = 0.999
    """Momentum of the key network, constant."""
    dense_weight: float = 0.5
    """Share of the dense loss (the paper's lambda), the rest is the global one; 0 is MoCo v2."""
    dense_warmup_steps: Annotated[int, CHANGEABLE] = 0
    """Steps at the start without the dense loss."""
    num_grid: int | None = None
    """Pool the locations to this many rows and columns; by default the backbone's own grid."""
    match: Annotated[Literal["backbone", "projection", "random"], CHANGEABLE] = "backbone"
    """Pairing of the locations: by backbone features, projections, or chance (the paper's ablation)."""
    hidden_dim: int | None = 2048
    """Width of the projectors' hidden layer; None: that of the backbone."""
    projection_dim: int = 128
    """Width of the projections that are compared."""
    shuffle_bn: bool = False
    """Several processes: shuffle the key images between them (MoCo), instead of BatchNorm over the joined batch."""
    num_images: Annotated[int, tyro.conf.Suppress] = 0
    """Number of training images, filled in before the first step, to judge the queue by."""

    def resolve(self, num_images: int, batch_size: int, total_steps: int) -> Self:
        fitting = max(2 ** int(math.log2(max(num_images / 4, 1))), batch_size)
        size = fitting if self.queue_size == "auto" else self.queue_size
        if size < batch_size:
            raise UsageError(
                f"--method.queue-size {size} holds less than the {batch_size} images of a step: "
                f"use {batch_size} or more, or auto."
            )
        return replace(self, queue_size=size, num_images=num_images)

    @property
    def image_size(self) -> int:
        return self.size


class Seen(NamedTuple):
    """Output of a network for one view, in unit vectors of width P; MoCo v2 has only the first field."""

    pooled: Tensor  # (B, P)
    dense: Tensor | None = None  # (B, N, P)
    mean: Tensor | None = None  # (B, P), of the dense ones before they became unit vectors: the dense loss's negatives
    locations: Tensor | None = None  # (B, N, D), no unit vectors: features that decide which locations belong together


class DenseCL(Method):
    """See the module docstring. Query and key are each a backbone and a head; the key follows the query slowly."""

    Config: ClassVar[type[MethodConfig]] = DenseCLConfig

    def __init__(self, config: DenseCLConfig, make_backbone: MakeBackbone) -> None:
        super().__init__()
        assert isinstance(config.queue_size, int)
        self.config, self.dense = config, config.dense_weight != 0
        net = make_backbone(0.0)
        initialize_resnet(net.name, net.model)
        head = DenseProjector(
            net.num_features, config.projection_dim, config.hidden_dim, self.dense, net.patch_features
        )
        self.query = Network(net, head)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.queue = Queue(config.queue_size, config.projection_dim)
        self.dense_queue = Queue(config.queue_size, config.projection_dim) if self.dense else None
        self._keys: list[Seen] = []

    @property
    def backbone(self) -> Backbone:
        return self.query.backbone

    @property
    def sync_batchnorm(self) -> bool:
        return not self.config.shuffle_bn

    def views(self) -> tuple[View, ...]:
        c = self.config
        view = View(c.size, c.scale, interpolation="bilinear", jitter=c.jitter, blur=c.blur)
        return (view, view)

    def check(self) -> list[str]:
        c = self.config
        if not 0 <= c.dense_weight <= 1:
            raise UsageError(f"--method.dense-weight {c.dense_weight:g} is no share: it is between 0 and 1.")
        if self.dense:
            check_locations(self.backbone, c.size, c.num_grid)
        warnings, size = [], len(self.queue.keys)
        if size > c.num_images / 2:
            warnings.append(
                f"The queue of {size} holds more than half of the {c.num_images} images: many negatives are "
                "the image itself. Try --method.queue-size auto."
            )
        if c.shuffle_bn and not distributed.active():
            warnings.append("--method.shuffle-bn does nothing in a single process: shuffling needs several.")
        return warnings

    def forward(self, views: Sequence[Tensor], clock: Clock) -> Mapping[str, Tensor]:
        q = self._look(self.query, views[0])
        with torch.no_grad():
            k = self._look_shuffled(views[1], clock.step) if self.config.shuffle_bn else self._look(self.key, views[1])
        self._keys.append(Seen(k.pooled, mean=k.mean))
        whole = info_nce(q.pooled, k.pooled, self.queue.keys, self.config.temperature)
        metrics = {
            "loss_global": whole.loss.detach(),
            "positive_similarity": whole.positive,
            "negative_similarity": whole.negative,
            "positive_first": whole.first,
        }
        if self.dense_queue is None:
            return {"loss": whole.loss, **metrics}
        dense, seen = self._dense_loss(q, k, self.dense_queue.keys)
        weight = self.dense_weight(clock)  # a share of 0 still multiplies: every parameter keeps its gradient path
        return {"loss": (1 - weight) * whole.loss + weight * dense, **metrics, **seen}

    @torch.no_grad()
    def after_step(self, clock: Clock, ok: Tensor) -> None:
        assert self._keys, "after_step comes after forward"
        self.queue.enqueue(torch.cat([k.pooled for k in self._keys]), ok)
        if self.dense_queue is not None:
            self.dense_queue.enqueue(torch.cat([k.mean for k in self._keys if k.mean is not None]), ok)
        self._keys = []
        # The papers move the key before its forward pass: that is here, at the end of the step before.
        move_teacher(self.key.parameters(), self.query.parameters(), self.config.momentum, ok)
        if self.config.shuffle_bn:
            average_statistics(self, ok)

    def dense_weight(self, clock: Clock) -> float:
        return self.config.dense_weight if clock.step >= self.config.dense_warmup_steps else 0.0

    def settings(self, clock: Clock) -> Mapping[str, float]:
        return {"momentum": self.config.momentum, "dense_weight": self.dense_weight(clock)}

    def _look(self, network: Network[DenseProjector], images: Tensor) -> Seen:
        features = network.backbone(images)
        if not self.dense:
            return Seen(unit(network.head(features.pooled, features.patches)[0]))
        # Pooled once for both: an index found in the features then means the same place in the projections.
        patches = pool(features, self.config.num_grid)
        pooled, dense = network.head(features.pooled, patches)
        locations = dense if self.config.match == "projection" else patches
        return Seen(unit(pooled), unit(dense), unit(dense.float().mean(1)), locations.detach())

    def _look_shuffled(self, images: Tensor, step: int) -> Seen:
        seen = self._look(self.key, shuffle(images, step))
        return Seen(*(None if x is None else unshuffle(x, step) for x in seen))  # type: ignore[arg-type]

    def _dense_loss(self, q: Seen, k: Seen, queue: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert q.dense is not None and k.dense is not None and q.locations is not None and k.locations is not None
        pairs = match(q.locations, k.locations)
        index = pairs.nearest
        if self.config.match == "random":
            index = torch.randint_like(index, k.dense.shape[1])  # the loop seeds torch's generator at each step
        matched = k.dense.gather(1, index[..., None].expand(-1, -1, k.dense.shape[2]))
        contrast = info_nce(q.dense.flatten(0, 1), matched.flatten(0, 1), queue, self.config.temperature)
        return contrast.loss, {
            "loss_dense": contrast.loss.detach(),
            "dense_positive_similarity": contrast.positive,
            "dense_positive_first": contrast.first,
            "matches_mutual": pairs.mutual.float().mean(),
            "matches_distinct": torch.zeros_like(pairs.cosine).scatter_(1, index, 1.0).mean(),
            "dense_by_place": place_share(k.dense),
        }
