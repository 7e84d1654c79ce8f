"""Losses as functions of tensors. Softmax and logarithm are taken in float32 whatever the precision of the logits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nolabel import distributed


def dino_loss(student: Tensor, teacher: Tensor, student_temp: float) -> Tensor:
    """Cross-entropy between teacher and student over all pairs of different views (Caron et al. 2021), a 0-d tensor.

    `student` (V, B, K) are logits of all crops, `teacher` (2, B, K) probabilities of the global ones, which come
    first in `student`. The mean over the 2(V-1) pairs is linear in the target, so each crop needs one log-softmax
    against the sum of the targets it is paired with.
    """
    total = torch.zeros((), device=student.device)
    for v, logits in enumerate(student):
        target = teacher.sum(0) if v > 1 else teacher[1 - v]
        total = total - (target * F.log_softmax(logits.float() / student_temp, dim=-1)).sum(-1).mean()
    return total / (2 * (len(student) - 1))


def entropy(p: Tensor) -> Tensor:
    """Mean entropy in nats of probabilities (..., K), a 0-d tensor."""
    h: Tensor = -torch.special.xlogy(p, p).sum(-1).mean()
    return h


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
            to_same = (query @ same.T).index_put((rows, positive), torch.tensor(-torch.inf, device=a.device))
            logits = torch.cat([query @ others.T, to_same], dim=1) / temperature
        loss = loss + F.cross_entropy(logits, positive)
        correct = correct + (logits.argmax(1) == positive).float().mean() / 2
    return loss, correct
