"""The images of DATA: which they are, in which order, and their bytes. Scanning opens no image.

DATA is a folder, a zip or a text file of paths; `docs/data.md` has the rules.
"""

import hashlib
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from nolabel.data import archives, sources
from nolabel.data.names import Folder, Names, compact, folder_of, merge, name_bytes
from nolabel.data.sources import BadImage, Entry
from nolabel.errors import DataError, nearest

__all__ = [
    "SUFFIXES",
    "BadFile",
    "BadImage",
    "Images",
    "LabelledImages",
    "fingerprint",
    "printable",
    "read",
    "scan",
    "scan_labelled",
    "too_many_bad",
]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm")
IMAGE_FOLDERS = ("images", "frames", "jpg")
"""Where the root holds one of these, only it is scanned: masks, boxes and the like lie beside it."""
SPLITS = ("train", "val", "test")
MAX_BAD_SHARE = 0.05

Kind = Literal["folder", "zip", "list"]


class BadFile(NamedTuple):
    """A file that is not used. Files of another suffix stand in one record a suffix, named `*.txt`."""

    name: str
    reason: str
    """A short slug: empty, truncated, damaged, not an image, too large, too small, missing, hidden, ..."""
    detail: str
    size: int
    """Bytes; 0 where nobody looked."""


class Images(NamedTuple):
    """A fixed list of images, sorted by name as bytes, so the order does not depend on the file system."""

    root: str
    """Absolute path of the folder, of the zip, or of the folder of the text file."""
    kind: Kind
    names: Sequence[str]
    """Paths relative to `root` with `/` between the parts; bytes that are not UTF-8 are lone surrogates."""
    skipped: tuple[BadFile, ...]
    """What the scan left out."""


class LabelledImages(NamedTuple):
    """Images with the class folder each lies in."""

    images: Images
    labels: tuple[int, ...]
    """Positions in `classes`, one an image."""
    classes: tuple[str, ...]
    """Sorted names of the class folders of all splits together."""


def scan(data: str | Path, subfolder: str | None = None) -> Images:
    """The images of DATA; only those below `subfolder` where one is given.

    Raises DataError when DATA is missing, is nothing of the three, or holds no image.
    """
    images = _scan(data, None if subfolder is None else (subfolder.strip("/"),))
    if not images.names:
        raise _nothing_found(data, images.skipped, "an image" + (f" below {subfolder}" if subfolder else ""))
    return images


def scan_labelled(data: str | Path) -> dict[str, LabelledImages]:
    """The images of class folders: keyed by those of train, val and test that exist, or `all` without splits.

    A folder counts as a split when it holds folders with images. Raises DataError as `scan` does, for a text
    file of paths, and for fewer than two classes.
    """
    images = _scan(data, ("",))
    if images.kind == "list":
        raise DataError(
            f"{_shown(data)} is a text file of paths, which has no classes.\n"
            "Expected a folder or a zip of class folders."
        )
    names = images.names if isinstance(images.names, Names) else compact(images.names)
    folders = names.folders.strings()
    top = _wrapper(names) if images.kind == "zip" else ""
    parts = [folder.removeprefix(top).split("/")[:-1] for folder in folders]  # [split, class, ...]
    keys: tuple[str, ...] = tuple(s for s in SPLITS if any(len(p) > 1 and p[0] == s and p[1] != "void" for p in parts))
    if not keys:
        keys, parts = ("all",), [["all", *p] for p in parts]
    used = [len(p) > 1 and p[0] in keys and p[1] != "void" for p in parts]
    classes = sorted({p[1] for p, use in zip(parts, used, strict=True) if use}, key=name_bytes)
    if len(classes) < 2:
        raise _nothing_found(data, images.skipped, f"two class folders with images but {len(classes)}")
    label = np.array([classes.index(p[1]) if use else -1 for p, use in zip(parts, used, strict=True)])
    found = {}
    for key in keys:
        own = np.array([use and p[0] == key for p, use in zip(parts, used, strict=True)])
        rows = np.flatnonzero(own[names.folder])
        part = images._replace(names=names.take(rows))
        found[key] = LabelledImages(part, tuple(label[names.folder[rows]].tolist()), tuple(classes))
    return found


def read(images: Images, index: int) -> bytes:
    """The bytes of one image. Safe in threads and in forked or spawned processes. Raises BadImage."""
    name = images.names[index]
    try:
        if images.kind == "zip":
            return archives.read_member(images.root, name)
        return sources.read_file(os.path.join(images.root, name))
    except (FileNotFoundError, NotADirectoryError, KeyError):
        raise BadImage("missing", "it was there when the folder was scanned") from None
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise BadImage("unreadable", getattr(error, "strerror", None) or str(error)) from None


def fingerprint(images: Images) -> str:
    """16 hexadecimal digits of SHA-256 over names and sizes: equal for a folder and a zip of its content."""
    if images.kind == "zip":
        members = archives.members(images.root).facts()
        sizes: Iterable[int] = (members.get(name, (-1, 0))[0] for name in images.names)
    else:
        sizes = (_size(os.path.join(images.root, name)) for name in images.names)
    digest = hashlib.sha256()
    for name, size in zip(images.names, sizes, strict=True):
        digest.update(name_bytes(name) + b"\0%d\0" % size)
    return digest.hexdigest()[:16]


def too_many_bad(num_bad: int, num_seen: int, num_images: int) -> bool:
    """Whether more than 5 % of the files seen are bad, judged once max(200, 5 % of all), or all, are seen."""
    enough = min(num_images, max(200, MAX_BAD_SHARE * num_images))
    return num_seen >= enough and num_bad > MAX_BAD_SHARE * num_seen


def printable(name: str) -> str:
    """`name` for people and logs: odd bytes, control and direction marks and backslashes are escaped."""
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in name)


def _scan(data: str | Path, tops: Sequence[str] | None) -> Images:
    """The images below the folders `tops`; None: below those of IMAGE_FOLDERS that exist, else all."""
    root = os.path.abspath(data)
    if os.path.isdir(root):
        if tops is None:
            tops = [top for top in IMAGE_FOLDERS if os.path.isdir(os.path.join(root, top))]
        return Images(root, "folder", *_below(root, tops or [""]))
    try:
        kind = _file_kind(data, root)
        entries = list(archives.zip_entries(root) if kind == "zip" else sources.list_entries(root))
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise DataError(f"{_shown(data)} cannot be read: {printable(str(error))}.") from None
    if tops is None:
        top = _wrapper(_select(entries)[0]) if kind == "zip" else ""
        tops = [
            top + t for t in IMAGE_FOLDERS if kind == "zip" and any(e.name.startswith(f"{top}{t}/") for e in entries)
        ]
    below = tuple(f"{top}/" for top in tops if top)
    names, skipped = _select(e for e in entries if not below or e.name.startswith(below))
    if kind == "zip":  # the same names, but in the buffer that is there already
        every, chosen = archives.members(root).names, set(names)
        return Images(root, kind, every.take([i for i, name in enumerate(every) if name in chosen]), skipped)
    return Images(os.path.dirname(root), kind, names, skipped)


def _file_kind(data: str | Path, path: str) -> Literal["zip", "list"]:
    if not os.path.isfile(path):
        folder = os.path.dirname(path)
        beside = os.listdir(folder) if os.path.isdir(folder) else []
        what = "is no regular file" if os.path.lexists(path) else "does not exist"
        raise DataError(
            f"{_shown(data)} {what}.{printable(nearest(os.path.basename(path), beside))}\n"
            "Expected a folder of images, a zip of one, or a text file with one image path a line."
        )
    with open(path, "rb") as file:
        start = file.read(4096)
    if path.lower().endswith(".zip") or start.startswith(b"PK\x03\x04"):
        return "zip"
    if b"\0" in start or path.lower().endswith(SUFFIXES):
        raise DataError(
            f"{_shown(data)} is neither a zip nor a text file.\n"
            "Expected a folder of images, a zip of one, or a text file with one image path a line."
        )
    return "list"


def _below(root: str, tops: Sequence[str]) -> tuple[Names, tuple[BadFile, ...]]:
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


def _select(entries: Iterable[Entry]) -> tuple[Names, tuple[BadFile, ...]]:
    """The sorted names of the images among `entries`, and what is left out."""
    problems, others = list[Entry](), dict[str, Others]()
    names = _pick(entries, problems, others)
    return compact(sorted(names, key=name_bytes)), _left_out(problems, others)


class Others(NamedTuple):
    """Files of one suffix that is no image's."""

    number: int
    first: str


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


def _wrapper(names: Names) -> str:
    """`photos/` where a zip packs a folder and not the folder's content, else an empty string."""
    tops = {folder.partition("/")[0] for folder in names.folders.strings()}
    top = tops.pop() if len(tops) == 1 else ""
    return top + "/" if top and top not in (*SPLITS, *IMAGE_FOLDERS) else ""


def _nothing_found(data: str | Path, skipped: Sequence[BadFile], expected: str) -> DataError:
    counts = Counter(bad.reason for bad in skipped if bad.reason != "other suffix")
    left_out = [f"{count} {reason}" for reason, count in counts.most_common()]
    left_out += [f"{bad.name} ({bad.detail.partition(',')[0]})" for bad in skipped if bad.reason == "other suffix"]
    more = f" and {len(left_out) - 4} other kinds" if len(left_out) > 4 else ""
    return DataError(
        f"{_shown(data)} does not hold {expected}.\n"
        f"Left out: {printable(', '.join(left_out[:4])) or 'nothing'}{more}.\n"
        f"Images are files that end in {' '.join(SUFFIXES)}."
    )


def _shown(data: str | Path) -> str:
    return printable(str(data))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
