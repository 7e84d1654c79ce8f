"""Contrastive losses: NT-Xent (SimCLR) and InfoNCE with a queue (MoCo, DenseCL)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nolabel import distributed
from nolabel.losses.products import LOGITS_AT_ONCE, product_dtype


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
    """Result of `info_nce`; every field is a scalar (0-d) tensor."""

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
    """The loss, chunk by chunk. Its gradient is made on the way, so that the logits are needed only once."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, queue: Tensor, temperature: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        rows, negatives = max(1, LOGITS_AT_ONCE // len(queue)), queue.to(dtype)
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
