"""MSN: masked siamese networks (Assran et al., ECCV 2022, arXiv 2204.07141).

A network that sees an image with patches dropped, or only small crops of it, learns to give the same output as its own
slow average, which sees another view whole. The output is how near the image is to each of some learned prototypes.
Keeping all prototypes in use on average (me-max) prevents collapse.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from nolabel import distributed
from nolabel.errors import UsageError
from nolabel.losses.assignments import log_assignments, memax_gap, sinkhorn
from nolabel.losses.distillation import entropy, information
from nolabel.methods.base import MakeBackbone, Method, MethodConfig
from nolabel.networks.backbones import Backbone
from nolabel.networks.heads import mlp
from nolabel.networks.masks import draw_keep, num_kept
from nolabel.networks.network import Network
from nolabel.networks.positions import Resampling
from nolabel.networks.teacher import auto_momentum, move_teacher
from nolabel.optim.schedules import Clock
from nolabel.randomness import generator
from nolabel.settings import CHANGEABLE
from nolabel.views import View


@dataclass(frozen=True)
class MSNConfig(MethodConfig):
    """Settings of MSN; defaults: ViT-S/16 with Sinkhorn (Assran et al. 2022)."""

    advice: ClassVar[Mapping[str, str]] = {
        "uniform": "Lower {sharpening} or {temperature}, and --optim.lr.",
        "constant": "Raise {memax_weight}, or turn on {sinkhorn_rounds}.",
    }
    positions: ClassVar[Resampling] = "msn"

    random_size: int = 224
    """Side in pixels of the target's view and of the random anchors."""
    focal_size: int = 96
    """Side of the focal anchors in pixels."""
    num_random: int = 1
    """Random anchors per image: large crops with patches dropped."""
    num_focal: int = 10
    """Focal anchors per image: small crops, never masked."""
    random_scale: tuple[float, float] = (0.3, 1.0)
    """Area of the target's view and of a random anchor as a share of the image."""
    focal_scale: tuple[float, float] = (0.05, 0.3)
    """Area of a focal anchor as a share of the image."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strength of brightness, contrast, saturation and hue."""
    blur: float = 0.5
    """Probability of a Gaussian blur."""
    mask_ratio: Annotated[float, CHANGEABLE] = 0.15
    """Share of the patches dropped from random anchors; larger networks need more (docs/methods/msn.md)."""
    mask_per_sample: Annotated[bool, CHANGEABLE] = False
    """Drop other patches from every image; otherwise all images of a step lose the same ones."""
    num_prototypes: int | Literal["auto"] = 1024
    """Prototypes K; auto: the largest power of two up to 1024, the batch, and a quarter of the images."""
    hidden_dim: int = 2048
    """Width of the head's hidden layers."""
    output_dim: int = 256
    """Width of the head's output, and of the prototypes."""
    head_batchnorm: bool = True
    """BatchNorm in the head."""
    head_per_size: bool = True
    """Run the head separately on random and on focal anchors, so that BatchNorm has statistics for each."""
    temperature: Annotated[float, CHANGEABLE] = 0.1
    """Temperature of the anchors' assignments."""
    sharpening: Annotated[float, CHANGEABLE] = 0.25
    """Temperature that sharpens the target's probabilities, on top of `temperature`."""
    sinkhorn_rounds: Annotated[int, CHANGEABLE] = 3
    """Rounds that balance the targets over the prototypes; 0: none."""
    memax_weight: Annotated[float, CHANGEABLE] = 1.0
    """Weight of the mean-entropy maximisation (lambda); 5 without Sinkhorn."""
    entropy_weight: Annotated[float, CHANGEABLE] = 0.0
    """Weight of the mean entropy of the anchors' own probabilities."""
    label_smoothing: Annotated[float, CHANGEABLE] = 0.0
    """Smoothing of the prototypes' labels."""
    momentum: Annotated[float | Literal["auto"], CHANGEABLE] = 0.996
    """Momentum of the target network at the start; auto: by the length of the run, from 0.99 to 0.9995."""
    momentum_end: Annotated[float, CHANGEABLE] = 1.0
    """Momentum of the target network at the end of the schedules, reached linearly."""
    drop_path: float = 0.0
    """Stochastic depth of the anchor network (ViT); the target has none."""

    def resolve(self, num_images: int, batch_size: int, total_steps: int) -> Self:
        prototypes = self.num_prototypes
        if prototypes == "auto":
            most = max(min(1024, batch_size, num_images // 4), 2)
            prototypes = 2 ** (most.bit_length() - 1)
        if not 2 <= prototypes <= num_images:
            raise UsageError(
                f"{prototypes} prototypes for {num_images} images: expected at least 2 and no more than images.\n"
                "Use --method.num-prototypes auto, which fits them to the images and the batch."
            )
        momentum = auto_momentum(total_steps) if self.momentum == "auto" else self.momentum
        return replace(self, num_prototypes=prototypes, momentum=momentum)

    @property
    def image_size(self) -> int:
        return self.random_size


class MSN(Method):
    """See the module docstring. Anchor (trained) and target (its average) are each a backbone and a head."""

    Config: ClassVar[type[MethodConfig]] = MSNConfig
    couples_batch: ClassVar[bool] = True
    free: ClassVar[tuple[str, ...]] = ("prototypes",)

    def __init__(self, config: MSNConfig, make_backbone: MakeBackbone) -> None:
        super().__init__()
        assert isinstance(config.num_prototypes, int) and config.momentum != "auto"
        self.config, self.start_momentum = config, float(config.momentum)
        self.anchor = self._network(make_backbone(config.drop_path))
        # Built again rather than copied: the target has no drop path.
        self.target = self._network(make_backbone(0.0)).requires_grad_(False)
        self.target.load_state_dict(self.anchor.state_dict())
        bound = config.output_dim**-0.5
        self.prototypes = nn.Parameter(torch.empty(config.num_prototypes, config.output_dim).uniform_(-bound, bound))

    def _network(self, backbone: Backbone) -> Network[nn.Sequential]:
        c = self.config
        if backbone.can_drop:  # MSN starts the patch embedding in its own way
            projection = backbone.model.patch_embed.proj
            if isinstance(projection, nn.Conv2d):  # hybrid networks may have none
                nn.init.kaiming_normal_(projection.weight, mode="fan_in", nonlinearity="relu")
                if projection.bias is not None:
                    nn.init.zeros_(projection.bias)
        head = mlp([backbone.num_features, c.hidden_dim, c.hidden_dim, c.output_dim], c.head_batchnorm)
        return Network(backbone, head)

    @property
    def backbone(self) -> Backbone:
        return self.target.backbone

    def check(self) -> list[str]:
        c, net = self.config, self.backbone
        if c.num_random < 0 or c.num_focal < 0 or not c.num_random + c.num_focal:
            raise UsageError(f"{c.num_random} random and {c.num_focal} focal anchors: an image needs at least one.")
        if c.mask_ratio and not net.can_drop:
            raise UsageError(
                f"{net.name} has no patches that could be dropped: masking needs a ViT.\n"
                "Use --backbone vit_small_patch16_224, or --method.mask-ratio 0 for focal crops alone."
            )
        if not 0 <= c.label_smoothing < 1:
            raise UsageError(f"--method.label-smoothing {c.label_smoothing:g} is no share: 0 to below 1.")
        num_kept(self._num_patches(), c.mask_ratio)
        warnings = []
        if net.num_features >= 1024 and net.patch_size == 16 and c.num_random and c.mask_ratio < 0.5:
            warnings.append(
                f"MSN with ViT-L/16 is known to diverge at masking ratios below 0.5 (Assran et al. 2022, table 8), "
                f"and this is {c.mask_ratio:g}: use --method.mask-ratio 0.5."
            )
        if not c.sinkhorn_rounds and not c.memax_weight:
            warnings.append("Without me-max and Sinkhorn nothing keeps all images from one prototype: expect collapse.")
        return warnings

    def views(self) -> tuple[View, ...]:
        c = self.config
        random, focal = (
            View(size, scale, interpolation="bilinear", jitter=c.jitter, blur=c.blur)
            for size, scale in ((c.random_size, c.random_scale), (c.focal_size, c.focal_scale))
        )
        return (random, *[random] * c.num_random, *[focal] * c.num_focal)

    def forward(self, views: Sequence[Tensor], clock: Clock) -> Mapping[str, Tensor]:
        c = self.config
        with torch.no_grad():
            target = self.target.head(self.target.backbone(views[0]).pooled)  # (B, D)
        anchors = self._anchors(views[1:], clock)  # (M * B, D), view by view
        with torch.autocast(anchors.device.type, enabled=False):
            log_p = log_assignments(anchors, self.prototypes, c.temperature, c.label_smoothing)
            sharpened = self._sharpened(target)  # (B, K)
            targets = sinkhorn(sharpened, c.sinkhorn_rounds)
            ce = -(targets * log_p.view(-1, *targets.shape)).sum(-1).mean()
            p = log_p.exp()
            gap = memax_gap(p)
            loss = ce + c.memax_weight * gap
            if c.entropy_weight:
                loss = loss - c.entropy_weight * (p * log_p).sum(-1).mean()
            best, chosen = targets.max(-1)
            used = distributed.all_sum(torch.zeros_like(targets[0]).index_fill_(0, chosen, 1.0)) > 0
        return {
            "loss": loss,
            "ce": ce.detach(),
            "memax_gap": gap.detach(),
            "target_entropy": entropy(sharpened),
            "assignment_information": information(sharpened),
            "target_max": best.mean(),
            "prototypes_used": used.sum().float(),
        }

    def _anchors(self, views: Sequence[Tensor], clock: Clock) -> Tensor:
        """One pass of backbone and head over the masked random views, then one over the focal ones.

        The head belongs to the encoder: its BatchNorm normalises each size by itself, and its running statistics move
        twice. Runs from before `head_per_size` have one pass of the head over all anchors.
        """
        random, focal = views[: self.config.num_random], views[self.config.num_random :]
        net, pooled = self.anchor.backbone, []
        if random:
            pooled.append(net(torch.cat(list(random)), self._keep(random[0], clock)).pooled)
        if focal:
            pooled.append(net(torch.cat(list(focal))).pooled)
        if not self.config.head_per_size:
            pooled = [torch.cat(pooled)]
        return torch.cat([self.anchor.head(group) for group in pooled])

    @torch.no_grad()
    def _sharpened(self, target: Tensor) -> Tensor:
        c = self.config
        # p^(1/T) normalised is the softmax of log p / T: one softmax, no power that could underflow.
        log_p = log_assignments(target, self.prototypes, c.temperature, c.label_smoothing)
        return (log_p / c.sharpening).softmax(-1)

    def _keep(self, view: Tensor, clock: Clock) -> Tensor | None:
        """Patches that the random anchors keep: (n,), or (num_random * B, n) by the place in the joined batch.

        A function of seed and step, so processes and micro-batches of a step drop the same.
        """
        c = self.config
        if not c.mask_ratio:
            return None
        rng = generator("masks", clock.seed, clock.step)
        if not c.mask_per_sample:
            return draw_keep(self._num_patches(), c.mask_ratio, rng).to(view.device, non_blocking=True)
        shape = c.num_random, distributed.world_size(), len(view)
        keep = draw_keep(self._num_patches(), c.mask_ratio, rng, math.prod(shape)).view(*shape, -1)
        return keep[:, distributed.rank()].flatten(0, 1).to(view.device, non_blocking=True)

    def _num_patches(self) -> int:
        net = self.backbone
        return (self.config.random_size // (net.patch_size or 1)) ** 2

    @torch.no_grad()
    def after_step(self, clock: Clock, ok: Tensor) -> None:
        move_teacher(self.target.parameters(), self.anchor.parameters(), self.momentum(clock), ok)

    def momentum(self, clock: Clock) -> float:
        return self.start_momentum + (self.config.momentum_end - self.start_momentum) * clock.progress

    def settings(self, clock: Clock) -> Mapping[str, float]:
        return {"momentum": self.momentum(clock)}
