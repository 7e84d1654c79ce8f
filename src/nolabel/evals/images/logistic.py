"""L2-regularised multinomial logistic regression without intercept, solved to a known accuracy in float64.

minimise over W (C, D):   sum over images of cross-entropy(W x, y)  +  strength / 2 * |W|^2

The sum over images, not their mean: `strength` is scikit-learn's 1 / C.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

TOLERANCE = 1e-5


class Fitted(NamedTuple):
    """A solution."""

    weight: Tensor
    """(C, D) float64."""
    gap: float
    """The objective is at most (1 + gap) times that of the optimum."""
    iterations: int


def center_rows(x: Tensor) -> Tensor:
    """Each row (N, D) minus its own mean, at length 1: MSN's preprocessing. A row of equal numbers becomes 0."""
    return unit_rows(x - x.mean(1, keepdim=True))


def unit_rows(x: Tensor) -> Tensor:
    """Each row at length 1, or 0 where it is shorter than 1e-10."""
    lengths = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return torch.where(lengths > 1e-10, x / lengths.clamp_min(1e-10), 0.0)


def fit(
    x: Tensor,
    labels: Tensor,
    num_classes: int,
    strengths: Sequence[float],
    tolerance: float = TOLERANCE,
    max_iterations: int = 1000,
) -> list[Fitted]:
    """Solutions for features `x` (N, D), one a strength (> 0); each starts from that of the next larger strength.

    L-BFGS stops once the objective is within `tolerance` (relative) of the optimum. Strong convexity bounds the
    distance by the gradient g: f - f* <= |g|^2 / (2 strength).
    """
    x, basis = _span(x.double())
    weight = x.new_zeros(num_classes, x.shape[1])
    fitted: dict[float, Fitted] = {}
    for strength in sorted(set(strengths), reverse=True):
        found = _solve(x, labels, weight, strength, tolerance, max_iterations)
        weight = found.weight
        fitted[strength] = found if basis is None else found._replace(weight=weight @ basis)
    return [fitted[strength] for strength in strengths]


def _span(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The N rows in coordinates of the space they span, and its basis, where N < D: the solution lies in that space."""
    if len(x) >= x.shape[1]:
        return x, None
    q, r = torch.linalg.qr(x.T)  # (D, N), (N, N)
    return r.T.contiguous(), q.T


def _solve(x: Tensor, labels: Tensor, start: Tensor, strength: float, tolerance: float, max_iterations: int) -> Fitted:
    weight = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight],
        max_iter=25,
        history_size=25,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T, labels, reduction="sum") + strength / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    iterations, previous = 0, math.inf
    while True:
        value = float(objective().detach())
        assert weight.grad is not None
        bound = float(weight.grad.square().sum()) / (2 * strength)
        gap = bound / max(value - bound, 1e-300)
        if gap <= tolerance or iterations >= max_iterations or value >= previous:  # equal: as exact as float64 gets
            return Fitted(weight.detach(), gap, iterations)
        previous = value
        optimizer.step(objective)  # type: ignore[no-untyped-call]
        iterations += 25
