"""Description of a TIFF that Pillow cannot open, by its tags: its content, and what can be done."""

import struct
from typing import Any, Literal

_SIZES = {1: 1, 3: 2, 4: 4, 16: 8}
_KINDS = {1: "unsigned", 2: "signed", 3: "float"}
_COLORS = {0: "white is zero", 1: "black is zero", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
_PACKED = {
    **dict.fromkeys((2, 3, 4), "CCITT"),
    **dict.fromkeys((8, 32946), "deflate"),
    **dict.fromkeys((33003, 33005, 34712), "JPEG 2000"),
    **{1: "none", 5: "LZW", 7: "JPEG", 32773: "PackBits", 34887: "LERC", 34925: "LZMA", 50000: "Zstd", 50001: "WebP"},
    50002: "JPEG XL",
}
_UNPACKED = ("none", "LZW", "JPEG", "deflate", "PackBits", "CCITT")


def describe_tiff(data: bytes) -> str:
    """Reason why an undamaged TIFF is not read, and what can be done; an empty string where its tags do not show it."""
    try:
        tags = _first_tags(data)
    except (struct.error, IndexError):
        return ""
    bits, bands = tags.get(258, [1]), tags.get(277, [1])[0]
    kind = f"{bits[0]}-bit {_KINDS.get(tags.get(339, [1])[0], 'complex')}"
    packed = _PACKED.get(tags.get(259, [1])[0], f"compression {tags.get(259, [1])[0]}")
    color = _COLORS.get(tags.get(262, [-1])[0], "unknown colours")
    if packed not in _UNPACKED:
        return f"it is packed by {packed}, which Pillow here cannot unpack: write it with deflate"
    if bands not in (1, 3):
        advice = "write three of them as RGB: gdal_translate -b 1 -b 2 -b 3 -co PHOTOMETRIC=RGB"
        return f"{bands} bands ({kind}, {color}), nolabel reads 1 or 3: {advice}"
    if bands == 3 and color != "RGB" and bits[0] in (8, 16) and kind.endswith("unsigned"):
        return f"3 bands that are not marked as RGB but as {color}: gdal_translate -co PHOTOMETRIC=RGB"
    if bands == 3:
        return f"3 bands of {kind}, nolabel reads 3 of 8 or 16 bits unsigned, or 1 of floats: scale them to 16 bits"
    return f"1 band of {kind} ({color}), which Pillow does not read: write it as 16-bit unsigned or 32-bit float"


def _first_tags(data: bytes) -> dict[int, list[int]]:
    """The tags of the first directory that hold whole numbers, each with its numbers."""
    order: Literal["<", ">"] = "<" if data[:1] == b"I" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    word, count_format, entry, room = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
    at = struct.unpack_from(order + word, data, 8 if big else 4)[0]
    (number,) = struct.unpack_from(order + count_format, data, at)
    at += struct.calcsize(count_format)
    tags: dict[int, list[int]] = {}
    for place in range(at, at + entry * min(number, 1000), entry):
        tag, kind, count = struct.unpack_from(f"{order}HH{word}", data, place)
        size = _SIZES.get(kind, 0)
        value = place + entry - room
        if not size or count > 1000:
            continue
        if size * count > room:
            value = struct.unpack_from(order + word, data, value)[0]
        letters: Any = {1: "B", 2: "H", 4: "I", 8: "Q"}[size]
        tags[tag] = list(struct.unpack_from(f"{order}{count}{letters}", data, value))
    return tags
