"""Sets for copy detection: Copydays' folders, or any images whose changed copies are made on the spot."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nolabel.data.images import Images, scan
from nolabel.data.names import printable
from nolabel.errors import DataError

BLOCKS = ("original", "strong", "jpegqual", "crops")
ID_LENGTH = 4
"""Copydays' names start with four digits for the image, then two for the copy, as in 200001.jpg."""


class Block(NamedTuple):
    """Changed copies of one kind, as files."""

    images: Images
    originals: tuple[int, ...]
    """Index of each copy's original."""


class CopySet(NamedTuple):
    """Originals, which are the database together with distractors, and what is searched for."""

    originals: Images
    blocks: dict[str, Block]
    """By name such as `strong` or `crops/30`; empty where the copies are still to be made."""
    notes: tuple[str, ...]


def copy_set(data: str | Path, max_originals: int) -> CopySet:
    """The set in DATA: Copydays' layout where it has original/ and blocks of copies, else plain images.

    Of plain images at most `max_originals` are taken, evenly over their order. Raises DataError for copies whose
    original is unknown.
    """
    images = scan(data, "")
    folders = _folders(images)
    if "original" not in folders or len(folders) < 2:
        images = scan(data)
        some = evenly(images, max_originals)
        cut = f"{len(some.names)} of {len(images.names)} images, evenly over their order"
        return CopySet(some, {}, (cut,) if len(some.names) < len(images.names) else ())
    others = len(images.names) - sum(map(len, folders.values()))
    originals = images._replace(names=tuple(folders.pop("original")))
    blocks, notes = {}, [f"{others} images outside of {', '.join(BLOCKS)} are left out"] if others else []
    for name in sorted(folders, key=_block_order):
        copies = images._replace(names=tuple(folders[name]))
        sources = _originals_of(copies.names, originals.names)
        if sources is None:
            sources = _same_order(name, copies.names, originals.names)
            notes.append(f"{name}: names do not give the original, so both were taken in sorted order")
        blocks[name] = Block(copies, sources)
    return CopySet(originals, blocks, tuple(notes))


def evenly(images: Images, max_images: int) -> Images:
    """At most `max_images` images, evenly over their order."""
    count = len(images.names)
    if count <= max_images:
        return images
    return images._replace(names=tuple(images.names[i * count // max_images] for i in range(max_images)))


def _folders(images: Images) -> dict[str, list[str]]:
    """The names of the images in Copydays' folders, by folder."""
    if not images.source.has_folders:
        return {}
    blocks: dict[str, list[str]] = {}
    for name in images.names:
        parts = name.split("/")[:-1]
        start = next((i for i, part in enumerate(parts[:2]) if part in BLOCKS), None)
        if start is not None:
            blocks.setdefault("/".join(parts[start:]), []).append(name)
    return blocks


def _block_order(name: str) -> tuple[int, int, str]:
    kind, _, level = name.partition("/")
    return BLOCKS.index(kind), int(level) if level.isascii() and level.isdigit() else 0, level


def _originals_of(copies: Sequence[str], originals: Sequence[str]) -> tuple[int, ...] | None:
    """The original of each copy: of the same name, else of the same first four characters; None if that fails."""
    for length in (None, ID_LENGTH):
        ids = [_stem(name)[:length] for name in originals]
        place = {key: i for i, key in enumerate(ids)}
        sources = [place.get(_stem(name)[:length]) for name in copies]
        if len(place) == len(ids) and None not in sources:
            return tuple(i for i in sources if i is not None)
    return None


def _same_order(name: str, copies: Sequence[str], originals: Sequence[str]) -> tuple[int, ...]:
    if name == "strong" or len(copies) != len(originals):
        raise DataError(
            f"{name}/ holds {len(copies)} copies of {len(originals)} originals, and names do not give the pairs: "
            f"{printable(_stem(copies[0]))} of {printable(_stem(originals[0]))}?\n"
            f"Expected the same names or, as in Copydays, the same first {ID_LENGTH} characters, one original for each."
        )
    return tuple(range(len(originals)))


def _stem(name: str) -> str:
    return os.path.splitext(name.rsplit("/", 1)[-1])[0]
