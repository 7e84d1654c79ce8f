"""DINO's step as people write it, for `step.py`: the reference recipe, and `lightly` used as its docs say.

The reference stands for the authors' code (Caron et al. 2021): attention that makes its matrix, a loss pair by pair,
clipping, optimizer and teacher tensor by tensor, numbers read on the host at every step. It starts from the weights of
a nolabel run and computes the same function.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from nolabel.networks.network import Network
from nolabel.networks.precision import DTYPES
from nolabel.training.job import Job, build
from nolabel.training.step import training_step


class Contender(NamedTuple):
    """The parts of a step. `step` runs all of them on one batch and gives the loss."""

    loss: Callable[[], Tensor]
    """Forward and backward of the loss, from unit vectors, prototypes included."""
    clip: Callable[[], object]
    optimizer: Callable[[], object]
    teacher: Callable[[], object]
    step: Callable[[list[Tensor]], float]


def nolabel(job: Job, z: Tensor, teacher_z: Tensor) -> Contender:
    """Ours; `z` (V, B, 256) and `teacher_z` (2, B, 256) are for the loss alone."""
    from nolabel.losses.distillation import Outputs, dino_loss
    from nolabel.losses.products import product_dtype
    from nolabel.networks.teacher import move_teacher
    from nolabel.optim.optimizers import clip_grad

    method, dtype, number = job.method, DTYPES[job.config.precision], iter(range(1_000_000))

    def loss() -> Tensor:
        with torch.autocast(job.device.type, dtype, enabled=dtype != torch.float32):
            rows, own = (n.head.last_layer.rows(product_dtype(z.float())) for n in (method.teacher, method.student))
            found = dino_loss(Outputs(z, own, 0.1), Outputs(teacher_z, rows, 0.04), method.center).loss
        found.backward()
        return found.detach()

    ok = torch.ones((), device=job.device)
    return Contender(
        loss,
        lambda: clip_grad(method.named_parameters(), 3.0),
        job.optimizer.step,
        lambda: move_teacher(method.teacher.parameters(), method.student.parameters(), 0.996, ok),
        lambda batch: training_step(job, batch, job.clock(next(number)))["loss"],  # type: ignore[return-value,arg-type]
    )


def method_of(job: Job) -> Any:
    """A DINO like that of `job`, as timm has its blocks."""
    plainly = replace(job.config, compile=False, keep_less=False, grad_checkpointing=False)
    method = build(plainly, job.stream.images, job.device).method
    method.load_state_dict(job.method.state_dict())
    return method


def reference(job: Job, z: Tensor, teacher_z: Tensor) -> Contender:
    """The reference from the weights that `job` has now."""
    method = method_of(job)
    student, teacher = method.student, method.teacher
    for module in method.modules():
        if isinstance(module, Attention):
            module.fused_attn = False
    center = torch.zeros_like(job.method.center)
    named = [(n, p) for n, p in student.named_parameters() if p.requires_grad]
    decayed = [p for n, p in named if not n.endswith(".bias") and p.ndim > 1]
    rest = [p for n, p in named if n.endswith(".bias") or p.ndim <= 1]
    adamw = torch.optim.AdamW([{"params": decayed}, {"params": rest, "weight_decay": 0.0}], lr=1e-6, foreach=False)
    dtype = DTYPES[job.config.precision]

    def mixed() -> torch.autocast:
        return torch.autocast(job.device.type, dtype, enabled=dtype != torch.float32)

    def prototypes(network: Network[Any], x: Tensor) -> Tensor:
        last = network.head.last_layer
        return F.linear(x, last.weight_g * F.normalize(last.weight_v, dim=1))  # type: ignore[union-attr,operator,arg-type]

    def bottleneck(network: Network[Any], views: list[Tensor]) -> Tensor:
        sizes = sorted({v.shape[-1] for v in views}, reverse=True)
        pooled = [network.backbone(torch.cat([v for v in views if v.shape[-1] == s])).pooled for s in sizes]
        return network.head.bottleneck(torch.cat(pooled))  # type: ignore[no-any-return,union-attr,operator]

    def pairs(said: Tensor, told: Tensor, num_views: int) -> Tensor:
        """Logits of all crops and of the teacher's two."""
        students = [s / 0.1 for s in said.float().chunk(num_views)]
        targets = [((t - center) / 0.04).softmax(-1).detach() for t in told.float().chunk(2)]
        terms = [
            -(target * F.log_softmax(s, dim=-1)).sum(-1).mean()
            for q, target in enumerate(targets)
            for v, s in enumerate(students)
            if v != q
        ]
        total: Tensor = sum(terms) / len(terms)  # type: ignore[assignment]
        return total

    def loss() -> Tensor:
        with mixed():
            told = prototypes(teacher, teacher_z.flatten(0, 1)).detach()
            found = pairs(prototypes(student, z.flatten(0, 1)), told, len(z))
        found.backward()
        return found.detach()

    def clip() -> None:
        for _, p in named:
            if p.grad is not None:
                norm = p.grad.norm().item()
                if norm > 3.0:
                    p.grad.mul_(3.0 / norm)

    @torch.no_grad()
    def move() -> None:
        for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
            slow.mul_(0.996).add_(fast, alpha=0.004)

    def step(batch: list[Tensor]) -> float:
        nonlocal center
        with mixed():
            with torch.no_grad():
                told = prototypes(teacher, bottleneck(teacher, batch[:2]))
            found = pairs(prototypes(student, bottleneck(student, batch)), told, len(batch))
        value = found.item()
        adamw.zero_grad()
        found.backward()
        clip()
        adamw.step()
        center = center * 0.9 + told.float().mean(0, keepdim=True) * 0.1
        move()
        return value

    return Contender(loss, clip, adamw.step, move, step)


def lightly(job: Job, z: Tensor, teacher_z: Tensor) -> Contender | None:
    """Its head, loss and momentum update on the same timm network; None where it is not installed."""
    try:
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead
        from lightly.models.utils import update_momentum
    except ImportError:
        return None
    net, k = method_of(job).backbone.model, job.config.method.num_prototypes
    slow = copy.deepcopy(net).requires_grad_(False)
    net.requires_grad_(True)
    heads = [DINOProjectionHead(net.num_features, 2048, 256, k).to(job.device) for _ in range(2)]
    head, slow_head = heads[0], heads[1].requires_grad_(False)
    criterion = DINOLoss(output_dim=k, warmup_teacher_temp=0.04, teacher_temp=0.04).to(job.device)
    trained = [*net.parameters(), *(p for p in head.parameters() if p.requires_grad)]
    adamw = torch.optim.AdamW(trained, lr=1e-6)
    dtype = DTYPES[job.config.precision]

    def of(outputs: Callable[[], tuple[list[Tensor], list[Tensor]]]) -> Tensor:
        with torch.autocast(job.device.type, dtype, enabled=dtype != torch.float32):
            told, said = outputs()
            found: Tensor = criterion(told, said, epoch=1)
        found.backward()
        return found

    def last(module: nn.Module, x: Tensor) -> list[Tensor]:
        return list(module.last_layer(x.flatten(0, 1)).chunk(len(x)))  # type: ignore[operator]

    def move() -> None:
        update_momentum(net, slow, 0.996)
        update_momentum(head, slow_head, 0.996)

    def step(batch: list[Tensor]) -> float:
        adamw.zero_grad()
        found = of(lambda: ([slow_head(slow(v)) for v in batch[:2]], [head(net(v)) for v in batch]))
        head.cancel_last_layer_gradients(current_epoch=1)
        adamw.step()
        move()
        return found.item()

    def loss() -> Tensor:
        return of(lambda: ([x.detach() for x in last(slow_head, teacher_z)], last(head, z)))

    return Contender(loss, lambda: torch.nn.utils.clip_grad_norm_(trained, 3.0), adamw.step, move, step)
