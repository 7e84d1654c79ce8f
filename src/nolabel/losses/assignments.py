"""Soft assignments to prototypes (MSN): sharpened, balanced, and the me-max term."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from nolabel import distributed


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
