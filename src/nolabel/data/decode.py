"""From the bytes of an image file to RGB: one table for all modes of Pillow, and a reason for every refusal.

`docs/reference/data-formats.md` explains the table. No global setting of Pillow is changed.
"""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin
from PIL.Image import Transpose
from torch import Tensor

from nolabel.data.bad_files import BadImage
from nolabel.data.integrity import check_strips, identify
from nolabel.data.names import printable

assert TiffImagePlugin and WebPImagePlugin  # importing them registers their openers

MAX_PIXELS = 178_000_000
WHITE = (255, 255, 255)

_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}  # EXIF orientation -> the operation that undoes it
_ALPHA = ("RGBA", "LA", "PA")
_MAYBE_ALPHA = ("RGB", "L", "1", "P")  # with a transparent colour or palette entry
_PLAIN = ("RGB", "L", "1", "P", "RGBX", "YCbCr", "CMYK", "LAB", "HSV")
_PLAIN_MARKERS = (0xC4, 0xDB, 0xDD, 0xE0, 0xEE, 0xFE)  # tables, restarts, JFIF, Adobe's colours, a comment
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Python prints Pillow's complaints to stderr


class Facts(NamedTuple):
    """Facts of a file about its image."""

    format: str
    """JPEG, PNG, WEBP, BMP, TIFF, GIF or PPM, from the content and not from the name."""
    mode: str
    """Pillow's mode before the conversion."""
    width: int
    """Pixels, upright."""
    height: int


class Opened(NamedTuple):
    """A file that was found to be an image: a JPEG by its header, any other decoded."""

    facts: Facts
    file: Image.Image | None
    """None for a JPEG whose header adds nothing to its image."""
    data: bytes
    pixels: NDArray[np.uint8] | None
    """(H, W, 3) upright; None for a JPEG, which `load` decodes."""


def decode(
    data: bytes, max_pixels: int = MAX_PIXELS, min_size: int = 1, background: tuple[int, int, int] = WHITE
) -> Tensor:
    """The upright image in `data` as (3, H, W) uint8 RGB, transparent parts on `background`.

    Raises BadImage for what is empty, cut, damaged, no image, above `max_pixels` (judged before decoding),
    below `min_size` on a side, or of a mode without a rule. In memory the result is laid out as (H, W, 3).
    """
    return load(open_image(data, max_pixels, min_size, background))


def examine(
    data: bytes, max_pixels: int = MAX_PIXELS, min_size: int = 1, background: tuple[int, int, int] = WHITE
) -> tuple[Tensor, Facts]:
    """As `decode`, with the facts about the file."""
    opened = open_image(data, max_pixels, min_size, background)
    return load(opened), opened.facts


def open_image(
    data: bytes, max_pixels: int = MAX_PIXELS, min_size: int = 1, background: tuple[int, int, int] = WHITE
) -> Opened:
    """The first half of `decode`, with the same errors: as much as it takes to know the size."""
    kind = identify(data)
    if kind == "JPEG" and (plain := _plain_jpeg(data)):
        _check_size(plain.width, plain.height, max_pixels, min_size)
        return Opened(plain, None, data, None)
    _silence_pillow()
    with _refusing(kind):
        file = Image.open(io.BytesIO(data), formats=(kind,))
        _check_size(*file.size, max_pixels, min_size)
        if kind == "JPEG":
            width, height = file.size if _orientation(file) < 5 else file.size[::-1]
            return Opened(Facts(kind, file.mode, width, height), file, data, None)
        if kind == "TIFF":
            check_strips(file, len(data))
        file.load()
        pixels = _upright(np.array(to_rgb(file, background)), file)
        return Opened(Facts(kind, file.mode, pixels.shape[1], pixels.shape[0]), file, data, pixels)


class Header(NamedTuple):
    """The size of an image as it is stored, and how EXIF turns it."""

    width: int
    """Pixels, before EXIF turns them."""
    height: int
    orientation: int
    """1 for an image that is not turned; 5 to 8 swap the sides."""


def read_header(data: bytes) -> Header:
    """The stored size and EXIF's orientation, without decoding. Raises BadImage."""
    kind = identify(data)
    if kind == "JPEG" and (plain := _plain_jpeg(data)):
        return Header(plain.width, plain.height, 1)
    _silence_pillow()
    with _refusing(kind):
        file = Image.open(io.BytesIO(data), formats=(kind,))
        found = _orientation(file)
        return Header(*file.size, found if found in range(1, 9) else 1)


def load(opened: Opened, factor: int = 1) -> Tensor:
    """The second half of `decode`. At most once a file.

    A JPEG may be decoded at 1 / `factor` of its size, with `factor` 2, 4 or 8: sides are rounded up, and much of the
    work is never done. Other formats come in full size.
    """
    if opened.pixels is not None:
        return torch.from_numpy(opened.pixels).permute(2, 0, 1)
    with _refusing("JPEG"):
        pixels = _jpeg(opened, factor)
        pixels = pixels if opened.file is None else _upright(pixels, opened.file)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _jpeg(opened: Opened, factor: int) -> NDArray[np.uint8]:
    """By simplejpeg, which gives the pixels of Pillow in less time; what it has doubts about is judged by Pillow."""
    file = opened.file
    width, height = file.size if file else (opened.facts.width, opened.facts.height)
    if opened.facts.mode in ("RGB", "L"):
        with contextlib.suppress(ValueError):
            size = {"min_height": -(-height // factor), "min_width": -(-width // factor), "min_factor": factor}
            found: NDArray[np.uint8] = simplejpeg.decode_jpeg(opened.data, "RGB", **size)
            return found
    if file is None:
        _silence_pillow()
        file = Image.open(io.BytesIO(opened.data), formats=("JPEG",))
    if factor > 1:
        file.draft(file.mode, (width // factor, height // factor))
    file.load()
    return np.array(to_rgb(file))


def _plain_jpeg(data: bytes) -> Facts | None:
    """The facts about a JPEG of one or three channels without EXIF or anything else that only Pillow understands.

    Opening a file by Pillow takes a tenth of the time that decoding 500 x 375 pixels does; this, a hundredth.
    """
    at, size = 2, None
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return size
        if marker in (0xC0, 0xC1, 0xC2):
            height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            if size or not height or not width or data[at + 4] != 8 or data[at + 9] not in (1, 3):
                return None
            size = Facts("JPEG", "L" if data[at + 9] == 1 else "RGB", width, height)
        elif marker not in _PLAIN_MARKERS:
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def _upright(pixels: NDArray[np.uint8], file: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3) turned as the file asks for; contiguous."""
    turn = _UPRIGHT.get(_orientation(file))
    return pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))


@contextlib.contextmanager
def _refusing(kind: str) -> Iterator[None]:
    """Turns whatever Pillow raises into BadImage."""
    try:
        yield
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        numbers = [int(number) for number in re.findall(r"\d+", str(error))]  # Pillow's words: its size, the limit
        raise _too_many(f"{numbers[0]:,}" if numbers else "too many", min([*numbers[1:2], MAX_PIXELS])) from None
    except UnidentifiedImageError:
        raise BadImage("damaged", f"it begins like {kind}, but Pillow cannot open it") from None
    except Exception as error:  # Pillow's openers raise nearly anything on damaged files
        cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        detail = printable(f"{type(error).__name__}: {error}")[:200]
        raise BadImage("truncated" if cut else "damaged", detail) from None


def to_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """The loaded `image` in mode RGB, by the table of `docs/reference/data-formats.md`; BadImage without a rule."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _gray((np.asarray(image).astype(np.uint32) + 128) // 257)
    if mode in ("I", "F"):
        return _gray(_stretch(image))
    if mode in _ALPHA or (mode in _MAYBE_ALPHA and image.has_transparency_data):
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (*background, 255)), layer).convert("RGB")
    if mode in _PLAIN:
        return image if mode == "RGB" else image.convert("RGB")
    raise BadImage("unsupported mode", f"no rule turns Pillow's mode {mode} into RGB")


def _gray(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _stretch(image: Image.Image) -> np.ndarray:
    """Integers or floats of any scale to 0..255, by the range the file declares or else its percentiles."""
    values = np.asarray(image).astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = _declared_range(image)
    if not low < high and finite.size:
        low, high = np.percentile(finite, (0.5, 99.5))
    if not low < high and finite.size:
        low, high = finite.min(), finite.max()
    if not low < high:
        raise BadImage("no contrast", f"this {image.mode} image has one value only and declares no range")
    values = np.clip(np.nan_to_num(values, nan=low), low, high)
    scaled: np.ndarray = np.rint(255 * ((values - low) / (high - low)))
    return scaled


def _declared_range(image: Image.Image) -> tuple[float, float]:
    """Smallest and largest possible value by TIFF's tags or PPM's header; (0, 0) where none is declared."""
    if image.format == "PPM" and image.mode == "I":
        return 0, 65535  # Pillow scales to it
    tags = getattr(image, "tag_v2", {})
    for low, high in ((340, 341), (280, 281)):  # S(Min|Max)SampleValue, (Min|Max)SampleValue
        if low in tags and high in tags:
            return float(np.ravel(tags[low])[0]), float(np.ravel(tags[high])[0])
    return 0, 0


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1..8. Damaged EXIF counts as 1; for a TIFF `load` has turned the image already."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:
        return 1


def _silence_pillow() -> None:
    """Keep Pillow's warnings (big image, odd EXIF) quiet: every file is judged here.

    `warnings.catch_warnings` is not safe in threads, so the filter is put in front and stays.
    """
    if list(warnings.filters[:1]) != [_PILLOW_WARNINGS]:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _too_many(pixels: str, limit: int) -> BadImage:
    return BadImage("too large", f"{pixels} pixels, more than {limit:,}: cut it into tiles or make it smaller")


def _check_size(width: int, height: int, max_pixels: int, min_size: int) -> None:
    if width * height > max_pixels:
        raise _too_many(f"{width} x {height} = {width * height:,}", max_pixels)
    if min(width, height) < max(1, min_size):
        raise BadImage("too small", f"{width} x {height} pixels, less than {max(1, min_size)} on a side")
