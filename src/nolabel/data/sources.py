"""What a folder, a zip or a text file of paths holds, and the bytes of its files. Nothing is extracted."""

import os
import stat
import threading
import zipfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

MAX_FILE_BYTES = 1 << 30  # 8-bit RGBA without compression at decode's pixel limit is below it
MAX_MEMBER_BYTES = 256_000_000  # of an archive, uncompressed


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


def name_bytes(name: str) -> bytes:
    """The bytes of a file name, by which names are ordered and hashed whatever the locale is."""
    return name.encode("utf-8", "surrogateescape")


def is_junk(part: str) -> bool:
    """Whether a file or folder is hidden, or is macOS's copy of one (`__MACOSX`, `._photo.jpg`)."""
    return part.startswith(".") or part == "__MACOSX"


def folder_entries(root: str, tops: Sequence[str]) -> Iterator[Entry]:
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
                entries = sorted(found, key=lambda entry: name_bytes(entry.name))
        except OSError as error:
            yield Entry(folder + "/", "unreadable folder", error.strerror or "")
            continue
        if (info.st_dev, info.st_ino) in seen:
            yield Entry(folder + "/", "seen before", "a link to a folder that is scanned under another name")
            continue
        seen.add((info.st_dev, info.st_ino))
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir(follow_symlinks=False)
            if is_junk(entry.name):
                yield Entry(name + "/" * is_folder, "hidden")
            elif is_folder:
                (links if entry.is_symlink() else folders).append(name)
            else:
                yield Entry(name) if entry.is_file(follow_symlinks=False) else _checked(name, entry.path)


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


def zip_entries(path: str) -> Iterator[Entry]:
    """The members of a zip. Raises what `zipfile` raises for a file that is no zip or a damaged one."""
    seen = set[str]()
    for info in archive(path)[0].infolist():
        parts = info.filename.split("/")
        kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
        problem = detail = ""
        if info.is_dir():
            continue
        if ".." in parts or info.filename.startswith("/"):
            problem = "unsafe name"
        elif any(map(is_junk, parts)):
            problem = "hidden"
        elif kind not in (0, stat.S_IFREG):
            problem, detail = "not a regular file", "a link or a device"
        elif info.flag_bits & 1:
            problem = "encrypted"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem, detail = "unsupported compression", "only stored and deflated members are read"
        elif info.file_size > MAX_MEMBER_BYTES:
            problem, detail = "too large", f"more than {MAX_MEMBER_BYTES // 10**6} MB in an archive"
        elif info.filename in seen:
            problem = "listed twice"
        seen.add(info.filename)
        yield Entry(info.filename, problem, detail, info.file_size)


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


def read_member(path: str, name: str) -> bytes:
    """The bytes of a member of a zip. Raises KeyError, BadImage and what `zipfile` raises."""
    opened, lock = archive(path)
    info = opened.getinfo(name)
    if info.file_size > MAX_MEMBER_BYTES:
        raise BadImage("too large", f"{info.file_size:,} bytes, more than {MAX_MEMBER_BYTES:,} in an archive")
    with lock:
        return opened.read(info)


def archive(path: str) -> tuple[zipfile.ZipFile, threading.Lock]:
    """An open zip and its lock: one a process, as forked processes would share the position in the file."""
    info = os.stat(path)
    return _archive(path, os.getpid(), info.st_ino, info.st_size, info.st_mtime_ns)


@lru_cache(maxsize=8)
def _archive(path: str, *_identity: int) -> tuple[zipfile.ZipFile, threading.Lock]:
    return zipfile.ZipFile(path), threading.Lock()


def _checked(name: str, path: str) -> Entry:
    """The entry of a file that may be missing, a dangling link, a folder, a pipe, a socket or a device."""
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        link = os.path.islink(path)
        return Entry(name, "missing", "a link to nothing or to itself" if link else "no such file")
    return Entry(name, "", "", info.st_size) if stat.S_ISREG(info.st_mode) else Entry(name, "not a regular file")
