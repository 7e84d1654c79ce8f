"""The table of Pillow's modes: what becomes RGB, and how."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nolabel.data.bad_files import BadImage
from nolabel.data.levels import Range, gray_levels, has_alpha, scale, swap_bytes

WHITE = (255, 255, 255)

_ALPHA = ("RGBA", "LA", "PA")
_MAYBE_ALPHA = ("RGB", "L", "1", "P")  # with a transparent colour or palette entry
_PLAIN = ("RGB", "L", "1", "P", "RGBX", "YCbCr", "CMYK", "LAB", "HSV")


def to_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE, limits: Range | None = None) -> Image.Image:
    """The loaded `image` in mode RGB, by the table of `docs/reference/data-formats.md`; BadImage without a rule.

    `limits` are the values that become 0 and 255 where the image has one channel of more than 8 bits.
    """
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        return _gray(gray_levels(image, limits))
    if mode in _ALPHA or (mode in _MAYBE_ALPHA and image.has_transparency_data):
        if not has_alpha(image):
            return image.convert("RGB")
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (*background, 255)), layer).convert("RGB")
    if mode in _PLAIN:
        return image if mode == "RGB" else image.convert("RGB")
    raise BadImage("unsupported mode", f"no rule turns Pillow's mode {mode} into RGB")


def _gray(values: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def deep_values(file: Image.Image, data: bytes, kind: str) -> NDArray[np.uint16]:
    """The 16-bit values (H, W, C) of a loaded file of several channels. Pillow has kept the high bytes only."""
    other = Image.open(io.BytesIO(data), formats=(kind,))
    swap_bytes(other)
    high, low = np.asarray(file), np.asarray(other)
    values: NDArray[np.uint16] = high.astype(np.uint16) * 256 + low
    return values


def deep_rgb(file: Image.Image, data: bytes, kind: str, background: tuple[int, int, int], limits: Range) -> Image.Image:
    """A loaded file of 16 bits per channel in mode RGB, its colours scaled from `limits`."""
    values = scale(deep_values(file, data, kind), limits).astype(np.uint8)
    alpha = file.getchannel("A") if file.mode in _ALPHA else None
    if alpha is not None:
        values[..., -1] = np.asarray(alpha)
    scaled = Image.fromarray(values, file.mode)
    if alpha is None and file.has_transparency_data:
        scaled.putalpha(file.convert("RGBA").getchannel("A"))
    if not has_alpha(file):
        return scaled.convert("RGB")
    return to_rgb(scaled, background)
