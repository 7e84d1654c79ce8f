"""The images of DATA: which they are, in which order, and their bytes.

Scanning opens no image, but for a few that only their pixels show to be masks.
DATA is a source of one of the kinds in `sources.SOURCES`; `docs/reference/data-formats.md` has the rules.
"""

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nolabel import catalog
from nolabel.data.bad_files import BadFile, BadImage
from nolabel.data.class_folders import check_spelling, read_column, read_folders
from nolabel.data.levels import Range
from nolabel.data.mask_content import are_photos, find_paired_folders
from nolabel.data.masks import find_masks
from nolabel.data.missing import SYSTEM_FOLDERS, check_missing, describe_unused
from nolabel.data.names import Names, compact, name_bytes, printable
from nolabel.data.selection import BESIDE, MASK, SUFFIXES, choose_folders, files_in_words
from nolabel.data.sources import SOURCES, find_source
from nolabel.data.sources.source import MISSING, UNREADABLE, Listing, Source, Tops
from nolabel.data.splits import SPLITS
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
    place: str = ""
    """Folder of the split in DATA, with a `/` at the end; empty for the root, several folders and a column."""
    unused: tuple[str, ...] = ()
    """Descriptions of images of DATA that are in no split; the same for all splits."""


def scan(data: str | Path, subfolder: str | None = None, keep_masks: bool = False) -> Images:
    """The images of DATA without masks (`masks.py`); only those below `subfolder` where one is given.

    With `keep_masks`, and for an empty `subfolder`, masks are images, too. Raises DataError when DATA is missing, is of
    no known kind, or holds no image.
    """
    images, _ = _scan(data, None if subfolder is None else (subfolder.strip("/"),))
    if not keep_masks and subfolder != "":
        if subfolder is None and images.source.has_folders:
            names, beside = choose_folders(_compact(images.names))
            images = images._replace(names=names, skipped=(*images.skipped, *beside))
        images = leave_out_masks(images)
    if not images.names:
        what = "an image" + (f" below {subfolder}" if subfolder else "")
        raise _nothing_found(data, images.skipped, what, describe_unused(images.source, images.root, images.skipped))
    return images


def leave_out_masks(images: Images) -> Images:
    """The images without masks. The masks go to `skipped`, in one record per folder or pattern of names."""
    names = _compact(images.names)
    by_place = partial(read, images._replace(names=names))
    groups = [group for group in find_masks(names) if not are_photos(group, by_place)]
    keep = np.ones(len(names), bool)
    for group in groups:
        keep[group.rows] = False
    more = find_paired_folders(names, ~keep, by_place)
    for group in more:
        keep[group.rows] = False
    groups += more
    if not groups:
        return images
    masks = [BadFile(group.name, MASK, files_in_words(names.take(group.rows)), 0) for group in groups]
    return images._replace(names=names.take(np.flatnonzero(keep)), skipped=(*images.skipped, *masks))


_MASKS = {MASK: "taken for masks and left out", BESIDE: "beside the folders of images and left out"}
_FOLDERS = {"unreadable folder": "left out, as they cannot be listed"}


def describe_masks(images: Images) -> list[str]:
    """Lines on masks, and on files beside the folders of images, that the scan left out."""
    return _describe(images, _MASKS)


def left_out(images: Images) -> list[str]:
    """Lines on what the scan left out, as far as a reader of results must know it."""
    return [*_describe(images, _MASKS | _FOLDERS), *other_suffixes(images)]


def other_suffixes(images: Images) -> list[str]:
    """A line on files of other suffixes that are pictures by their content; none without them."""
    unused = describe_unused(images.source, images.root, images.skipped)
    return [f"files of other suffixes: {unused.removeprefix('not used: ')}"] if unused else []


def _describe(images: Images, reasons: Mapping[str, str]) -> list[str]:
    """A line for each of the reasons for which files were skipped; `reasons` has the words for each."""
    lines = []
    for reason, what in reasons.items():
        entries = [f"{bad.name} ({bad.detail})" for bad in images.skipped if bad.reason == reason]
        if entries:
            more = f" and {len(entries) - 5} more" if len(entries) > 5 else ""
            lines.append(f"{what}: {printable(', '.join(entries[:5]))}{more}")
    return lines


def check_listed(images: Images, data: str | Path) -> None:
    """DataError where a folder of DATA cannot be listed: a split or a class may be in it."""
    closed = [bad for bad in images.skipped if bad.reason in ("unreadable folder", "missing")]
    closed = [bad for bad in closed if bad.name.endswith("/") and bad.name[:-1] not in SYSTEM_FOLDERS]
    if closed:
        more = f", nor {len(closed) - 1} more" if len(closed) > 1 else ""
        raise DataError(
            f"{printable(closed[0].name)} of {_shown(data)} cannot be listed ({printable(closed[0].detail)}){more}.\n"
            "A split or a class may be in it: make it readable, or take it out."
        )


def scan_labelled(data: str | Path) -> dict[str, LabelledImages]:
    """The images of class folders by split: those of train, val and test that exist, or `all` without splits.

    Splits are recognised by their names (`splits.py`). They may be below folders that hold the whole tree. A source
    with a column of labels is read by that column instead. Raises DataError as `scan` does, for a list without labels,
    for fewer than two classes, for folders that cannot be listed, and for trees that can be read in two ways.
    """
    images, listing = _scan(data, ("",))
    if listing.labels is None:
        check_folders(
            images, data, "classes.\nExpected a folder or a zip of class folders, or a list with a column label."
        )
        check_listed(images, data)
        images = leave_out_masks(images)
    check_missing(images.names, images.skipped, data)
    names = _compact(images.names)
    masks = [bad for bad in images.skipped if bad.reason == MASK]
    if listing.labels is None:
        assigned = read_folders(names, _shown(data), [bad.name for bad in masks if bad.name.endswith("/")])
    else:
        assigned = read_column(listing.labels)
    classes = sorted({label[1] for label in assigned.labels if label}, key=name_bytes)
    if len(classes) < 2:
        layout = "Expected CLASS/IMAGE for every class, or train/CLASS/IMAGE with val/ or test/ beside it"
        expected = f"two class folders with images but {len(classes)}.\n{layout}"
        raise _nothing_found(data, images.skipped, expected if listing.labels is None else "images of two classes")
    check_spelling(classes)
    numbers = {name: i for i, name in enumerate(classes)}
    number_of_group = np.array([numbers[label[1]] if label else -1 for label in assigned.labels])
    unused = (*(f"{bad.name} ({bad.detail})" for bad in masks), *assigned.unused, *other_suffixes(images))
    splits = {}
    for split in (*SPLITS, "all"):
        own = np.array([bool(label) and label[0] == split for label in assigned.labels])  # groups of this split
        if own.any():
            rows = np.flatnonzero(own[assigned.group])
            part, labels = images._replace(names=names.take(rows)), number_of_group[assigned.group[rows]]
            place = assigned.places.get(split, "")
            splits[split] = LabelledImages(part, tuple(labels.tolist()), tuple(classes), place, unused)
    return splits


_LIMITS: ContextVar[Range | None] = ContextVar("limits", default=None)


@contextlib.contextmanager
def scanned_in(limits: Range | None) -> Iterator[None]:
    """Images that are scanned in the block have these `limits`; as a part of the record they also reach the workers.

    A context, because protocols and methods scan at many places and need not know of the limits.
    """
    token = _LIMITS.set(limits)
    try:
        yield
    finally:
        _LIMITS.reset(token)


def check_folders(images: Images, data: str | Path, missing: str) -> None:
    """DataError where the source of `images` has no folders.

    `missing` completes the message "DATA is a list, which has no ...": `masks: expected a folder`.
    """
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
    """16 hexadecimal digits of SHA-256 over names and sizes. Equal for a folder, and for a zip or shards made of it.

    Reads the size of each file, which takes seconds for a million files.
    """
    digest = hashlib.sha256()
    for name, facts in zip(images.names, images.source.facts(images.root, images.names), strict=True):
        digest.update(name_bytes(name) + b"\0%d\0" % (facts[0] if facts else -1))
    return digest.hexdigest()[:16]


def _compact(names: Sequence[str]) -> Names:
    return names if isinstance(names, Names) else compact(names)


def _scan(data: str | Path, tops: Tops) -> tuple[Images, Listing]:
    """The images of DATA below the folders `tops` (`sources.source.Tops`), and the source's own listing. DataError."""
    kind = find_source(data)
    try:
        listing = SOURCES[kind].list_images(os.path.abspath(data), tops)
    except UNREADABLE as error:
        message = SOURCES[kind].unreadable
        raise DataError(message.format(data=_shown(data), error=printable(str(error)))) from None
    return Images(listing.root, kind, listing.names, listing.skipped, _LIMITS.get()), listing


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
