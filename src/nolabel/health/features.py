"""Signals of the spread of the features of some images, from which `diagnosis.py` reads a collapse."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_PAIRS = 1024


class FeatureSignals(NamedTuple):
    """Measures of how the features of some hundred images spread; `feature_signals` computes them."""

    rankme: float
    """Effective rank of the features as they are (Garrido et al. 2023), 1 to D."""
    effective_rank: float
    """Effective rank of the covariance of the features (Roy & Vetterli 2007)."""
    feature_std: float
    """sqrt(D) times the mean standard deviation of the unit features (Chen & He 2021): near 1, 0 if all are alike."""
    uniformity: float
    """ln E exp(-2 d^2) over pairs (Wang & Isola 2020): about -4 when spread evenly, 0 if all are alike."""
    alpha: float
    """Decay of the eigenvalues, lambda_j ~ j^-alpha (Agrawal et al. 2022): about 1 is good, steep is collapse."""


def feature_signals(features: Tensor) -> FeatureSignals:
    """Signals of `features` (N, D), one row per image, N some hundred; computed in float64 on the CPU."""
    z = features.detach().double().cpu()
    n, d = z.shape
    singular = torch.linalg.eigvalsh(z.T @ z).clamp_min(0).sqrt()
    eigen = torch.linalg.eigvalsh(torch.cov(z.T)).clamp_min(0).flip(0)
    unit = F.normalize(z, dim=1)
    some = unit[:MAX_PAIRS]
    distances = torch.pdist(some).square() if len(some) > 1 else torch.zeros(1, dtype=z.dtype)
    return FeatureSignals(
        rankme=_perplexity(singular),
        effective_rank=_perplexity(eigen),
        feature_std=float(math.sqrt(d) * unit.std(0).mean()),
        uniformity=float((-2 * distances).exp().mean().log()),
        alpha=_slope(eigen, min(n - 1, d)),
    )


def _perplexity(weights: Tensor) -> float:
    """exp of the entropy of non-negative weights scaled to sum 1; 1 where all are 0."""
    total = weights.sum()
    if total <= 0:
        return 1.0
    p = weights / total + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def _slope(eigen: Tensor, rank: int) -> float:
    """-slope of ln lambda over ln j, from the third eigenvalue to the middle of those that can be above 0."""
    last = max(rank // 2, 5)
    part = eigen[2:last]
    good = part > eigen[0] * 1e-12
    if int(good.sum()) < 3:
        return math.inf
    x = torch.arange(3, 3 + len(part), dtype=part.dtype)[good].log()
    y = part[good].log()
    x = x - x.mean()
    return float(-(x * (y - y.mean())).sum() / x.square().sum())
