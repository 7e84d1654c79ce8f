"""Distillation of a teacher's distribution (DINO), and the information in that distribution."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nolabel.losses.products import LOGITS_AT_ONCE


class Outputs(NamedTuple):
    """Outputs of a network with prototypes for V views. The logits are `z @ prototypes.T`; they are never stored."""

    z: Tensor
    """(V, B, D): the bottleneck, before the prototypes."""
    prototypes: Tensor
    """(K, D); products are made in their dtype."""
    temperature: float


class Distillation(NamedTuple):
    """Result of `dino_loss`; every field is a scalar (0-d) tensor."""

    loss: Tensor
    entropy: Tensor
    """Mean entropy of the teacher's probabilities, in nats."""
    information: Tensor
    """Information of the teacher's probabilities about their image (`information`), in nats."""


def dino_loss(student: Outputs, teacher: Outputs, center: Tensor) -> Distillation:
    """Cross-entropy between teacher and student over all pairs of different views (Caron et al. 2021).

    The student sees all V views, the teacher the first two; `center` (1, K) is subtracted from the teacher's logits.
    The loss is linear in the target. So each crop needs one log-softmax only, against the sum of the targets that it is
    paired with. The (V + 2) x B x K logits never exist all at once: at most 2**24 at a time, 64 MiB in float32. For the
    backward pass only the gradients of `z` and of the prototypes are kept. Everything but the matrix products is
    computed in float32. The teacher gets no gradient.
    """
    dtype = torch.promote_types(student.z.dtype, torch.float32)
    temperatures = student.temperature, teacher.temperature
    with torch.autocast(student.z.device.type, enabled=False):
        loss, h, information = _Distillation.apply(
            student.z.to(dtype), student.prototypes, teacher.z.detach(), teacher.prototypes, center, temperatures
        )
    return Distillation(loss, h, information)


class _Distillation(torch.autograd.Function):
    """The loss, some images at a time. The forward pass computes the gradients too, so logits are needed only once.

    With P the sum of the targets that a crop is paired with, and n their number, the gradient of its logits is
    (n softmax - P) / temperature / (2(V-1)B).
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, w: Tensor, teacher_z: Tensor, teacher_w: Tensor, center: Tensor, temps: tuple[float, float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_views, num_images, num_prototypes = len(z), z.shape[1], len(w)
        at_once = max(1, LOGITS_AT_ONCE // ((num_views + 2) * num_prototypes))
        losses, entropies, grads = [], [], []
        mean, grad_w = torch.zeros((), device=z.device), None
        for chunk, targets_z in zip(torch.split(z, at_once, 1), torch.split(teacher_z, at_once, 1), strict=True):
            logits = (targets_z.flatten(0, 1).to(w.dtype) @ teacher_w.T).to(z.dtype).sub_(center).div_(temps[1])
            p = logits.softmax(-1).view(2, -1, num_prototypes)
            entropies.append(-(p * logits.log_softmax(-1).view_as(p)).sum(-1))
            mean = mean + p.sum((0, 1)) / (2 * num_images)
            targets = [p[1], p[0], *[p.sum(0)] * (num_views - 2)]
            x = chunk.flatten(0, 1).to(w.dtype)
            logs = (x @ w.T).to(z.dtype).div_(temps[0]).log_softmax(-1).view(num_views, -1, num_prototypes)
            losses.append(torch.stack([(t * s).sum(-1) for t, s in zip(targets, logs, strict=True)]))
            slopes = logs.exp_()
            slopes[2:] *= 2
            for t, slope in zip(targets, slopes, strict=True):
                slope.sub_(t)
            y = slopes.flatten(0, 1).to(w.dtype)
            grads.append((y @ w).to(z.dtype).view_as(chunk))
            grad_w = y.T @ x if grad_w is None else grad_w.to(z.dtype) + y.T @ x
        pairs = 2 * (num_views - 1)
        ctx.save_for_backward(torch.cat(grads, 1), grad_w)
        ctx.scale = 1 / (temps[0] * pairs * num_images)
        loss, h = torch.zeros((), device=z.device), torch.cat(entropies, 1).mean()
        for view in torch.cat(losses, 1):  # in this order the sum has the same bits for any number at once
            loss = loss - view.mean()
        information = entropy(mean[None]) - h
        ctx.mark_non_differentiable(h, information)
        return loss / pairs, h, information

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_z, grad_w = ctx.saved_tensors
        grad = grad * ctx.scale
        return grad * grad_z, grad * grad_w, None, None, None, None


def entropy(p: Tensor) -> Tensor:
    """Mean entropy in nats of probabilities (..., K), a 0-d tensor."""
    h: Tensor = -torch.special.xlogy(p, p).sum(-1).mean()
    return h


@torch.no_grad()
def information(p: Tensor) -> Tensor:
    """Information of assignments `p` (..., K) about their image: entropy of the mean minus mean entropy, 0-d, in nats.

    It is 0 when all rows are alike, and at most the logarithm of the number of rows or of K.
    """
    rows = p.flatten(0, -2)
    return entropy(rows.mean(0, keepdim=True)) - entropy(rows)
