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
from nolabel.data.levels import Range, Values, bands_unless_used, check_planes, is_deep_color, is_planar, measure_values
from nolabel.data.modes import WHITE, deep_rgb, deep_values, to_rgb
from nolabel.data.names import printable
from nolabel.data.tiff import describe_tiff

assert TiffImagePlugin and WebPImagePlugin  # importing them registers their openers

MAX_PIXELS = 178_000_000

_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}  # EXIF orientation -> the operation that undoes it
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
    """A file that is an image: a JPEG known by its header, any other file decoded."""

    facts: Facts
    file: Image.Image | None
    """None for a JPEG whose header adds nothing to its image."""
    data: bytes
    pixels: NDArray[np.uint8] | None
    """(H, W, 3) upright; None for a JPEG, which `load` decodes."""


def decode(
    data: bytes,
    max_pixels: int = MAX_PIXELS,
    min_size: int = 1,
    background: tuple[int, int, int] = WHITE,
    limits: Range | None = None,
) -> Tensor:
    """The upright image in `data` as (3, H, W) uint8 RGB, transparent parts on `background`.

    Raises BadImage for what is empty, cut, damaged, no image, above `max_pixels` (judged before decoding),
    below `min_size` on a side, or of a mode without a rule. In memory the result is laid out as (H, W, 3).
    `limits` are the values that become 0 and 255 in files of more than 8 bits; they change no other file.
    """
    return load(open_image(data, max_pixels, min_size, background, limits))


def examine(
    data: bytes,
    max_pixels: int = MAX_PIXELS,
    min_size: int = 1,
    background: tuple[int, int, int] = WHITE,
    limits: Range | None = None,
) -> tuple[Tensor, Facts]:
    """As `decode`, with the facts about the file."""
    opened = open_image(data, max_pixels, min_size, background, limits)
    return load(opened), opened.facts


def open_image(
    data: bytes,
    max_pixels: int = MAX_PIXELS,
    min_size: int = 1,
    background: tuple[int, int, int] = WHITE,
    limits: Range | None = None,
) -> Opened:
    """The first half of `decode`, with the same errors: as much as it takes to know the size."""
    kind = identify(data)
    if kind == "JPEG" and (plain := _plain_jpeg(data)):
        _check_size(plain.width, plain.height, max_pixels, min_size)
        return Opened(plain, None, data, None)
    _silence_pillow()
    with _refusing(kind, data):
        file = Image.open(io.BytesIO(data), formats=(kind,))
        _check_size(*file.size, max_pixels, min_size)
        if kind == "JPEG":
            width, height = file.size if _orientation(file) < 5 else file.size[::-1]
            return Opened(Facts(kind, file.mode, width, height), file, data, None)
        if kind == "TIFF":
            check_planes(file)
            check_strips(file, len(data))
        deep = limits is not None and is_deep_color(file)
        file.load()
        rgb = deep_rgb(file, data, kind, background, limits) if deep and limits else to_rgb(file, background, limits)
        pixels = _upright(np.array(rgb), file)
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
    with _refusing(kind, data):
        file = Image.open(io.BytesIO(data), formats=(kind,))
        orientation = _orientation(file)
        return Header(*file.size, orientation if orientation in range(1, 9) else 1)


def load(opened: Opened, factor: int = 1) -> Tensor:
    """The second half of `decode`. At most once per opened file.

    A JPEG may be decoded at 1 / `factor` of its size, with `factor` 2, 4 or 8: sides are rounded up, and much of the
    work is never done. Other formats come in full size.
    """
    if opened.pixels is not None:
        return torch.from_numpy(opened.pixels).permute(2, 0, 1)
    with _refusing("JPEG", opened.data):
        pixels = _jpeg(opened, factor)
        pixels = pixels if opened.file is None else _upright(pixels, opened.file)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _jpeg(opened: Opened, factor: int) -> NDArray[np.uint8]:
    """Pixels (H, W, 3), by simplejpeg: the same as by Pillow, in less time. Pillow decodes files that it refuses."""
    file = opened.file
    width, height = file.size if file else (opened.facts.width, opened.facts.height)
    if opened.facts.mode in ("RGB", "L"):
        with contextlib.suppress(ValueError):
            size = {"min_height": -(-height // factor), "min_width": -(-width // factor), "min_factor": factor}
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(opened.data, "RGB", **size)
            return pixels
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
def _refusing(kind: str, data: bytes) -> Iterator[None]:
    """Turns whatever Pillow raises into BadImage."""
    try:
        yield
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        numbers = [int(number) for number in re.findall(r"\d+", str(error))]  # Pillow's words: its size, the limit
        raise _too_many(f"{numbers[0]:,}" if numbers else "too many", min([*numbers[1:2], MAX_PIXELS])) from None
    except UnidentifiedImageError:
        if kind == "TIFF" and (why := describe_tiff(data)):
            raise BadImage("unsupported mode", why) from None
        raise BadImage("damaged", f"it begins like {kind}, but Pillow cannot open it") from None
    except Exception as error:  # Pillow's openers raise nearly anything on damaged files
        cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        detail = printable(f"{type(error).__name__}: {error}")[:200]
        raise BadImage("truncated" if cut else "damaged", detail) from None


def read_values(data: bytes) -> Values | None:
    """The range of the values of a file of more than 8 bits; None for all other files. Raises BadImage."""
    kind = identify(data)
    if kind == "JPEG":
        return None
    _silence_pillow()
    with _refusing(kind, data):
        file = Image.open(io.BytesIO(data), formats=(kind,))
        deep = is_deep_color(file)
        unused = bands_unless_used(file)
        if not deep and not unused and file.mode not in ("I", "F") and not file.mode.startswith("I;16"):
            return None
        file.load()
        if deep:
            values = np.asarray(file) * np.uint16(256) if is_planar(file) else deep_values(file, data, kind)
            return measure_values(values[..., :3], file)
        if file.mode in ("I", "F") or file.mode.startswith("I;16"):
            return measure_values(np.asarray(file), file)
        return Values("8-bit", 0, 255, 0, unused)


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
