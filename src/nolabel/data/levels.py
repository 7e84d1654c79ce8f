"""Values of more than 8 bits to grey levels: integers of 16 and 32 bits, floats, and marks of "nothing here"."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nolabel.data.bad_files import BadImage
from nolabel.errors import UsageError

Range = tuple[float, float]
"""The values that become 0 and 255."""

GDAL_NODATA = 42113
"""TIFF's tag of the value that marks pixels without data."""

_BITS, _BANDS, _PLANAR, _EXTRA_BANDS = 258, 277, 284, 338
"""TIFF's tags: bits per band; number of bands; 2 for bands one after the other; kind of the bands beyond colour."""

_INTERLEAVE = "write them with gdal_translate -co INTERLEAVE=PIXEL"

HUGE = 1e19
"""Larger values mark "nothing here": NetCDF's 9.97e36, the lowest float -3.4e38, CMIP's 1e20."""


def check_range(limits: Range | None) -> None:
    """UsageError for limits that are not two finite numbers, the lower one first."""
    if limits is not None and not -math.inf < limits[0] < limits[1] < math.inf:
        raise UsageError(f"--range {limits[0]:g} {limits[1]:g}: expected two numbers, the lower one first.")


class Values(NamedTuple):
    """Facts about the values of a file of more than 8 bits."""

    mode: str
    """16-bit; scaled, where each file is scaled on its own; or 8-bit, for a file of which only `bands` matters."""
    low: float
    """Smallest value, without nodata."""
    high: float
    nodata: float
    """Share of the pixels that mark "nothing here"."""
    bands: int
    """Bands of the file where some of them are not used; else 0."""


def is_deep_color(image: Image.Image) -> bool:
    """Whether an opened file has several channels of 16 bits. Pillow keeps only the high byte of each."""
    return image.mode in ("RGB", "RGBA", "LA", "CMYK") and any(";16" in _rawmode(tile) for tile in _tiles(image))


def is_planar(image: Image.Image) -> bool:
    """Whether an opened TIFF has its channels one after the other (in planes)."""
    return bool(getattr(image, "tag_v2", {}).get(_PLANAR, 1) == 2)


def check_planes(image: Image.Image) -> None:
    """BadImage for a TIFF of 16-bit channels in planes without compression, which Pillow would read as 8-bit ones."""
    raw = any(tile.codec_name == "raw" for tile in _tiles(image))
    if raw and is_planar(image) and max(image.tag_v2.get(_BITS, (8,))) > 8:  # type: ignore[attr-defined]
        raise BadImage("unsupported mode", f"16-bit channels in planes: {_INTERLEAVE}")


def swap_bytes(image: Image.Image) -> None:
    """Load an opened file of 16-bit channels with its bytes swapped, so that Pillow keeps the low byte of each.

    BadImage where Pillow cannot do this.
    """
    if is_planar(image):
        raise BadImage("unsupported mode", f"16-bit channels in planes have no range: {_INTERLEAVE}")
    try:
        image.tile = [_swapped(tile) for tile in _tiles(image)]  # type: ignore[attr-defined]
        image.load()
    except Exception:
        raise BadImage("unsupported mode", f"16-bit {image.mode} in this layout can't be given a range") from None


def _tiles(image: Image.Image) -> list[Any]:
    return list(getattr(image, "tile", ()))


def _rawmode(tile: Any) -> str:
    args = tile.args
    raw = args if isinstance(args, str) else args[0] if isinstance(args, tuple) and args else ""
    return raw if isinstance(raw, str) else ""


def _swapped(tile: Any) -> Any:
    raw = _rawmode(tile)
    order = raw[-1]
    other = raw[:-1] + ("L" if order == "B" else "B")  # native order (N) is that of little endian here
    return tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:]))


def gray_levels(image: Image.Image, limits: Range | None) -> NDArray[np.float64]:
    """The grey levels 0..255, rounded, of an image of mode I;16, I or F.

    Nodata and NaN become 0, infinity 255. Without limits, I;16 is divided by 257. I and F are scaled from the range
    that the file declares, else from their 0.5th and 99.5th percentile. BadImage for an I or F image of one value only,
    if there are neither limits nor a declared range.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16") and limits is None:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.float64)
    floats = values.astype(np.float64)
    missing = nodata_mask(floats, image)
    good = floats[~missing]
    low, high = limits or _declared_range(image)
    if not low < high and good.size:
        low, high = np.percentile(good, (0.5, 99.5))
    if not low < high and good.size:
        low, high = good.min(), good.max()
    if not low < high:
        raise BadImage("no contrast", f"this {image.mode} image has one value only and declares no range")
    return scale(np.where(missing & np.isfinite(floats), low, floats), (low, high))


def scale(values: NDArray[Any], limits: Range) -> NDArray[np.float64]:
    """Values scaled from `limits` to 0..255, rounded; values outside become 0 or 255."""
    low, high = limits
    clipped = np.clip(np.nan_to_num(values.astype(np.float64), nan=low), low, high)
    scaled: NDArray[np.float64] = np.rint(255 * ((clipped - low) / (high - low)))
    return scaled


def nodata_mask(values: NDArray[np.float64], image: Image.Image) -> NDArray[np.bool_]:
    """True where a value marks "nothing here": not finite, the value of GDAL's tag, or a mark far from all others.

    Such a mark is huge, all nines (-9999), or at the end of an integer type (-32768). It is the smallest or largest
    value of the file, and its distance to the next value is larger than the range of all other values.
    """
    missing = ~np.isfinite(values)
    stated = _stated_nodata(image)
    if stated is not None:
        missing |= np.isclose(values, stated, rtol=1e-6, atol=0) | (values == stated)
    for end in (np.min, np.max):
        good = values[~missing]
        if not good.size:
            break
        mark = float(end(good))
        rest = good[good != mark]
        if rest.size and _is_mark(mark) and np.abs(rest - mark).min() > rest.max() - rest.min():
            missing |= values == mark
    return missing


def _is_mark(value: float) -> bool:
    """Whether people use such a value as a mark: huge, all nines, or at the end of an integer type."""
    size = abs(value)
    if size >= HUGE:
        return True
    nines = size.is_integer() and size >= 999 and set(str(int(size))) == {"9"}
    ends = {2.0**n - d for n in (15, 16, 31, 32) for d in (0, 1)}
    return bool(nines or size in ends)


def _stated_nodata(image: Image.Image) -> float | None:
    """The number in GDAL's tag; None without one."""
    text = getattr(image, "tag_v2", {}).get(GDAL_NODATA)
    try:
        value = float(str(text).strip("\0 ")) if text is not None else math.nan
    except ValueError:
        return None
    return None if math.isnan(value) else value


def _declared_range(image: Image.Image) -> Range:
    """Smallest and largest possible value by TIFF's tags or PPM's header; (0, 0) where none is declared."""
    if image.format == "PPM" and image.mode == "I":
        return 0, 65535  # Pillow scales to it
    tags = getattr(image, "tag_v2", {})
    for low, high in ((340, 341), (280, 281)):  # S(Min|Max)SampleValue, (Min|Max)SampleValue
        if low in tags and high in tags:
            return float(np.ravel(tags[low])[0]), float(np.ravel(tags[high])[0])
    return 0, 0


def measure_values(values: NDArray[Any], image: Image.Image) -> Values | None:
    """Facts about the values (H, W) or (H, W, C) of an opened file of more than 8 bits.

    None where there is nothing to report: all pixels are nodata, or the file declares the range that it is scaled from.
    """
    floats = values.astype(np.float64)
    missing = nodata_mask(floats, image)
    good = floats[~missing]
    if not good.size:
        return None
    mode = "16-bit" if image.mode not in ("I", "F") else "scaled"
    if mode == "scaled" and _declared_range(image) != (0, 0):
        return None
    return Values(mode, float(good.min()), float(good.max()), float(missing.mean()), bands_unless_used(image))


def bands_unless_used(image: Image.Image) -> int:
    """The number of bands of an opened TIFF, if some of them are not used; else 0, also for any other file."""
    bands = int(getattr(image, "tag_v2", {}).get(_BANDS, 1))
    return bands if bands > len(image.getbands()) or not has_alpha(image) else 0


def has_alpha(image: Image.Image) -> bool:
    """False for a TIFF whose fourth band is not marked as alpha: it may be anything, such as infrared."""
    tags = getattr(image, "tag_v2", {}) if image.mode == "RGBA" else {}
    return not tags or bool(tags.get(_EXTRA_BANDS))
