"""Optimizers, their two parameter groups, per-tensor clipping and the finite check."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from nolabel import distributed
from nolabel.optim.schedules import Clock, cosine, fit_warmup, warmup_cosine
from nolabel.settings import CHANGEABLE, FIXED, Mark


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and schedules; defaults: DINO (Caron et al. 2021)."""

    name: Annotated[Literal["adamw", "sgd", "lars"], FIXED] = "adamw"
    """Optimizer; its saved moments fit no other."""
    lr: Annotated[float, Mark("training", "allow", everyday=True)] = 5e-4
    """Peak learning rate for 256 images per step; scales linearly with the batch."""
    start_lr: Annotated[float, CHANGEABLE] = 0.0
    """Learning rate of the first step where there is a warm-up; scales as `lr`."""
    min_lr: Annotated[float, CHANGEABLE] = 1e-6
    """Learning rate at the end; does not scale."""
    warmup_epochs: Annotated[float, CHANGEABLE] = 10
    """Epochs in which the learning rate rises to its peak; at most a tenth of the run."""
    lr_by_epoch: Annotated[bool, CHANGEABLE] = False
    """Read the learning rate once per epoch (MoCo, DenseCL), not at every step."""
    weight_decay: Annotated[float, CHANGEABLE] = 0.04
    """Weight decay at the start."""
    weight_decay_end: Annotated[float, CHANGEABLE] = 0.4
    """Weight decay at the end, reached by a cosine over the whole run."""
    decay_all: Annotated[bool, FIXED] = False
    """Decay biases and other 1-D parameters, too (MoCo, DenseCL)."""
    clip_grad: Annotated[float, CHANGEABLE] = 3.0
    """Largest L2 norm of a gradient; 0 turns clipping off."""
    clip: Annotated[Literal["each", "joint"], CHANGEABLE] = "each"
    """Clip each parameter tensor by its own norm (DINO), or all by their joint norm (MSN)."""
    sgd_momentum: Annotated[float, CHANGEABLE] = 0.9
    """Momentum of SGD and LARS."""
    lars_rate: Annotated[Literal["outside", "inside"], FIXED] = "outside"
    """Place of LARS's learning rate. outside: it scales the momentum (DINO); inside: the gradient (SimCLR)."""


class LARS(torch.optim.Optimizer):
    """SGD with momentum and a layer-wise trust ratio (You et al. 2017): eta * |p| / |g + wd * p| per tensor.

    Biases and other 1-D parameters have neither decay nor trust ratio. The learning rate scales the momentum buffer, as
    in DINO's code, or with `rate_inside` what enters it, as in SimCLR's (Chen et al. 2020): they differ while the rate
    moves. `found_inf` (0-d, set by the loop) skips the step on the device.
    """

    found_inf: Tensor | None = None

    def __init__(
        self, groups: list[dict[str, object]], momentum: float = 0.9, eta: float = 0.001, rate_inside: bool = False
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum, "eta": eta})
        self.rate_inside = rate_inside

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad, group)

    def _move(self, p: Tensor, grad: Tensor, group: dict[str, float]) -> None:
        if p.ndim > 1:
            grad = grad.add(p, alpha=group["weight_decay"])
            size, push = p.norm(), grad.norm()
            trust = torch.where((size > 0) & (push > 0), group["eta"] * size / push, 1.0)
            grad = grad * trust
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"]
        entering, leaving = (group["lr"], 1.0) if self.rate_inside else (1.0, group["lr"])
        moved = buffer * group["momentum"] + entering * grad
        ok = torch.tensor(True, device=p.device) if self.found_inf is None else self.found_inf == 0
        buffer.copy_(torch.where(ok, moved, buffer))
        p.copy_(torch.where(ok, p - leaving * buffer, p))


def optimizer(module: nn.Module, config: OptimConfig, free: Collection[str] = ()) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters: one group with weight decay, one without (biases, 1-D, `free`)."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]

    def is_plain(name: str, p: Tensor) -> bool:
        return name in free or (not config.decay_all and (name.endswith(".bias") or p.ndim <= 1))

    plain = [p for n, p in named if is_plain(n, p)]
    decayed = [p for n, p in named if not is_plain(n, p)]
    groups: list[dict[str, object]] = [
        {"params": decayed, "decay": True},
        {"params": plain, "decay": False, "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, fused=True)
    if config.name == "sgd":
        sgd = torch.optim.SGD(groups, lr=0.0, momentum=config.sgd_momentum, fused=True)
        for _, p in named:  # made by torch on the first step, and left uninitialised where `found_inf` skips that step
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return sgd
    return LARS(groups, momentum=config.sgd_momentum, rate_inside=config.lars_rate == "inside")


@torch.no_grad()
def set_schedules(
    optimizer: torch.optim.Optimizer, config: OptimConfig, batch_size: int, clock: Clock
) -> dict[str, float]:
    """Set this step's learning rate and weight decay; returns both for the log."""
    epochs = clock.total_steps / clock.steps_per_epoch
    warmup = round(fit_warmup(config.warmup_epochs, epochs) * clock.steps_per_epoch)
    scale = batch_size / 256
    when = clock._replace(step=clock.epoch * clock.steps_per_epoch) if config.lr_by_epoch else clock
    lr = warmup_cosine(config.lr * scale, config.min_lr, warmup, when, config.start_lr * scale)
    decay = cosine(config.weight_decay, config.weight_decay_end, clock.progress)
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = decay if group["decay"] else 0.0
    return {"lr": lr, "weight_decay": decay}


def clip_grad(
    named: Iterable[tuple[str, nn.Parameter]], max_norm: float, joint: bool = False, free: Collection[str] = ()
) -> Tensor:
    """Scale every gradient tensor whose own L2 norm exceeds `max_norm` down to it; 0 only measures.

    DINO clips tensor by tensor (Caron et al. 2021). With `joint` all are scaled by one factor, so that their joint norm
    is at most `max_norm`. The parameters `free` are left alone. Returns the joint norm of all gradients before clipping
    (0-d), without a host synchronisation.
    """
    pairs = [(name in free, p.grad) for name, p in named if p.grad is not None]
    pairs.sort(key=lambda pair: pair[0])
    grads, num_clipped = [g for _, g in pairs], sum(not is_free for is_free, _ in pairs)
    norms = torch._foreach_norm(grads)
    sizes = torch.stack([n.float() for n in norms])
    if max_norm and num_clipped:
        limits = sizes[:num_clipped].norm().expand(num_clipped) if joint else sizes[:num_clipped]
        factors = (max_norm / (limits + 1e-6)).clamp(max=1.0)  # of all at once: on a GPU each operation is a launch
        if sizes.device.type == "cpu":  # the host may read them: gradients that are short enough are left alone
            for grad, factor in zip(grads, factors.tolist(), strict=False):
                if factor != 1:
                    grad.mul_(factor)
        else:
            torch._foreach_mul_(grads[:num_clipped], factors[0] if joint else list(factors.unbind()))
    total: Tensor = sizes.norm()
    return total


def all_finite(*values: Tensor) -> Tensor:
    """1.0 if every 0-d tensor is finite on every process, else 0.0; 0-d, on the device."""
    bad = torch.stack([v.detach().float() for v in values]).isfinite().logical_not().any()
    ok: Tensor = distributed.all_sum(bad.float()) == 0
    return ok.float()
