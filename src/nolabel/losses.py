"""Losses as functions of tensors. Softmax and logarithm are taken in float32 whatever the precision of the logits."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nolabel import distributed

_LOGITS_AT_ONCE = 2**24


def product_dtype(x: Tensor) -> torch.dtype:
    """In what many products with `x` are made: bf16 under its autocast (float16 has too little range), else float32."""
    device = x.device.type
    mixed = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return torch.bfloat16 if mixed else torch.promote_types(x.dtype, torch.float32)


class Outputs(NamedTuple):
    """What a network with prototypes says of V views: the logits are `z @ prototypes.T`, which nobody stores."""

    z: Tensor
    """(V, B, D): the bottleneck, before the prototypes."""
    prototypes: Tensor
    """(K, D); products are made in their dtype."""
    temperature: float


class Distillation(NamedTuple):
    """What `dino_loss` says, each 0-d."""

    loss: Tensor
    entropy: Tensor
    """Mean entropy of the teacher's probabilities, in nats."""
    information: Tensor
    """What they say of their image (`information`), in nats."""


def dino_loss(student: Outputs, teacher: Outputs, center: Tensor) -> Distillation:
    """Cross-entropy between teacher and student over all pairs of different views (Caron et al. 2021).

    The student sees all V views, the teacher the first two; `center` (1, K) is subtracted from the teacher's logits.
    The mean over the 2(V-1) pairs is linear in the target, so each crop needs one log-softmax against the sum of the
    targets it is paired with. The (V + 2) x B x K logits are never held whole: at most 2**24 at a time, 64 MiB in
    float32, and nothing of them is kept for the backward pass but the gradients of `z` and of the prototypes. All but
    the products is float32. The teacher gets no gradient.
    """
    dtype = torch.promote_types(student.z.dtype, torch.float32)
    temperatures = student.temperature, teacher.temperature
    with torch.autocast(student.z.device.type, enabled=False):
        loss, h, told = _Distillation.apply(
            student.z.to(dtype), student.prototypes, teacher.z.detach(), teacher.prototypes, center, temperatures
        )
    return Distillation(loss, h, told)


class _Distillation(torch.autograd.Function):
    """The loss some images at a time; its gradients are made on the way, because then the logits are needed only once.

    With P the sum of the targets that a crop is paired with, and n their number, the gradient of its logits is
    (n softmax - P) / temperature / (2(V-1)B).
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, w: Tensor, teacher_z: Tensor, teacher_w: Tensor, center: Tensor, temps: tuple[float, float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_views, num_images, num_prototypes = len(z), z.shape[1], len(w)
        at_once = max(1, _LOGITS_AT_ONCE // ((num_views + 2) * num_prototypes))
        losses, entropies, grads = [], [], []
        mean, grad_w = torch.zeros((), device=z.device), None
        for seen, told in zip(torch.split(z, at_once, 1), torch.split(teacher_z, at_once, 1), strict=True):
            logits = (told.flatten(0, 1).to(w.dtype) @ teacher_w.T).to(z.dtype).sub_(center).div_(temps[1])
            p = logits.softmax(-1).view(2, -1, num_prototypes)
            entropies.append(-(p * logits.log_softmax(-1).view_as(p)).sum(-1))
            mean = mean + p.sum((0, 1)) / (2 * num_images)
            targets = [p[1], p[0], *[p.sum(0)] * (num_views - 2)]
            x = seen.flatten(0, 1).to(w.dtype)
            logs = (x @ w.T).to(z.dtype).div_(temps[0]).log_softmax(-1).view(num_views, -1, num_prototypes)
            losses.append(torch.stack([(t * s).sum(-1) for t, s in zip(targets, logs, strict=True)]))
            slopes = logs.exp_()
            slopes[2:] *= 2
            for t, slope in zip(targets, slopes, strict=True):
                slope.sub_(t)
            y = slopes.flatten(0, 1).to(w.dtype)
            grads.append((y @ w).to(z.dtype).view_as(seen))
            grad_w = y.T @ x if grad_w is None else grad_w.to(z.dtype) + y.T @ x
        pairs = 2 * (num_views - 1)
        ctx.save_for_backward(torch.cat(grads, 1), grad_w)
        ctx.scale = 1 / (temps[0] * pairs * num_images)
        loss, h = torch.zeros((), device=z.device), torch.cat(entropies, 1).mean()
        for view in torch.cat(losses, 1):  # in this order the sum has the same bits whatever fits at once
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
    """What assignments `p` (..., K) say of their image, a 0-d tensor in nats: entropy of the mean less mean entropy.

    0 when all rows are alike, whatever they are; at most the logarithm of the number of rows or of K.
    """
    rows = p.flatten(0, -2)
    return entropy(rows.mean(0, keepdim=True)) - entropy(rows)


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """SimCLR's loss of two views `a`, `b` (B, D) and the share of positives ranked first, both 0-d.

    The negatives are both views of all other images of all processes; the loss is the sum of the means over the two
    views, as in the authors' code (Chen et al. 2020).
    """
    a, b = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)
    all_a, all_b = distributed.all_gather(a), distributed.all_gather(b)
    rows = torch.arange(len(a), device=a.device)
    positive = rows + distributed.rank() * len(a)
    loss, correct = torch.zeros((), device=a.device), torch.zeros((), device=a.device)
    for query, others, same in ((a, all_b, all_a), (b, all_a, all_b)):
        with torch.autocast(a.device.type, enabled=False):  # cosines in bf16 are off by up to 0.4 %
            to_same = (query @ same.T).index_put((rows, positive), torch.full((), -torch.inf, device=a.device))
            logits = torch.cat([query @ others.T, to_same], dim=1) / temperature
        loss = loss + F.cross_entropy(logits, positive)
        correct = correct + (logits.argmax(1) == positive).float().mean() / 2
    return loss, correct


class Contrast(NamedTuple):
    """What `info_nce` says, each 0-d."""

    loss: Tensor
    positive: Tensor
    """Mean cosine of a query with its key."""
    negative: Tensor
    """Mean cosine of a query with the queue."""
    first: Tensor
    """Share of queries whose key is nearer than all of the queue."""


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Contrast:
    """MoCo's loss (He et al. 2020): each query must name its own key among the rows of the queue.

    `query` and `key` (R, D) have unit rows, row r of one belongs to row r of the other; `queue` (Q, D) holds the
    negatives. Key and queue get no gradient. The R x (Q + 1) logits are never held whole: at most 2**24 at a time,
    64 MiB in float32, and nothing of them is kept for the backward pass but the gradient (R, D). Under bf16 autocast
    the products with the queue are bf16, where the errors of many negatives cancel; the rest is float32.
    """
    device, dtype = query.device.type, torch.promote_types(query.dtype, torch.float32)
    q, k, n = query.to(dtype), key.detach().to(dtype), queue.detach().to(dtype)
    products = product_dtype(query)
    with torch.autocast(device, enabled=False):
        loss, first = _InfoNCE.apply(q, k, n, temperature, products)
        with torch.no_grad():
            positive, negative = (q * k).sum(1).mean(), q.mean(0) @ n.mean(0)
    return Contrast(loss, positive, negative, first)


class _InfoNCE(torch.autograd.Function):
    """The loss chunk by chunk; its gradient is made on the way, because then the logits are needed only once."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, queue: Tensor, temperature: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        rows, negatives = max(1, _LOGITS_AT_ONCE // len(queue)), queue.to(dtype)
        losses, firsts, grads = [], [], []
        for q, k in zip(torch.split(query, rows), torch.split(key, rows), strict=True):
            positive = (q * k).sum(1, keepdim=True) / temperature
            logits = (q.to(dtype) @ negatives.T).to(q.dtype).div_(temperature)
            top = torch.maximum(logits.amax(1, keepdim=True), positive)
            weights, own = logits.sub_(top).exp_(), (positive - top).exp()
            total = weights.sum(1, keepdim=True) + own
            losses.append(total.log() + top - positive)
            firsts.append(positive >= top)
            if ctx.needs_input_grad[0]:
                drawn = (weights.to(dtype) @ negatives).to(q.dtype) + own * k
                grads.append((drawn / total - k) / (temperature * len(query)))
        if grads:
            ctx.save_for_backward(torch.cat(grads))
        first = torch.cat(firsts).to(query.dtype).mean()
        ctx.mark_non_differentiable(first)
        return torch.cat(losses).mean(), first

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        return grad * ctx.saved_tensors[0], None, None, None, None


def log_assignments(z: Tensor, prototypes: Tensor, temperature: float, smoothing: float = 0.0) -> Tensor:
    """log p (B, K) of embeddings `z` (B, D) over `prototypes` (K, D): log-softmax of cosine / temperature, in float32.

    With `smoothing` s each prototype stands for the label 1 - s + s/K and for the others s/K, so p is (1 - s) p + s/K
    (Assran et al. 2022).
    """
    with torch.autocast(z.device.type, enabled=False):
        cosines = F.normalize(z.float(), dim=-1) @ F.normalize(prototypes.float(), dim=-1).T
    log_p = F.log_softmax(cosines / temperature, dim=-1)
    if smoothing:
        floor = torch.full((), math.log(smoothing / len(prototypes)), device=z.device)
        log_p = torch.logaddexp(log_p + math.log1p(-smoothing), floor)
    return log_p


@torch.no_grad()
def sinkhorn(p: Tensor, num_rounds: int = 3) -> Tensor:
    """Probabilities (B, K) balanced over the joined batch of all processes: each prototype gets about the same share.

    A round divides each prototype by its sum over all images, then each image by its sum over the prototypes; so rows
    sum to 1 exactly, columns to B/K nearly (Assran et al. 2022, on sharpened probabilities, without another
    exponential). No gradient. A prototype that is 0 for all images stays so.
    """
    p = p.float()
    for _ in range(num_rounds):
        p = p / distributed.all_sum(p.sum(0)).clamp_min(torch.finfo(p.dtype).tiny)
        p = p / p.sum(1, keepdim=True)
    return p


def memax_gap(p: Tensor) -> Tensor:
    """ln K - H of the mean of probabilities `p` (B, K) over all rows and processes: 0-d, from 0 (uniform) to ln K.

    MSN's me-max regularisation minimises it (Assran et al. 2022). Its gradient is that of the joined batch.
    """
    mean = distributed.all_mean(p.mean(0))
    return math.log(p.shape[1]) + (mean * mean.clamp_min(torch.finfo(p.dtype).tiny).log()).sum()
