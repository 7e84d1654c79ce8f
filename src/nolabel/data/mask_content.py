"""Masks recognised by their pixels where names leave it open. A few files are opened, none where names decide."""

import os
import posixpath
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nolabel.data.bad_files import BadImage
from nolabel.data.decode import examine
from nolabel.data.masks import LOSSY, MASK_WORDS, MaskGroup, mask_bases, photo_bases
from nolabel.data.names import Names
from nolabel.data.splits import words

Reader = Callable[[int], bytes]
"""The bytes of an image by its place. Raises BadImage."""

LOOKED = 3
"""Files that are opened to judge a group."""
MOST_PIXELS = 50_000_000
LEAST_COLOURS = 256
"""A picture with more colours is no mask: a palette has no more."""
_LEAST = 2
_END = re.compile(r"[-_. ][^-_. ]+$")


class Look(NamedTuple):
    """Pixels of a file, in short."""

    coloured: bool
    """Three channels that are not equal, and more than LEAST_COLOURS colours."""
    colours: int


def are_photos(group: MaskGroup, read: Reader) -> bool:
    """Whether files that weak names call masks are photos in colours: all that are opened."""
    if group.certain:
        return False
    looks = [_look(read, int(group.rows[i])) for i in _few(len(group.rows))]
    return all(one is not None and one.coloured for one in looks)


def find_paired_folders(names: Names, taken: NDArray[np.bool_], read: Reader) -> list[MaskGroup]:
    """Folders with a word for masks among others (`ISIC_Training_GroundTruth`) whose files are masks by their pixels.

    Their files are lossless, most are named after photos elsewhere, and those that are opened are no photos while
    their partners are. `taken` are the places that are known as masks.
    """
    strings = names.folders.strings()
    likely = {i: top for i in np.unique(names.folder[~taken]).tolist() if (top := _named_top(strings[i]))}
    groups: dict[str, list[int]] = {}
    for i, top in likely.items():
        groups.setdefault(top, []).append(i)
    found = []
    photos = np.flatnonzero(~taken & ~np.isin(names.folder, list(likely)))
    for top, folders in groups.items():
        rows = np.flatnonzero(np.isin(names.folder, folders) & ~taken)
        lossless = np.array([row for row in rows.tolist() if not names[row].lower().endswith(LOSSY)], np.int64)
        pairs = list(_pair(names, lossless, photos).items()) if len(lossless) >= _LEAST else []
        if len(pairs) < max(_LEAST, len(rows) / 2):
            continue
        if all(_is_mask_of(read, *pairs[i]) for i in _few(len(pairs))):
            found.append(MaskGroup(posixpath.basename(top) + "/", lossless, True))
    return found


def _named_top(folder: str) -> str:
    """The top folder in a path that has a word for masks in its name; empty for none."""
    above = ""
    for part in folder.rstrip("/").split("/"):
        above = f"{above}/{part}" if above else part
        if set(words(part)) & (MASK_WORDS - {"ground"}):
            return above
    return ""


def _pair(names: Names, masks: NDArray[np.int64], photos: NDArray[np.int64]) -> dict[int, int]:
    """The photo of each mask by its stem, in the place of the mask."""
    stems = {row: _stem(names[row]) for row in masks.tolist()}
    ends = {match[0] if (match := _END.search(stem)) else "" for stem in stems.values()}
    end = ends.pop() if len(ends) == 1 else ""  # such as `_lab`
    wanted = {row: [stem, *mask_bases(stem), stem.removesuffix(end)] for row, stem in stems.items()}
    every = {base for bases in wanted.values() for base in bases}
    place = {stem: row for row in photos.tolist() for stem in photo_bases(_stem(names[row])) if stem in every}
    return {row: place[own[0]] for row, bases in wanted.items() if (own := [base for base in bases if base in place])}


def _stem(name: str) -> str:
    return os.path.splitext(posixpath.basename(name))[0]


def _is_mask_of(read: Reader, mask: int, photo: int) -> bool:
    own, other = _look(read, mask), _look(read, photo)
    if own is None or other is None or own.coloured:
        return False
    return other.coloured or 4 * own.colours < other.colours


def _few(number: int) -> list[int]:
    """Places of the first, the last and those between, at most LOOKED."""
    return sorted({i * (number - 1) // (LOOKED - 1) for i in range(LOOKED)})


def _look(read: Reader, row: int) -> Look | None:
    """A look at one file; None where it cannot be read."""
    try:
        pixels, facts = examine(read(row), MOST_PIXELS)
    except BadImage:
        return None
    red, green, blue = pixels.numpy().astype(np.uint32)
    colours = len(np.unique((red << 16) + (green << 8) + blue))
    grey = facts.mode not in ("RGB", "RGBA", "CMYK") or bool((red == green).all() and (green == blue).all())
    return Look(not grey and colours > LEAST_COLOURS, colours)
