"""DINO: self-distillation with no labels (Caron et al., ICCV 2021, arXiv 2104.14294).

A student sees all crops of an image and learns to predict the output of its own slow average, the teacher, which
sees the two global crops. Centering keeps one output from winning everywhere; sharpening (a low temperature) keeps the
outputs from becoming uniform. Together they prevent collapse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, Self

import torch
from torch import Tensor

from nolabel import distributed
from nolabel.losses.distillation import Outputs, dino_loss
from nolabel.losses.products import product_dtype
from nolabel.methods.base import MakeBackbone, Method, MethodConfig
from nolabel.networks.backbones import Backbone
from nolabel.networks.heads import DINOHead
from nolabel.networks.network import Network
from nolabel.networks.positions import Resampling
from nolabel.networks.teacher import auto_momentum, move_teacher
from nolabel.optim.schedules import Clock, cosine, fit_warmup, linear_by_epoch
from nolabel.settings import CHANGEABLE
from nolabel.views import View


@dataclass(frozen=True)
class DINOConfig(MethodConfig):
    """Settings of DINO; defaults: vanilla ViT-S/16 (Caron et al. 2021)."""

    advice: ClassVar[Mapping[str, str]] = {
        "uniform": "Lower {teacher_temp}, warm it up longer, lower --optim.lr, or freeze the prototypes longer: "
        "{freeze_last_layer}.",
        "constant": "Check {center_momentum} and {momentum}; raise {teacher_temp}.",
    }
    positions: ClassVar[Resampling] = "dino"

    global_size: int = 224
    """Side of the two global crops in pixels."""
    local_size: int = 96
    """Side of the local crops in pixels."""
    num_local: int = 8
    """Local crops per image; 0 turns multi-crop off."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Area of a global crop as a share of the image."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Area of a local crop as a share of the image."""
    num_prototypes: int | Literal["auto"] = 65536
    """Outputs K of the head; auto: a power of two near a quarter of the images, from 512 to 65536."""
    hidden_dim: int = 2048
    """Width of the head's hidden layers."""
    bottleneck_dim: int = 256
    """Width of the unit vectors that the prototypes are compared with."""
    head_layers: int = 3
    """Layers of the head before the prototypes."""
    head_batchnorm: bool = False
    """BatchNorm in the head (for ResNets)."""
    learn_magnitude: bool = False
    """Learn the length of the prototypes (the authors' norm_last_layer=false)."""
    freeze_last_layer: Annotated[int, CHANGEABLE] = 1
    """Epochs during which the prototypes are frozen."""
    student_temp: Annotated[float, CHANGEABLE] = 0.1
    """Temperature of the student's output."""
    teacher_temp: Annotated[float, CHANGEABLE] = 0.04
    """Temperature of the teacher's output, after its warm-up."""
    warmup_teacher_temp: Annotated[float, CHANGEABLE] = 0.04
    """Temperature of the teacher's output in the first step."""
    warmup_teacher_temp_epochs: Annotated[int, CHANGEABLE] = 0
    """Epochs in which the teacher's temperature rises linearly to `teacher_temp`."""
    center_momentum: Annotated[float, CHANGEABLE] = 0.9
    """Momentum of the center of the teacher's outputs."""
    momentum: Annotated[float | Literal["auto"], CHANGEABLE] = 0.996
    """Momentum of the teacher at the start; auto: by the length of the run, from 0.99 to 0.9995."""
    momentum_end: Annotated[float, CHANGEABLE] = 1.0
    """Momentum of the teacher at the end, reached by a cosine."""
    drop_path: float = 0.1
    """Stochastic depth of the student (ViT); the teacher has none."""

    def resolve(self, num_images: int, batch_size: int, total_steps: int) -> Self:
        prototypes = self.num_prototypes
        if prototypes == "auto":
            prototypes = min(max(2 ** round(_log2(num_images / 4)), 512), 65536)
        momentum = self.momentum
        if momentum == "auto":
            momentum = auto_momentum(total_steps)
        warmup = round(fit_warmup(self.warmup_teacher_temp_epochs, total_steps / max(num_images // batch_size, 1)))
        return replace(self, num_prototypes=prototypes, momentum=momentum, warmup_teacher_temp_epochs=warmup)

    @property
    def image_size(self) -> int:
        return self.global_size


def _log2(x: float) -> float:
    return torch.tensor(max(x, 1.0)).log2().item()


class DINO(Method):
    """See the module docstring. Student and teacher are each a backbone and a head."""

    Config: ClassVar[type[MethodConfig]] = DINOConfig

    def __init__(self, config: DINOConfig, make_backbone: MakeBackbone) -> None:
        super().__init__()
        assert isinstance(config.num_prototypes, int) and config.momentum != "auto"
        self.config, self.start_momentum = config, float(config.momentum)
        self.student = self._network(make_backbone(config.drop_path))
        # The teacher is built anew, not copied, because it has no drop path.
        self.teacher = self._network(make_backbone(0.0)).requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())
        self.center: Tensor
        self.register_buffer("center", torch.zeros(1, config.num_prototypes))
        self._teacher_sum: Tensor | None = None  # sum over the micro-batches of a step, for the center
        self._num_summed = 0

    def _network(self, backbone: Backbone) -> Network[DINOHead]:
        c = self.config
        assert isinstance(c.num_prototypes, int)
        head = DINOHead(
            backbone.num_features,
            c.num_prototypes,
            c.hidden_dim,
            c.bottleneck_dim,
            c.head_layers,
            c.head_batchnorm,
            c.learn_magnitude,
        )
        return Network(backbone, head)

    @property
    def backbone(self) -> Backbone:
        return self.teacher.backbone

    def views(self) -> tuple[View, ...]:
        c = self.config
        first = View(c.global_size, c.global_scale, blur=1.0)
        second = View(c.global_size, c.global_scale, blur=0.1, solarize=0.2)
        return (first, second, *[View(c.local_size, c.local_scale, blur=0.5)] * c.num_local)

    def forward(self, views: Sequence[Tensor], clock: Clock) -> Mapping[str, Tensor]:
        with torch.no_grad():
            teacher = outputs(self.teacher, views[:2], self.teacher_temp(clock))
        student = outputs(self.student, views, self.config.student_temp)
        distillation = dino_loss(student, teacher, self.center)
        self._collect(teacher.z)
        return {
            "loss": distillation.loss,
            "teacher_entropy": distillation.entropy,
            "teacher_student_kl": distillation.loss.detach() - distillation.entropy,
            "assignment_information": distillation.information,
        }

    def before_step(self, clock: Clock) -> None:
        if clock.epoch < self.config.freeze_last_layer:
            # With None, not zero, the optimizer skips them entirely: no decay, and no change of their moments.
            for p in self.student.head.last_layer.parameters():
                p.grad = None

    @torch.no_grad()
    def after_step(self, clock: Clock, ok: Tensor) -> None:
        assert self._teacher_sum is not None, "after_step comes after forward"
        mean = distributed.all_mean(self._teacher_sum / self._num_summed)
        # Logits are linear, so the mean of the logits is the logits of the mean: processes exchange `bottleneck_dim`
        # numbers instead of K.
        logits = self.teacher.head.last_layer(mean)
        moved = self.center.lerp(logits, 1 - self.config.center_momentum)
        self.center.copy_(torch.where(ok.bool(), moved, self.center))
        self._teacher_sum, self._num_summed = None, 0
        move_teacher(self.teacher.parameters(), self.student.parameters(), self.momentum(clock), ok)

    def teacher_temp(self, clock: Clock) -> float:
        c = self.config
        return linear_by_epoch(c.warmup_teacher_temp, c.teacher_temp, c.warmup_teacher_temp_epochs, clock)

    def momentum(self, clock: Clock) -> float:
        return cosine(self.start_momentum, self.config.momentum_end, clock.progress)

    def settings(self, clock: Clock) -> Mapping[str, float]:
        return {"teacher_temp": self.teacher_temp(clock), "momentum": self.momentum(clock)}

    def _collect(self, z: Tensor) -> None:
        """Add the teacher's outputs (2, B, D) of a micro-batch to the sum for the center."""
        total = z.sum((0, 1), dtype=torch.float32)[None]
        self._teacher_sum = total if self._teacher_sum is None else self._teacher_sum + total
        self._num_summed += z.shape[0] * z.shape[1]


def outputs(network: Network[DINOHead], views: Sequence[Tensor], temperature: float) -> Outputs:
    """Outputs of a network for V views: one pass of the backbone per size, one pass of the head over all views."""
    pooled: list[Tensor] = []
    start = 0
    for i in range(1, len(views) + 1):
        if i == len(views) or views[i].shape[-1] != views[start].shape[-1]:
            pooled.append(network.backbone(torch.cat(list(views[start:i]))).pooled)
            start = i
    head = network.head
    z = head.bottleneck(torch.cat(pooled))
    prototypes = head.last_layer.rows(product_dtype(head.last_layer.weight_v))
    return Outputs(z.view(len(views), -1, z.shape[-1]), prototypes, temperature)
