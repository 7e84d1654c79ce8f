"""Patch features as colours: their first three principal components in red, green and blue.

One basis serves all images, so that equal colours mean equal features (as in DINOv2, arXiv 2304.07193).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nolabel.networks.backbones import Backbone, Features
from nolabel.plots.attention import looking, upsample
from nolabel.plots.sheet import PAGE, Tile, sheet, tile_size, to_image

_A_ROW = 6
"""Images in a row of a sheet."""


class Basis(NamedTuple):
    """A fixed map from patch features to colours. D is the width of the features."""

    mean: Tensor
    """(D,)"""
    components: Tensor
    """(3, D), orthonormal rows; zero where the features have no further direction."""
    low: Tensor
    """(3,) projections that become 0 and `high` those that become 255: the 1st and 99th percentile."""
    high: Tensor
    explained: Tensor
    """(3,) share of the variance."""


def pca_basis(patches: Tensor) -> Basis:
    """The basis of patch features (M, D). Signs make each component's largest loading positive."""
    x = patches.double().cpu()
    mean = x.mean(0)
    _, s, v = torch.linalg.svd(x - mean, full_matrices=False)
    total = s.square().sum().clamp_min(1e-30)
    kept = s[:3] > 1e-9 * s.max().clamp_min(1e-30)
    v = v[:3] * v[:3].gather(1, v[:3].abs().argmax(1, keepdim=True)).sign() * kept[:, None]
    components = torch.zeros(3, x.shape[1], dtype=x.dtype)
    components[: len(v)] = v
    explained = torch.zeros(3, dtype=x.dtype)
    explained[: len(v)] = s[:3].square() / total
    projected = (x - mean) @ components.T
    low, high = torch.quantile(_at_most(projected, 200_000), torch.tensor([0.01, 0.99], dtype=x.dtype), dim=0)
    return Basis(mean, components, low, high, explained)


def pca_rgb(patches: Tensor, basis: Basis) -> NDArray[np.uint8]:
    """Colours (..., N, 3) of patch features (..., N, D)."""
    x = (patches.double().cpu() - basis.mean) @ basis.components.T
    span = basis.high - basis.low
    x = torch.where(span > 0, (x - basis.low) / span.clamp_min(1e-30), 0.5)
    colors: NDArray[np.uint8] = (x.clamp(0, 1) * 255).round().byte().numpy()
    return colors


def foreground(features: Sequence[Features]) -> list[Tensor]:
    """Masks of the patches that show the subject, by the sign of the first component: (N,) bool per image.

    A component has no sign of its own, so the subject is the side that is rarer on the border of the images.
    """
    patches = torch.cat([f.patches[0] for f in features])
    basis = pca_basis(patches)
    sides = [((f.patches[0].double().cpu() - basis.mean) @ basis.components[0]) > 0 for f in features]
    border = torch.cat([side[_border(f.grid)] for side, f in zip(sides, features, strict=True)]).double().mean()
    inside = torch.cat(sides).double().mean()
    return [side if border <= inside else ~side for side in sides]


def pca_sheet(
    backbone: Backbone,
    images: Sequence[Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    names: Sequence[str] = (),
    title: str = "",
    subject_only: bool = False,
) -> Image.Image:
    """Draw each image (3, H, W), normalised, above its patches in the colours of one basis made from all of them.

    With `subject_only` the first component separates the subject from the background, which stays dark, and the
    colours are the components of the subject alone.
    """
    if not images:
        raise ValueError("pca_sheet needs at least one image.")
    with looking(backbone) as device:
        features = [backbone(image[None].to(device)) for image in images]
    masks = foreground(features) if subject_only else [torch.ones(f.patches.shape[1]).bool() for f in features]
    basis = pca_basis(torch.cat([f.patches[0].cpu()[mask] for f, mask in zip(features, masks, strict=True)]))
    pictures = [to_image(image, mean, std) for image in images]
    sizes = [tile_size(picture) for picture in pictures]
    top = [Tile(picture.resize(size)) for picture, size in zip(pictures, sizes, strict=True)]
    parts = zip(features, masks, sizes, strict=True)
    names = names or [f"image {i}" for i in range(1, len(images) + 1)]
    low = [Tile(_colored(*part, basis), name) for part, name in zip(parts, names, strict=True)]
    rows = [row[i : i + _A_ROW] for i in range(0, len(top), _A_ROW) for row in (top, low)]
    share = ", ".join(f"{e:.0%}" for e in basis.explained)
    note = f"Red, green, blue: the first three components of the patch features ({share} of the variance)."
    return sheet(rows, (max(w for w, _ in sizes), max(h for _, h in sizes)), title, note)


def _colored(features: Features, mask: Tensor, size: tuple[int, int], basis: Basis) -> Image.Image:
    """One image's patches in colour, dark outside the mask, at `size` = (width, height) pixels."""
    colors = np.where(mask.numpy()[:, None], pca_rgb(features.patches[0], basis), np.array(PAGE, dtype=np.uint8))
    grid = torch.from_numpy(colors).view(*features.grid, 3).permute(2, 0, 1)
    return Image.fromarray(upsample(grid, size[::-1]).permute(1, 2, 0).numpy())


def _border(grid: tuple[int, int]) -> Tensor:
    """The locations (N,) on the outer edge of a grid: bool."""
    edge = torch.ones(grid, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    return edge.flatten()


def _at_most(x: Tensor, num_rows: int) -> Tensor:
    """Every k-th row, so that no more than `num_rows` remain (torch.quantile takes at most 2**24 values)."""
    return x[:: -(-len(x) // num_rows)]
