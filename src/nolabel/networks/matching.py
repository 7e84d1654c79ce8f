"""Match locations of two images by the cosine of their features."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nolabel.networks.backbones import Features


class Matches(NamedTuple):
    """The nearest location of the second image for each of the first; N and M locations."""

    nearest: Tensor
    """(B, N) int64, 0 to M - 1; of equally near ones the first."""
    cosine: Tensor
    """(B, N) float32"""
    mutual: Tensor
    """(B, N) bool: whether the nearest location has this one as its nearest, too."""


@torch.no_grad()
def match(first: Tensor, second: Tensor) -> Matches:
    """Correspondences from features `first` (B, N, D) to `second` (B, M, D) of the same or other images."""
    with torch.autocast(first.device.type, enabled=False):  # bf16 would make ties of near locations
        a, b = unit(first), unit(second)
        cosines = a @ b.transpose(1, 2)  # (B, N, M)
    index = cosines.argmax(2)
    back = cosines.argmax(1).gather(1, index)
    mutual = back == torch.arange(index.shape[1], device=index.device)
    return Matches(index, cosines.gather(2, index[..., None])[..., 0], mutual)


def pool(features: Features, num_grid: int | None) -> Tensor:
    """The patches (B, N, D) as they are, or averaged to `num_grid` rows and columns."""
    if num_grid is None:
        return features.patches
    maps = features.patches.transpose(1, 2).reshape(len(features.patches), -1, *features.grid)
    return F.adaptive_avg_pool2d(maps, num_grid).flatten(2).transpose(1, 2)


def unit(x: Tensor) -> Tensor:
    """Vectors along the last dimension at length 1, in float32."""
    return F.normalize(x.float(), dim=-1)


@torch.no_grad()
def place_share(x: Tensor) -> Tensor:
    """Share of the variance of `x` (B, N, C) that is the same in all images: 1 where a vector shows its place alone.

    At least about 1 / B, by chance.
    """
    centered = x.float() - x.float().mean((0, 1))
    return centered.mean(0).square().sum() / (centered.square().sum() / len(x)).clamp_min(1e-12)
