"""A check that a file is complete. Pillow overlooks some cuts and checksums; libjpeg fills gaps with grey."""

import re
import zlib
from typing import Literal

import numpy as np
from PIL.ImageFile import ImageFile

from nolabel.data.bad_files import BadImage
from nolabel.data.content import NUM_BYTES, describe_content

_FORMATS = (  # first bytes -> the opener of Pillow that may read it; no other is ever called
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"BM", "BMP"),
    (rb"II[*+]\x00|MM\x00[*+]", "TIFF"),
    (rb"GIF8[79]a", "GIF"),
    (rb"P[1-6]\s", "PPM"),
)


MAX_SCANS = 100
"""Passes over the pixels that a JPEG may ask for: programs write up to about 20, each costs the time of a decoding."""

MAX_TEXT_BYTES = 10_000_000
"""Largest PNM whose numbers are written as text: Pillow reads 2 MB of them per second."""

_MAGIC = re.compile(b"|".join(b"(%s)" % magic for magic, _ in _FORMATS), re.DOTALL)


_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
"""A segment or the end: neither an escaped byte, a restart, nor padding."""


def identify(data: bytes) -> str:
    """The format in `data`. Raises BadImage for what is no image or visibly incomplete."""
    if not data:
        raise BadImage("empty", "0 bytes")
    match = _MAGIC.match(data)
    if not match or not match.lastindex:
        known = describe_content(data[:NUM_BYTES])
        raise BadImage("not an image", f"it begins with {data[:12]!r}" + (f", {known}" if known else ""))
    kind = _FORMATS[match.lastindex - 1][1]
    if kind == "PNG":
        _check_chunks(data)
    elif kind == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS and (scans := _count_scans(data)) > MAX_SCANS:
        raise BadImage("too slow", f"a JPEG of {scans:,} scans, more than {MAX_SCANS}: save it again")
    elif kind == "PPM" and data[1] in b"123" and len(data) > MAX_TEXT_BYTES:
        raise BadImage("too slow", f"{len(data):,} bytes of a text PNM, more than {MAX_TEXT_BYTES:,}: save it as PNG")
    whole = {"JPEG": _jpeg_ends, "WEBP": _webp_ends, "TIFF": _tiff_begins}.get(kind)
    if whole and not whole(data):
        raise BadImage("truncated", _cut(len(data)))
    return kind


def _jpeg_ends(data: bytes) -> bool:
    """Whether an end marker follows the image data (a thumbnail's own one comes before them)."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return True  # not a chain of segments: Pillow decides
        marker = data[at + 1]
        if marker == 0xDA:
            return data.rfind(b"\xff\xd9", at) > 0  # from the end, where it is
        if marker == 0xFF:
            at += 1
        elif marker in (0x01, *range(0xD0, 0xD9)):
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return False


def _count_scans(data: bytes) -> int:
    """The scans of the image: what comes after its end, such as a video, may hold the same bytes by chance."""
    at, count = 2, 0
    while match := _MARKER.search(data, at):
        marker = data[match.start() + 1]
        if marker == 0xD9:
            break
        count += marker == 0xDA
        at = match.start() + 2 + int.from_bytes(data[match.start() + 2 : match.start() + 4])
    return count


def _webp_ends(data: bytes) -> bool:
    return 8 + int.from_bytes(data[4:8], "little") <= len(data)


def _tiff_begins(data: bytes) -> bool:
    """Whether the first directory, often at the end of the file, is there."""
    order: Literal["little", "big"] = "little" if data[:1] == b"I" else "big"
    if data[2:4] in (b"+\0", b"\0+"):
        at = int.from_bytes(data[8:16], order)
        return at + 8 <= len(data) and at + 8 + 20 * int.from_bytes(data[at : at + 8], order) <= len(data)
    at = int.from_bytes(data[4:8], order)
    return at + 2 <= len(data) and at + 2 + 12 * int.from_bytes(data[at : at + 2], order) <= len(data)


def check_strips(image: ImageFile, size: int) -> None:
    """Raises BadImage when strips or tiles of an opened TIFF are missing or lie outside the `size` bytes."""
    tags = getattr(image, "tag_v2", {})
    for offsets, counts in ((273, 279), (324, 325)):
        ends = np.ravel(tags.get(offsets, ())).astype(np.float64)
        lengths = np.ravel(tags.get(counts, ())).astype(np.float64)
        if len(ends) == len(lengths) and len(ends) and float((ends + lengths).max()) > size:
            raise BadImage("truncated", _cut(size))
    rows = max((tile.extents[3] for tile in image.tile if tile.extents), default=0)
    if rows < image.height:
        raise BadImage("damaged", f"it has pixels for {rows} of {image.height} rows")


def _check_chunks(data: bytes) -> None:
    """Raises BadImage when a PNG stops before its last chunk or an essential chunk fails its checksum."""
    view, at = memoryview(data), 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if end > len(data):
            break
        name = data[at + 4 : at + 8]
        if name[:1].isupper() and zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise BadImage("damaged", f"the checksum of a PNG chunk {name!r} is wrong")
        if name == b"IEND":
            return
        at = end
    raise BadImage("truncated", _cut(len(data)))


def _cut(size: int) -> str:
    return f"the {size:,} bytes stop before the end of the image"
