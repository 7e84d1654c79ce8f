"""Selection of the images among the files of a source, and the reasons for the others."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nolabel.data.bad_files import BadFile
from nolabel.data.names import Folder, Names, compact, folder_of, merge, name_bytes
from nolabel.data.splits import SPLITS, split_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm")
IMAGE_FOLDERS = ("images", "frames", "jpg")
"""Where the root holds one of these folders, only they are scanned: masks, boxes and the like are beside them."""
MASK = "mask"
"""The reason for which masks are left out."""
BESIDE = "beside images"
"""The reason for files beside one of IMAGE_FOLDERS."""


class Entry(NamedTuple):
    """A file, or a folder not entered (its name ends in `/`). `problem` is the reason to leave it out."""

    name: str
    problem: str = ""
    detail: str = ""
    size: int = 0


class FolderContent(NamedTuple):
    """A folder: the names of its regular files, unsorted, and everything else that is reported."""

    path: str
    files: list[str]
    others: list[Entry]


class Others(NamedTuple):
    """Files of one suffix that is no image's."""

    number: int
    first: str


def is_junk(part: str) -> bool:
    """Whether a file or folder is hidden, or is macOS's copy of one (`__MACOSX`, `._photo.jpg`)."""
    return part.startswith(".") or part == "__MACOSX"


def inside(entries: Sequence[Entry], tops: Sequence[str]) -> Iterator[Entry]:
    """Those below the folders `tops`; without `tops`, or for an empty one alone, all."""
    below = tuple(f"{top}/" for top in tops if top)
    return (entry for entry in entries if not below or entry.name.startswith(below))


def find_wrapper(names: Names) -> str:
    """`photos/` where all names are in this one folder and it is no split, else an empty string."""
    tops = {folder.partition("/")[0] for folder in names.folders.strings()}
    top = tops.pop() if len(tops) == 1 else ""
    return top + "/" if top and top not in (*SPLITS, *IMAGE_FOLDERS) else ""


def choose_folders(names: Names) -> tuple[Names, list[BadFile]]:
    """The images in IMAGE_FOLDERS if the folder that holds everything has one of them, else all; and the other ones."""
    folders = names.folders.strings()
    used = {i: folders[i] for i in np.unique(names.folder).tolist()}
    top = ""
    while len(kids := {folder[len(top) :].partition("/")[0] for folder in used.values()}) == 1:
        (kid,) = kids
        if not kid or kid in IMAGE_FOLDERS or split_of(kid):
            return names, []
        top += f"{kid}/"
    chosen = tuple(f"{top}{kid}/" for kid in kids if kid in IMAGE_FOLDERS)
    if not chosen:
        return names, []
    inside = np.zeros(len(folders), bool)
    inside[[i for i, folder in used.items() if folder.startswith(chosen)]] = True
    images = inside[names.folder]
    return names.take(np.flatnonzero(images)), group_beside(names.take(np.flatnonzero(~images)), top)


def group_beside(names: Names, top: str = "") -> list[BadFile]:
    """Records of images that are beside IMAGE_FOLDERS: one for each folder directly in `top`, one for its files."""
    folders = names.folders.strings()
    groups: dict[str, list[int]] = {}
    for i in np.unique(names.folder).tolist():
        kid, below, _ = folders[i][len(top) :].partition("/")
        groups.setdefault(f"{top}{kid}{below}", []).append(i)
    members = {name: names.take(np.flatnonzero(np.isin(names.folder, rows))) for name, rows in sorted(groups.items())}
    return [BadFile(name or some[0], BESIDE, files_in_words(some), 0) for name, some in members.items()]


def files_in_words(names: Sequence[str]) -> str:
    """`12 files, the first is masks/0.png`."""
    return f"{len(names):,} file{'s' * (len(names) > 1)}, the first is {names[0]}"


def select_by_folder(contents: Iterable[FolderContent]) -> tuple[Names, tuple[BadFile, ...]]:
    """The sorted names of the images in these folders, and what is left out. Fast: a folder at a time."""
    folders, problems, others = list[Folder](), list[Entry](), dict[str, Others]()
    for content in contents:
        images = [name for name in content.files if name.lower().endswith(SUFFIXES)]
        if len(images) < len(content.files):
            _count(others, (name for name in content.files if not name.lower().endswith(SUFFIXES)), content.path)
        more = _pick(content.others, problems, others)
        images += [name.rpartition("/")[2] for name in more]
        if images:
            folders.append(folder_of(content.path, images))
    return merge(folders), _left_out(problems, others)


def select(entries: Iterable[Entry]) -> tuple[Names, tuple[BadFile, ...]]:
    """The sorted names of the images among `entries`, and what is left out."""
    problems, others = list[Entry](), dict[str, Others]()
    names = _pick(entries, problems, others)
    return compact(sorted(names, key=name_bytes)), _left_out(problems, others)


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
