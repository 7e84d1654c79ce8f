"""Normalisation of uint8 images for a network."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def normalize(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 images (..., 3, H, W) in 0..255 to float32 with the given mean and standard deviation of 0..1 values."""
    shift, scale = _constants(tuple(mean), tuple(std), x.device)
    return x.float().sub_(shift).div_(scale)


@lru_cache(maxsize=8)  # a copy to a GPU waits for it: once, not at each step
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    shift = torch.tensor([255 * m for m in mean], device=device).view(3, 1, 1)
    scale = torch.tensor([255 * s for s in std], device=device).view(3, 1, 1)
    return shift, scale
