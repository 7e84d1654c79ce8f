"""The images of DATA: which they are, in which order, and their bytes. Scanning opens no image.

DATA is one of `sources.SOURCES`; `docs/reference/data-formats.md` has the rules.
"""

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nolabel import catalog
from nolabel.data.bad_files import BadFile, BadImage
from nolabel.data.levels import Range
from nolabel.data.missing import check_missing, describe_unused
from nolabel.data.names import Names, compact, name_bytes, printable
from nolabel.data.selection import SPLITS, SUFFIXES, find_wrapper
from nolabel.data.sources import SOURCES, find_source
from nolabel.data.sources.source import MISSING, UNREADABLE, Listing, Source, Tops
from nolabel.errors import DataError


class Images(NamedTuple):
    """A fixed list of images, sorted by name as bytes, so the order does not depend on the file system."""

    root: str
    """Absolute path of the folder, of the zip, of the folder of shards, or of the folder of the text file."""
    kind: str
    """Key in `sources.SOURCES`."""
    names: Sequence[str]
    """Paths relative to `root` with `/` between the parts; bytes that are not UTF-8 are lone surrogates."""
    skipped: tuple[BadFile, ...]
    """Files that the scan left out."""
    limits: Range | None = None
    """Values that become 0 and 255 in files of more than 8 bits: the setting `range`."""

    @property
    def source(self) -> Source:
        """Functions that read from `root`."""
        return SOURCES[self.kind]


class LabelledImages(NamedTuple):
    """Images with the class of each."""

    images: Images
    labels: tuple[int, ...]
    """Positions in `classes`, one per image."""
    classes: tuple[str, ...]
    """Sorted names of the classes of all splits together."""


def scan(data: str | Path, subfolder: str | None = None) -> Images:
    """The images of DATA; only those below `subfolder` where one is given.

    Raises DataError when DATA is missing, is nothing of these, or holds no image.
    """
    images, _ = _scan(data, None if subfolder is None else (subfolder.strip("/"),))
    if not images.names:
        what = "an image" + (f" below {subfolder}" if subfolder else "")
        raise _nothing_found(data, images.skipped, what, describe_unused(images.source, images.root, images.skipped))
    return images


def scan_labelled(data: str | Path) -> dict[str, LabelledImages]:
    """The images of class folders: keyed by those of train, val and test that exist, or `all` without splits.

    A folder counts as a split when it holds folders with images. A source with a column of labels is read by that
    column instead. Raises DataError as `scan` does, for a text file of paths, and for fewer than two classes.
    """
    images, listing = _scan(data, ("",))
    check_missing(images.names, images.skipped, data)
    if listing.labels is None:
        check_folders(
            images, data, "classes.\nExpected a folder or a zip of class folders, or a list with a column label."
        )
    names = images.names if isinstance(images.names, Names) else compact(images.names)
    labels, group = _by_folder(images, names) if listing.labels is None else _by_column(listing.labels, names)
    keys: tuple[str, ...] = tuple(s for s in SPLITS if any(len(p) > 1 and p[0] == s and p[1] != "void" for p in labels))
    if not keys:
        keys, labels = ("all",), [("all", *p) for p in labels]
    used = [len(p) > 1 and p[0] in keys and p[1] != "void" for p in labels]
    classes = sorted({p[1] for p, use in zip(labels, used, strict=True) if use}, key=name_bytes)
    if len(classes) < 2:
        layout = "Expected CLASS/IMAGE for every class, or train/CLASS/IMAGE with val/ or test/ beside it"
        expected = f"two class folders with images but {len(classes)}.\n{layout}"
        raise _nothing_found(data, images.skipped, expected if listing.labels is None else "images of two classes")
    label = np.array([classes.index(p[1]) if use else -1 for p, use in zip(labels, used, strict=True)])
    splits = {}
    for key in keys:
        own = np.array([use and p[0] == key for p, use in zip(labels, used, strict=True)])
        rows = np.flatnonzero(own[group])
        part = images._replace(names=names.take(rows))
        splits[key] = LabelledImages(part, tuple(label[group[rows]].tolist()), tuple(classes))
    return splits


_LIMITS: ContextVar[Range | None] = ContextVar("limits", default=None)


@contextlib.contextmanager
def scanned_in(limits: Range | None) -> Iterator[None]:
    """Images that are scanned in the block have these `limits`, which go with them into workers."""
    token = _LIMITS.set(limits)
    try:
        yield
    finally:
        _LIMITS.reset(token)


def check_folders(images: Images, data: str | Path, missing: str) -> None:
    """DataError where the source of `images` has no folders; `missing` ends the sentence: `masks: expected ...`."""
    if not images.source.has_folders:
        raise DataError(f"{_shown(data)} is {catalog.SOURCES[images.kind]}, which has no {missing}")


def read(images: Images, index: int) -> bytes:
    """The bytes of one image. Safe in threads and in forked or spawned processes. Raises BadImage."""
    try:
        return images.source.read(images.root, images.names[index])
    except MISSING:
        raise BadImage("missing", "it was there when the folder was scanned") from None
    except UNREADABLE as error:
        raise BadImage("unreadable", getattr(error, "strerror", None) or str(error)) from None


def fingerprint(images: Images) -> str:
    """16 hexadecimal digits of SHA-256 over names and sizes: equal for a folder, and a zip or shards of its content.

    It asks for the size of each file, which takes seconds for a million.
    """
    digest = hashlib.sha256()
    for name, facts in zip(images.names, images.source.facts(images.root, images.names), strict=True):
        digest.update(name_bytes(name) + b"\0%d\0" % (facts[0] if facts else -1))
    return digest.hexdigest()[:16]


def _scan(data: str | Path, tops: Tops) -> tuple[Images, Listing]:
    """The images of DATA, as record and as its source lists them. Raises DataError."""
    kind = find_source(data)
    try:
        listing = SOURCES[kind].list_images(os.path.abspath(data), tops)
    except UNREADABLE as error:
        message = SOURCES[kind].unreadable
        raise DataError(message.format(data=_shown(data), error=printable(str(error)))) from None
    return Images(listing.root, kind, listing.names, listing.skipped, _LIMITS.get()), listing


def _by_folder(images: Images, names: Names) -> tuple[list[tuple[str, ...]], NDArray[np.int32]]:
    """The parts of each folder's path, such as (split, class), and for each image its folder."""
    top = find_wrapper(names) if images.source.may_wrap else ""
    return [tuple(folder.removeprefix(top).split("/")[:-1]) for folder in names.folders.strings()], names.folder


def _by_column(column: Sequence[tuple[str, ...]], names: Names) -> tuple[list[tuple[str, ...]], NDArray[np.int32]]:
    """The distinct labels of a column, and for each image the place of its own."""
    places: dict[tuple[str, ...], int] = {}
    assert len(column) == len(names), "a source gives one label per name"
    group = np.array([places.setdefault(label, len(places)) for label in column], np.int32)
    return list(places), group


def _nothing_found(data: str | Path, skipped: Sequence[BadFile], expected: str, unused: str = "") -> DataError:
    counts = Counter(bad.reason for bad in skipped if bad.reason != "other suffix")
    left_out = [f"{count} {reason}" for reason, count in counts.most_common()]
    left_out += [f"{bad.name} ({bad.detail.partition(',')[0]})" for bad in skipped if bad.reason == "other suffix"]
    more = f" and {len(left_out) - 4} other kinds" if len(left_out) > 4 else ""
    about = f"{unused[0].upper()}{unused[1:]}.\n" if unused else ""
    return DataError(
        f"{_shown(data)} does not hold {expected}.\n"
        f"Left out: {printable(', '.join(left_out[:4])) or 'nothing'}{more}.\n"
        f"{about}"
        f"Images are files that end in {' '.join(SUFFIXES)}."
    )


def _shown(data: str | Path) -> str:
    return printable(str(data))
