"""Which of the files that were found are images, and what is said about the others."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from nolabel.data import sources
from nolabel.data.names import Folder, Names, compact, folder_of, merge, name_bytes
from nolabel.data.sources import Entry
from nolabel.marks import MARKS

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm")


class BadFile(NamedTuple):
    """A file that is not used. Files of another suffix stand in one record a suffix, named `*.txt`."""

    name: str
    reason: str
    """A short slug: empty, truncated, damaged, not an image, too large, too small, missing, hidden, ..."""
    detail: str
    size: int
    """Bytes; 0 where nobody looked."""


class Others(NamedTuple):
    """Files of one suffix that is no image's."""

    number: int
    first: str


def images_below(root: str, tops: Sequence[str]) -> tuple[Names, tuple[BadFile, ...]]:
    """The names of the images below the folders `tops` of `root`, and what is left out."""
    found, problems, others = list[Folder](), list[Entry](), dict[str, Others]()
    for listing in sources.folder_entries(root, tops):
        images = [name for name in listing.files if name.lower().endswith(SUFFIXES)]
        if len(images) < len(listing.files):
            _count(others, (name for name in listing.files if not name.lower().endswith(SUFFIXES)), listing.path)
        more = _pick(listing.others, problems, others)
        images += [name.rpartition("/")[2] for name in more]
        if images:
            found.append(folder_of(listing.path, images))
    return merge(found), _left_out(problems, others)


def select(entries: Iterable[Entry]) -> tuple[Names, tuple[BadFile, ...]]:
    """The sorted names of the images among `entries`, and what is left out."""
    problems, others = list[Entry](), dict[str, Others]()
    names = _pick(entries, problems, others)
    return compact(sorted(names, key=name_bytes)), _left_out(problems, others)


def without_runs(entries: Iterable[Entry]) -> list[Entry]:
    """The members of an archive but for those of runs and of folders of pictures, as a folder's are left out."""
    entries, made = list(entries), dict[str, str]()
    for entry in entries:
        folder, _, name = entry.name.rpartition("/")
        if name in MARKS and folder:
            made.setdefault(f"{folder}/", MARKS[name])
    inside = tuple(made)
    kept = [entry for entry in entries if not inside or not entry.name.startswith(inside)]
    return kept + [Entry(folder, "made by nolabel", what) for folder, what in made.items()]


def _pick(entries: Iterable[Entry], problems: list[Entry], others: dict[str, Others]) -> list[str]:
    """The names of the images; the other entries go to `problems` or are counted in `others`."""
    names = []
    for entry in entries:
        image = entry.name.lower().endswith(SUFFIXES)
        if entry.problem != "hidden" and not entry.name.endswith("/") and not image:
            _count(others, [entry.name])
        elif entry.problem:
            problems.append(entry)
        else:
            names.append(entry.name)
    return names


def _count(others: dict[str, Others], names: Iterable[str], folder: str = "") -> None:
    for name in names:
        suffix = os.path.splitext(name)[1].lower()
        suffix = suffix if suffix[1:].isalnum() and len(suffix) < 10 else ""
        path = f"{folder}/{name}" if folder else name
        before = others.get(suffix, Others(0, path))
        others[suffix] = Others(before.number + 1, min(before.first, path, key=name_bytes))


def _left_out(problems: Sequence[Entry], others: Mapping[str, Others]) -> tuple[BadFile, ...]:
    skipped = [BadFile(*entry) for entry in sorted(problems, key=lambda entry: name_bytes(entry.name))]
    for suffix, (number, first) in sorted(others.items()):
        detail = f"{number} file{'s' * (number > 1)}, the first is {first}"
        skipped.append(BadFile(f"*{suffix}" if suffix else "*", "other suffix", detail, 0))
    return tuple(skipped)
