"""Colours that read the same to everyone: two perceptually uniform maps and one categorical palette."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# Anchor colours, evenly spaced, of matplotlib's viridis and inferno (Smith, van der Walt and Firing, CC0);
# the rest is interpolated linearly, within 16 of 255 of the full tables.
_MAPS = {
    "viridis": "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
    "inferno": "000004 1b0c41 4a0c6b 781c6d a52c60 cf4446 ed6925 fb9b06 f7d13d fcffa4",
}

CATEGORICAL: tuple[tuple[int, int, int], ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (160, 160, 160),
)
"""Eight colours that differ for any colour vision (Okabe and Ito 2008, black replaced by grey)."""


def colormap(
    values: Tensor | NDArray[np.floating], name: Literal["viridis", "inferno"] = "viridis"
) -> NDArray[np.uint8]:
    """Colours (..., 3) of `values` (...) from 0 to 1; values outside are clipped, NaN is 0."""
    anchors = np.array([list(bytes.fromhex(c)) for c in _MAPS[name].split()], dtype=np.float64)
    x = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    x = np.clip(np.nan_to_num(x, nan=0.0), 0.0, 1.0)
    grid = np.linspace(0.0, 1.0, len(anchors))
    rgb = np.stack([np.interp(x, grid, channel) for channel in anchors.T], axis=-1)
    colors: NDArray[np.uint8] = np.rint(rgb).astype(np.uint8)
    return colors
