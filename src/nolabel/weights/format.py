"""Formats of exported weights, and the check that the other tool gives the same features."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nolabel.errors import StorageError
from nolabel.weights.load import Loaded

TOLERANCE = 1e-4
"""Largest difference of a feature, relative to the largest feature, that an export may have."""


class Format(NamedTuple):
    """A layout of weights that another tool reads."""

    about: str
    save: Callable[[Loaded, Path], None]
    """Write the weights to a new folder or file of this format."""
    open: Callable[[Path], Callable[[Tensor], Tensor]]
    """Open the weights in the other tool: images (B, 3, size, size) to pooled features (B, D)."""


@torch.no_grad()
def export(loaded: Loaded, form: Format, out: Path) -> float:
    """Write the weights to `out`, open them in the other tool, and compare the features of two random images.

    Returns the largest relative difference. StorageError where it is above TOLERANCE.
    """
    form.save(loaded, out)
    size = loaded.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    ours, theirs = loaded.backbone(images).pooled, form.open(out)(images)
    difference = float((ours - theirs).abs().max() / ours.abs().max())
    if not difference <= TOLERANCE:
        raise StorageError(
            f"The export {out} gives other features: they differ by {difference:.2g}, at most {TOLERANCE:g} is allowed."
            "\nDo not use it. Please report it with the name of the backbone."
        )
    return difference
