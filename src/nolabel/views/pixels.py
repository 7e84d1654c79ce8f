"""Operations on the pixels of one view: float32 (3, H, W) with values 0..255, on the spot, not rounded in between.

Each is the operation of Pillow and torchvision of the same name; `docs/internals/views.md` has the differences.
The number of threads changes no bit of a result.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the grey value (ITU-R BT.601, as in Pillow)."""
_SIGN = np.int32(-(2**31))  # the sign bit of a float32


def adjust(x: Tensor, operations: Iterable[tuple[str, float]]) -> None:
    """Brightness, contrast and saturation in the given order, each clamped to 0..255; grey is a saturation of 0.

    Each turns a pixel into own * pixel + gray * (its grey value) + const, and so do several of them in a row. They are
    put together first, and the pixels are touched only where values may leave 0..255, which a factor above 1 makes
    them do, and at the end.
    """
    own, gray, const = 1.0, 0.0, 0.0  # operations still to be applied
    for name, factor in operations:
        if name == "saturation":
            own, gray = factor * own, factor * gray + (1 - factor) * (own + gray)
        else:
            mean = (own + gray) * _mean_gray(x) + const if name == "contrast" else 0.0
            own, gray, const = factor * own, factor * gray, factor * const + (1 - factor) * mean
        if factor > 1:
            _mix(x, own, gray, const)
            own, gray, const = 1.0, 0.0, 0.0
    if (own, gray, const) != (1.0, 0.0, 0.0):
        _mix(x, own, gray, const)


def _mix(x: Tensor, own: float, gray: float, const: float) -> None:
    flat = x.view(3, -1)
    if gray:
        red, green, blue = (gray * share for share in LUMA)
        matrix = torch.tensor([[red + own, green, blue], [red, green + own, blue], [red, green, blue + own]])
        mixed = matrix @ flat
    else:
        mixed = own * flat
    if const:
        mixed += const
    torch.clamp(mixed, 0, 255, out=flat)


def _mean_gray(x: Tensor) -> float:
    rows: list[float] = x.sum(2).sum(1).tolist()  # row by row, so that threads share the work in one way only
    return sum(share * total for share, total in zip(LUMA, rows, strict=True)) / x[0].numel()


def turn_hue(x: Tensor, shift: float) -> None:
    """Turn the hue by `shift` of the whole circle; the lightest and the darkest channel of a pixel stay.

    The hue is a place on a circle of length 6 with red at 0, green at 2, blue at 4. From red upwards it is
    1 + (green + blue - red - min) / (max - min), the same downwards with the sign turned, and a channel falls from max
    to min between 1 and 2 away from its place. So no sector has to be selected, which is slow. In numpy, whose calls
    cost less than those of torch.
    """
    pixels = x.numpy()
    red, green, blue = pixels
    low = np.minimum(red, green)
    np.minimum(low, blue, out=low)
    chroma = np.maximum(red, green)
    np.maximum(chroma, blue, out=chroma)
    chroma -= low
    hue = green + blue
    hue -= red
    hue -= low
    hue /= np.maximum(chroma, np.float32(1e-6))  # grey has no hue: any will do
    hue += 1
    sign = (green - blue).view(np.int32)
    sign &= _SIGN
    hue.view(np.int32)[...] |= sign  # copysign, -3..3
    turns = [(6 * shift - place + 3) % 6 - 3 for place in (0, 2, 4)]
    away = hue + np.array(turns, np.float32)[:, None, None]  # (3, H, W), -6..6, of each channel
    np.abs(away, out=away)
    away -= 3
    np.abs(away, out=away)
    np.clip(away, 1, 2, out=away)  # 1 + how far the channel is up from min to max
    away *= chroma
    low -= chroma
    np.add(away, low, out=pixels)


def blur(x: Tensor, sigma: float) -> None:
    """Gaussian blur of a square image (3, S, S), cut at 3 `sigma` pixels (and at S - 1), with mirrored borders.

    Down the columns, then along the rows, in blocks of up to 32 pixels: each is one small band matrix times the block
    and its surroundings, which matrix units do faster than any convolution of torch.
    """
    side = x.shape[2]
    radius = min(math.ceil(3 * sigma), side - 1)  # a mirrored border is no wider than the image
    block = next(size for size in range(32, 0, -1) if side % size == 0)
    width = block + 2 * radius
    weights = torch.arange(-radius, radius + 1.0).div_(sigma).square_().mul_(-0.5).exp_()
    band = torch.zeros(block, width)
    band.as_strided((block, 2 * radius + 1), (width + 1, 1)).copy_(weights.div_(weights.sum()))
    padded = F.pad(x, (radius, radius, radius, radius), mode="reflect")
    columns = torch.empty(3, side, side + 2 * radius)
    for source, target in zip(padded, columns, strict=True):
        for at in range(0, side, block):
            torch.mm(band, source[at : at + width], out=target[at : at + block])
    rows, out = columns.view(3 * side, -1), x.view(3 * side, side)
    for at in range(0, side, block):
        torch.mm(rows[:, at : at + width], band.T, out=out[:, at : at + block])
