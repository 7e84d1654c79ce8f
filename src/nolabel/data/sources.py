"""What a folder or a text file of paths holds, and the bytes of its files."""

import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nolabel import marks
from nolabel.data.names import name_bytes

MAX_FILE_BYTES = 1 << 30  # 8-bit RGBA without compression at decode's pixel limit is below it


class BadImage(Exception):
    """One image cannot be used. `reason` is a short slug (truncated, too large, ...), `detail` says more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class Entry(NamedTuple):
    """A file, or a folder not entered (its name ends in `/`). `problem` is the reason to leave it out."""

    name: str
    problem: str = ""
    detail: str = ""
    size: int = 0


def is_junk(part: str) -> bool:
    """Whether a file or folder is hidden, or is macOS's copy of one (`__MACOSX`, `._photo.jpg`)."""
    return part.startswith(".") or part == "__MACOSX"


class Listing(NamedTuple):
    """A folder: the names of its regular files, unsorted, and all else that is worth a word."""

    path: str
    files: list[str]
    others: list[Entry]


def folder_entries(root: str, tops: Sequence[str]) -> Iterator[Listing]:
    """Everything below the folders `tops` of `root`. Links are followed, but no folder is entered twice.

    Linked folders come after all real ones, so a folder's own name wins over a link to it.
    """
    folders, links, seen = list(tops), list[str](), set[tuple[int, int]]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        path = os.path.join(root, folder)
        try:
            info = os.stat(path)
            with os.scandir(path) as found:
                entries = list(found)
        except OSError as error:
            yield Listing(folder, [], [Entry(folder + "/", "unreadable folder", error.strerror or "")])
            continue
        if (info.st_dev, info.st_ino) in seen:
            detail = "a link to a folder that is scanned under another name"
            yield Listing(folder, [], [Entry(folder + "/", "seen before", detail)])
            continue
        seen.add((info.st_dev, info.st_ino))
        plain = [e.name for e in entries if e.is_file(follow_symlinks=False) and not is_junk(e.name)]
        odd = len(plain) < len(entries) or "config.yaml" in plain
        if odd and (made := _made_by_nolabel(path, folder)):
            yield Listing(folder, [], [Entry(folder + "/", "made by nolabel", made)])
            continue
        listing = Listing(folder, plain, [])
        if len(plain) < len(entries):
            for entry in sorted(entries, key=lambda entry: name_bytes(entry.name)):
                _sort_out(entry, folder, listing, folders, links)
        yield listing


def _made_by_nolabel(path: str, folder: str) -> str:
    """Why a folder is left out. A run never holds data; pictures are data where DATA names their folder itself."""
    made = marks.made_by_nolabel(path)
    return made if folder or marks.is_run(path) else ""


def _sort_out(entry: os.DirEntry[str], folder: str, found: Listing, folders: list[str], links: list[str]) -> None:
    """Put what is no plain file where it belongs: to go on with, or to be told."""
    name = f"{folder}/{entry.name}" if folder else entry.name
    linked = entry.is_symlink()
    is_folder = os.path.isdir(entry.path) if linked else entry.is_dir(follow_symlinks=False)
    if is_junk(entry.name):
        found.others.append(Entry(name + "/" * is_folder, "hidden"))
    elif is_folder:
        (links if linked else folders).append(name)
    elif not entry.is_file(follow_symlinks=False):
        found.others.append(_checked(name, entry.path))


def list_entries(path: str) -> Iterator[Entry]:
    """The paths in a text file, one a line, absolute or relative to the folder of the text file."""
    with open(path, "rb") as file:
        lines = file.read().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    seen = set[str]()
    for name in (os.fsdecode(line.removesuffix(b"\r")) for line in lines if line.strip()):
        if name in seen:
            yield Entry(name, "listed twice")
        elif is_junk(os.path.basename(name)) or "__MACOSX" in name.split("/"):
            yield Entry(name, "hidden")
        else:
            yield _checked(name, os.path.join(os.path.dirname(path), name))
        seen.add(name)


def read_file(path: str) -> bytes:
    """The bytes of a regular file; never waits for a pipe or a device. Raises OSError and BadImage."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise BadImage("not a regular file", "it is a pipe, a socket or a device")
        if info.st_size > MAX_FILE_BYTES:
            raise BadImage("too large", f"{info.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
        return file.read(MAX_FILE_BYTES)


def _checked(name: str, path: str) -> Entry:
    """The entry of a file that may be missing, a dangling link, a folder, a pipe, a socket or a device."""
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        link = os.path.islink(path)
        return Entry(name, "missing", "a link to nothing or to itself" if link else "no such file")
    return Entry(name, "", "", info.st_size) if stat.S_ISREG(info.st_mode) else Entry(name, "not a regular file")
