"""`cpu_torch.apply` in machine code, made by numba (the extra `fast`): the same operations with the same parameters.

The crop is torch's; the rest takes a fraction of torch's time, because pixels pass through all colour operations
while they are in the nearest cache. The arithmetic is the float32 of `pixels.py` in another order, so a value
between two levels may round otherwise. Loops are written the way the compiler turns into vector instructions:
over unsigned indices or whole slices, which cannot be negative.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from numba import float32 as f32
from numba import uintp
from numpy.typing import NDArray
from torch import Tensor

from nolabel.views.cpu_torch import crop
from nolabel.views.draw import Drawn
from nolabel.views.pixels import LUMA
from nolabel.views.spec import View

_CODES = {"brightness": 1, "contrast": 2, "saturation": 3, "hue": 4}


_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = _CODES.values()


_RED, _GREEN, _BLUE = (np.float32(share) for share in LUMA)


_CHUNK = 2048
"""Pixels that go through the colour operations together: 24 kB."""


Bytes = NDArray[np.uint8]


Floats = NDArray[np.float32]


Codes = tuple[int, ...]  # five of them: brightness, contrast, saturation and hue in any order, and grey; 0 for none


Factors = tuple[float, ...]


F = TypeVar("F", bound=Callable[..., Any])


def _compiled(function: F) -> F:
    """Compile with multiply-add in one instruction, sums in any order, no NaN. The code is kept on disk if possible."""
    options: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": {"contract", "nnan", "nsz", "reassoc"},
    }
    try:
        compiled: F = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to keep machine code in
        compiled = numba.njit(**options)(function)
    return compiled


def apply(image: Tensor, view: View, drawn: Drawn) -> Tensor:
    """The view of `image` (3, H, W) uint8 that `drawn` describes, as `cpu_torch.apply`: (3, size, size) uint8."""
    x = crop(image, view, drawn).permute(1, 2, 0).contiguous().numpy()
    codes, factors = [0] * 5, [0.0] * 5  # numbers, not arrays: those take longer to make than to use
    for k, (name, factor) in enumerate((*drawn.jitter, *[("saturation", 0.0)] * drawn.grayscale)):
        codes[k], factors[k] = _CODES[name], factor
    out = np.empty((3, view.size, view.size), np.uint8)
    _apply(x, tuple(codes), tuple(factors), drawn.sigma, drawn.solarize, drawn.flip, out)
    return torch.from_numpy(out)


@_compiled
def _apply(x: Bytes, codes: Codes, factors: Factors, sigma: float, solarize: bool, flip: bool, out: Bytes) -> None:
    side = x.shape[0]
    planes = np.empty((3, side * side), np.float32)
    _split(x.reshape(-1), planes[0], planes[1], planes[2])
    first, mean = 0, f32(0)
    for k in range(len(codes)):
        if codes[k] == _CONTRAST:
            _colors(planes, codes, factors, first, k, mean)
            first, mean = k, _mean_gray(planes[0], planes[1], planes[2])
    _colors(planes, codes, factors, first, len(codes), mean)
    taps = _taps(sigma, side)
    for c in range(3):
        if taps.size > 1:
            _blur(planes[c], side, taps)
        _finish(planes[c], side, solarize, flip, out[c].reshape(-1))


@_compiled
def _taps(sigma: float, side: int) -> Floats:
    """The Gaussian from its middle outwards, cut at 3 `sigma` and filled up with zeros to 1 + 3 n numbers."""
    radius = min(math.ceil(3 * sigma), side - 1)
    taps = np.zeros(1 + 3 * ((radius + 2) // 3), np.float32)
    taps[0] = total = 1.0
    for k in range(1, radius + 1):
        taps[k] = math.exp(-0.5 * (k / sigma) ** 2)
        total += 2 * taps[k]
    for k in range(radius + 1):
        taps[k] /= total
    return taps


@_compiled
def _split(x: Bytes, red: Floats, green: Floats, blue: Floats) -> None:
    for i in range(uintp(red.size)):
        red[i] = x[uintp(3) * i]
        green[i] = x[uintp(3) * i + uintp(1)]
        blue[i] = x[uintp(3) * i + uintp(2)]


@_compiled
def _colors(planes: Floats, codes: Codes, factors: Factors, first: int, last: int, mean: np.float32) -> None:
    """Apply operations `first` to `last` to (3, N); `mean` is the mean grey value where the first is contrast."""
    if first == last or codes[first] == 0:
        return
    for start in range(0, planes.shape[1], _CHUNK):
        end = start + _CHUNK
        red, green, blue = planes[0, start:end], planes[1, start:end], planes[2, start:end]
        for k in range(first, last):
            factor, rest = f32(factors[k]), f32(1) - f32(factors[k])
            if codes[k] == _HUE:
                _turn_hue(red, green, blue, factor)
            elif codes[k] == _SATURATION:
                _mix(red, green, blue, factor, rest, f32(0))
            elif codes[k] == _CONTRAST:
                _mix(red, green, blue, factor, f32(0), rest * mean)
            elif codes[k] == _BRIGHTNESS:
                _mix(red, green, blue, factor, f32(0), f32(0))


@_compiled
def _mix(red: Floats, green: Floats, blue: Floats, own: np.float32, gray: np.float32, const: np.float32) -> None:
    """Compute own * value + gray * (grey value of the pixel) + const, clamped to 0..255."""
    for i in range(uintp(red.size)):
        other = gray * (_RED * red[i] + _GREEN * green[i] + _BLUE * blue[i]) + const
        red[i] = min(max(own * red[i] + other, f32(0)), f32(255))
        green[i] = min(max(own * green[i] + other, f32(0)), f32(255))
        blue[i] = min(max(own * blue[i] + other, f32(0)), f32(255))


@_compiled
def _mean_gray(red: Floats, green: Floats, blue: Floats) -> Any:
    total: Any = 0.0
    for start in range(0, red.size, _CHUNK):
        r, g, b = red[start : start + _CHUNK], green[start : start + _CHUNK], blue[start : start + _CHUNK]
        part = f32(0)
        for i in range(uintp(r.size)):
            part += _RED * r[i] + _GREEN * g[i] + _BLUE * b[i]
        total += part
    return f32(total / red.size)


@_compiled
def _turn_hue(red: Floats, green: Floats, blue: Floats, shift: np.float32) -> None:
    """Turn the hue as `pixels.turn_hue` does, which explains it."""
    turn = f32(6) * shift + f32(3)
    to_red, to_green, to_blue = turn % f32(6), (turn - f32(2)) % f32(6), (turn - f32(4)) % f32(6)
    for i in range(uintp(red.size)):
        r, g, b = red[i], green[i], blue[i]
        low = min(min(r, g), b)
        chroma = max(max(r, g), b) - low
        hue = (g + b - r - low) / max(chroma, f32(1e-6)) + f32(1)
        hue = (hue if g >= b else -hue) - f32(3)
        red[i] = low + (min(max(abs(abs(hue + to_red) - f32(3)), f32(1)), f32(2)) - f32(1)) * chroma
        green[i] = low + (min(max(abs(abs(hue + to_green) - f32(3)), f32(1)), f32(2)) - f32(1)) * chroma
        blue[i] = low + (min(max(abs(abs(hue + to_blue) - f32(3)), f32(1)), f32(2)) - f32(1)) * chroma


@_compiled
def _blur(plane: Floats, side: int, taps: Floats) -> None:
    """Blur down the columns, then along the rows, with mirrored borders."""
    reach = taps.size - 1
    tall = np.empty((side + 2 * reach, side), np.float32)
    for i in range(side + 2 * reach):
        at = _mirrored(i - reach, side) * side
        _copy(plane[at : at + side], tall[i])
    _weigh(tall.reshape(-1), side, taps, plane)
    wide = np.empty(side + 2 * reach, np.float32)
    for i in range(side):
        row = plane[i * side : (i + 1) * side]
        _copy(row, wide[reach : reach + side])
        for j in range(reach):
            wide[reach - 1 - j] = row[_mirrored(-1 - j, side)]
            wide[reach + side + j] = row[_mirrored(side + j, side)]
        _weigh(wide, 1, taps, row)


@_compiled
def _copy(source: Floats, target: Floats) -> None:
    for i in range(uintp(target.size)):
        target[i] = source[i]


@_compiled
def _mirrored(i: int, side: int) -> int:
    """Index of the pixel at `i` where the border mirrors; further away, where all taps are zero, any index."""
    i = abs(i)
    return i if i < side else abs(2 * side - 2 - i) % side


@_compiled
def _weigh(x: Floats, step: int, taps: Floats, out: Floats) -> None:
    """out[j] = sum over k of taps[|k|] * x[j + (reach + k) * step], three pairs at a time."""
    size, middle = out.size, (taps.size - 1) * step
    center, own = taps[0], x[middle : middle + size]
    for j in range(size):
        out[j] = center * own[j]
    for k in range(1, taps.size, 3):
        w1, w2, w3 = taps[k], taps[k + 1], taps[k + 2]
        a, b = middle - k * step, middle + k * step
        a1, a2, a3 = x[a : a + size], x[a - step : a - step + size], x[a - 2 * step : a - 2 * step + size]
        b1, b2, b3 = x[b : b + size], x[b + step : b + step + size], x[b + 2 * step : b + 2 * step + size]
        for j in range(size):
            out[j] += w1 * (a1[j] + b1[j]) + w2 * (a2[j] + b2[j]) + w3 * (a3[j] + b3[j])


@_compiled
def _finish(plane: Floats, side: int, solarize: bool, flip: bool, out: Bytes) -> None:
    """Round, solarize from 128 up, and mirror."""
    last = uintp(side - 1)
    for i in range(0, plane.size, side):
        row, target = plane[i : i + side], out[i : i + side]
        for j in range(uintp(side)):
            value = np.rint(row[last - j if flip else j])
            target[j] = np.uint8(np.int32(min(value, f32(255) - value) if solarize else value))
