"""The images of DATA: which they are, in which order, and their bytes. Scanning opens no image.

DATA is a folder, a zip, shards or a text file of paths; `docs/reference/data-formats.md` has the rules.
"""

import hashlib
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from nolabel.data import archives, sources
from nolabel.data.names import Names, compact, name_bytes
from nolabel.data.selection import SUFFIXES, BadFile, images_below, select, without_runs
from nolabel.data.shards import is_shards
from nolabel.data.sources import BadImage
from nolabel.errors import DataError, nearest
from nolabel.marks import made_by_nolabel

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

IMAGE_FOLDERS = ("images", "frames", "jpg")
"""Where the root holds one of these, only it is scanned: masks, boxes and the like lie beside it."""
SPLITS = ("train", "val", "test")
MAX_BAD_SHARE = 0.05

Kind = Literal["folder", "zip", "list", "shards"]


class Images(NamedTuple):
    """A fixed list of images, sorted by name as bytes, so the order does not depend on the file system."""

    root: str
    """Absolute path of the folder, of the zip, of the folder of shards, or of the folder of the text file."""
    kind: Kind
    names: Sequence[str]
    """Paths relative to `root` with `/` between the parts; bytes that are not UTF-8 are lone surrogates."""
    skipped: tuple[BadFile, ...]
    """What the scan left out."""

    @property
    def packed(self) -> bool:
        """Whether the images are members of an archive."""
        return self.kind in ("zip", "shards")


class LabelledImages(NamedTuple):
    """Images with the class folder each lies in."""

    images: Images
    labels: tuple[int, ...]
    """Positions in `classes`, one an image."""
    classes: tuple[str, ...]
    """Sorted names of the class folders of all splits together."""


def scan(data: str | Path, subfolder: str | None = None) -> Images:
    """The images of DATA; only those below `subfolder` where one is given.

    Raises DataError when DATA is missing, is nothing of these, or holds no image.
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
    top = _wrapper(names) if images.packed else ""
    parts = [folder.removeprefix(top).split("/")[:-1] for folder in folders]  # [split, class, ...]
    keys: tuple[str, ...] = tuple(s for s in SPLITS if any(len(p) > 1 and p[0] == s and p[1] != "void" for p in parts))
    if not keys:
        keys, parts = ("all",), [["all", *p] for p in parts]
    used = [len(p) > 1 and p[0] in keys and p[1] != "void" for p in parts]
    classes = sorted({p[1] for p, use in zip(parts, used, strict=True) if use}, key=name_bytes)
    if len(classes) < 2:
        layout = "Expected CLASS/IMAGE for every class, or train/CLASS/IMAGE with val/ or test/ beside it"
        raise _nothing_found(data, images.skipped, f"two class folders with images but {len(classes)}.\n{layout}")
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
        if images.packed:
            return archives.read_member(images.root, name)
        return sources.read_file(os.path.join(images.root, name))
    except (FileNotFoundError, NotADirectoryError, KeyError):
        raise BadImage("missing", "it was there when the folder was scanned") from None
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise BadImage("unreadable", getattr(error, "strerror", None) or str(error)) from None


def fingerprint(images: Images) -> str:
    """16 hexadecimal digits of SHA-256 over names and sizes: equal for a folder, and a zip or shards of its content.

    It asks for the size of each file, which takes seconds for a million.
    """
    if images.packed:
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
    if is_shards(root):
        return Images(root, "shards", _in_shards(data, root, tops), ())
    if os.path.isdir(root):
        if tops is None:
            there = {top: os.path.join(root, top) for top in IMAGE_FOLDERS}
            tops = [top for top, path in there.items() if os.path.isdir(path) and not made_by_nolabel(path)]
        return Images(root, "folder", *images_below(root, tops or [""]))
    try:
        kind = _file_kind(data, root)
        entries = without_runs(archives.zip_entries(root)) if kind == "zip" else list(sources.list_entries(root))
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise DataError(f"{_shown(data)} cannot be read: {printable(str(error))}.") from None
    if tops is None:
        top = _wrapper(select(entries)[0]) if kind == "zip" else ""
        tops = [
            top + t
            for t in IMAGE_FOLDERS
            if kind == "zip" and any(e.name.startswith(f"{top}{t}/") and not e.name.endswith("/") for e in entries)
        ]
    below = tuple(f"{top}/" for top in tops if top)
    names, skipped = select(e for e in entries if not below or e.name.startswith(below))
    if kind == "zip":  # the same names, but in the buffer that is there already
        every, chosen = archives.members(root).names, set(names)
        return Images(root, kind, every.take([i for i, name in enumerate(every) if name in chosen]), skipped)
    return Images(os.path.dirname(root), kind, names, skipped)


def _in_shards(data: str | Path, root: str, tops: Sequence[str] | None) -> Names:
    """The names in shards; what lies beside the images was not packed, so only a subfolder is looked for."""
    try:
        names = archives.members(root).names
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"The shards {_shown(data)} cannot be read: {printable(str(error))}.\n"
            "Copy them again from where they were made, or pack them anew: nolabel pack DATA --out SHARDS"
        ) from None
    below = tuple(f"{top}/" for top in tops or () if top)
    return names.take([i for i, name in enumerate(names) if name.startswith(below)]) if below else names


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
