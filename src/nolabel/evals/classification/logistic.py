"""L2-regularised multinomial logistic regression without intercept, solved to a known accuracy in float64.

Newton's method with conjugate gradients: where the classes are nearly separable and the strength is small, L-BFGS needs
thousands of steps and this a few.

minimise over W (C, D):   sum over images of cross-entropy(W x, y)  +  strength / 2 * |W|^2

The sum over images, not their mean: `strength` is scikit-learn's 1 / C.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

TOLERANCE = 1e-9
"""At 1e-5 top-1 still moves by up to 0.8 points under a strong regularisation, where the weights hardly leave 0."""


class Fitted(NamedTuple):
    """A solution."""

    weight: Tensor
    """(C, D) float64."""
    gap: float
    """The objective is at most (1 + gap) times that of the optimum."""
    products: int
    """Passes over the images: gradients, and products with the Hessian."""


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
    max_products: int = 20_000,
) -> list[Fitted]:
    """Solutions for features `x` (N, D), one a strength (> 0); each starts from that of the next larger strength.

    Newton's method stops once the objective is within `tolerance` (relative) of the optimum. Strong convexity bounds
    the distance by the gradient g: f - f* <= |g|^2 / (2 strength).
    """
    x, basis = _span(x.double())
    weight = x.new_zeros(num_classes, x.shape[1])
    fitted: dict[float, Fitted] = {}
    for strength in sorted(set(strengths), reverse=True):
        solution = _solve(x, labels, weight, strength, tolerance, max_products)
        weight = solution.weight
        fitted[strength] = solution if basis is None else solution._replace(weight=weight @ basis)
    return [fitted[strength] for strength in strengths]


def _span(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The N rows in coordinates of the space they span, and its basis, where N < D: the solution is in that space."""
    if len(x) >= x.shape[1]:
        return x, None
    q, r = torch.linalg.qr(x.T)  # (D, N), (N, N)
    return r.T.contiguous(), q.T


class _Point(NamedTuple):
    """The objective at some weights."""

    weight: Tensor
    value: float
    probabilities: Tensor
    """(N, C)."""
    gradient: Tensor
    """(C, D)."""


def _point(x: Tensor, truth: Tensor, weight: Tensor, strength: float) -> _Point:
    """`truth` (N, C) is one-hot."""
    logs = (x @ weight.T).log_softmax(1)
    p = logs.exp()
    value = -(truth * logs).sum() + strength / 2 * weight.square().sum()
    return _Point(weight, float(value), p, (p - truth).T @ x + strength * weight)


def _solve(x: Tensor, labels: Tensor, start: Tensor, strength: float, tolerance: float, max_products: int) -> Fitted:
    truth = F.one_hot(labels, len(start)).to(x.dtype)
    here, products = _point(x, truth, start, strength), 1
    while True:
        bound = float(here.gradient.square().sum()) / (2 * strength)
        gap = bound / (here.value - bound) if here.value > bound else math.inf
        if gap <= tolerance or products >= max_products:
            return Fitted(here.weight, gap, products)
        # far from the optimum a rough direction does; near it the error must fall faster than the gap
        direction, used = _newton(x, here, strength, min(0.1, math.sqrt(gap)), max_products - products)
        slope, share = float((here.gradient * direction).sum()), 1.0
        there = _point(x, truth, here.weight + direction, strength)
        while there.value > here.value + 1e-4 * share * slope and share > 1e-6:
            share /= 2
            there = _point(x, truth, here.weight + share * direction, strength)
            products += 1
        products += used + 1
        if there.value >= here.value:  # as exact as float64 gets
            return Fitted(here.weight, gap, products)
        here = there


def _newton(x: Tensor, here: _Point, strength: float, error: float, limit: int) -> tuple[Tensor, int]:
    """d (C, D) with |H d + g| <= error |g| for the Hessian H, by conjugate gradients, and the products it took."""
    p = here.probabilities
    step, residual = torch.zeros_like(here.weight), -here.gradient
    direction, size = residual, residual.square().sum()
    enough = error**2 * size
    for count in range(1, limit + 1):
        change = p * (x @ direction.T)
        curved = (change - p * change.sum(1, keepdim=True)).T @ x + strength * direction
        share = size / (direction * curved).sum()
        step, residual = step + share * direction, residual - share * curved
        previous, size = size, residual.square().sum()
        if size <= enough:
            return step, count
        direction = residual + size / previous * direction
    return step, limit
