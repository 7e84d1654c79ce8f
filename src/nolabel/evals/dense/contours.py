"""Agreement of two masks along their boundaries: the F of DAVIS (Perazzi et al. 2016)."""

import math

import torch
from torch import Tensor

TOLERANCE = 0.008
"""Distance that a boundary may be off, as a share of the image's diagonal (Perazzi et al. 2016)."""


def boundary(mask: Tensor) -> Tensor:
    """Pixels (H, W) of `mask` (H, W) bool whose right, lower or lower right neighbour differs.

    A line one pixel wide, as in the official code. What lies outside the image is not compared.
    """
    edge = torch.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Pixels (H, W) at a distance of at most `radius` from a pixel of `mask` (H, W) bool: a disk."""
    height, width = mask.shape
    counts = torch.zeros(height, width + 1, dtype=torch.int32, device=mask.device)
    torch.cumsum(mask, 1, dtype=torch.int32, out=counts[:, 1:])
    x = torch.arange(width, device=mask.device)
    out = torch.zeros_like(mask)
    for dy in range(-min(radius, height - 1), min(radius, height - 1) + 1):
        reach = math.isqrt(radius**2 - dy**2)
        near = counts[:, (x + reach + 1).clamp_max(width)] > counts[:, (x - reach).clamp_min(0)]
        out[max(dy, 0) : height + min(dy, 0)] |= near[max(-dy, 0) : height - max(dy, 0)]
    return out


def boundary_f(predicted: Tensor, truth: Tensor, tolerance: float = TOLERANCE) -> float:
    """F in 0..1 of two masks (H, W) bool: precision and recall of boundary pixels within `tolerance` x diagonal.

    1 where neither has a boundary, 0 where one of them has none.
    """
    radius = math.ceil(tolerance * math.hypot(*truth.shape))
    ours, theirs = boundary(predicted), boundary(truth)
    num_ours, num_theirs = int(ours.sum()), int(theirs.sum())
    if not (num_ours and num_theirs):
        return float(num_ours == num_theirs)
    precision = int((ours & dilate(theirs, radius)).sum()) / num_ours
    recall = int((theirs & dilate(ours, radius)).sum()) / num_theirs
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
