"""A folder: every file below it, and plain files by their paths."""

import os
import stat
from collections.abc import Iterator, Sequence

from nolabel import marks
from nolabel.data.bad_files import BadImage
from nolabel.data.names import compact, name_bytes
from nolabel.data.selection import IMAGE_FOLDERS, Entry, FolderContent, group_beside, is_junk, select_by_folder
from nolabel.data.sources.source import Listing, Source, Tops

MAX_FILE_BYTES = 1 << 30  # 8-bit RGBA without compression at decode's pixel limit is below it


def list_images(path: str, tops: Tops) -> Listing:
    """The images below the folder."""
    if tops is None:
        there = {top: os.path.join(path, top) for top in IMAGE_FOLDERS}
        tops = [top for top, inside in there.items() if os.path.isdir(inside) and not marks.made_by_nolabel(inside)]
        names, skipped = select_by_folder(_walk(path, tops)) if tops else (compact(()), ())
        if names:
            return Listing(path, names, (*skipped, *group_beside(select_by_folder(_walk(path, [""], tops))[0])))
        tops = [""]  # no such folder, or none with images
    return Listing(path, *select_by_folder(_walk(path, tops)))


def read(root: str, name: str) -> bytes:
    """The bytes of a regular file; never waits for a pipe or a device. Raises OSError and BadImage."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.path.join(root, name), "rb", opener=lambda path, _: os.open(path, flags)) as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise BadImage("not a regular file", "it is a pipe, a socket or a device")
        if info.st_size > MAX_FILE_BYTES:
            raise BadImage("too large", f"{info.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
        return file.read(MAX_FILE_BYTES)


def facts(root: str, names: Sequence[str]) -> Iterator[tuple[int, int] | None]:
    """Size and time of change of each file, in bytes and nanoseconds; None where it is missing."""
    for name in names:
        try:
            info = os.stat(os.path.join(root, name))
        except OSError:
            yield None
        else:
            yield info.st_size, info.st_mtime_ns


def has(root: str, name: str) -> bool:
    """Whether there is a regular file of this name."""
    return os.path.isfile(os.path.join(root, name))


def files_below(root: str, folder: str) -> list[str]:
    """The names of all files below a folder, relative to `root`."""
    walked = os.walk(os.path.join(root, folder))
    return [
        os.path.relpath(os.path.join(at, name), root).replace(os.sep, "/") for at, _, names in walked for name in names
    ]


def check_file(name: str, path: str) -> Entry:
    """The entry of a file that may be missing, a dangling link, a folder, a pipe, a socket or a device."""
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        link = os.path.islink(path)
        return Entry(name, "missing", "a link to nothing or to itself" if link else "no such file")
    return Entry(name, "", "", info.st_size) if stat.S_ISREG(info.st_mode) else Entry(name, "not a regular file")


def _walk(root: str, tops: Sequence[str], but: Sequence[str] = ()) -> Iterator[FolderContent]:
    """Everything below the folders `tops` of `root`, except `but`. No folder is entered twice, not even by a link.

    Linked folders come after all real ones, so a folder's own name wins over a link to it.
    """
    folders, links, seen = list(tops), list[str](), set[tuple[int, int]]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        if folder in but:
            continue
        path = os.path.join(root, folder)
        try:
            info = os.stat(path)
            with os.scandir(path) as scanned:
                entries = list(scanned)
        except OSError as error:
            yield FolderContent(folder, [], [Entry(folder + "/", "unreadable folder", error.strerror or "")])
            continue
        if (info.st_dev, info.st_ino) in seen:
            detail = "a link to a folder that is scanned under another name"
            yield FolderContent(folder, [], [Entry(folder + "/", "seen before", detail)])
            continue
        seen.add((info.st_dev, info.st_ino))
        plain = [e.name for e in entries if e.is_file(follow_symlinks=False) and not is_junk(e.name)]
        odd = len(plain) < len(entries) or "config.yaml" in plain
        if odd and (made := _made_by_nolabel(path, folder)):
            yield FolderContent(folder, [], [Entry(folder + "/", "made by nolabel", made)])
            continue
        content = FolderContent(folder, plain, [])
        if len(plain) < len(entries):
            for entry in sorted(entries, key=lambda entry: name_bytes(entry.name)):
                _sort_out(entry, folder, content, folders, links)
        yield content


def _made_by_nolabel(path: str, folder: str) -> str:
    """Why a folder is left out. A run never holds data; pictures are data where DATA names their folder itself."""
    made = marks.made_by_nolabel(path)
    return made if folder or marks.is_run(path) else ""


def _sort_out(
    entry: os.DirEntry[str], folder: str, content: FolderContent, folders: list[str], links: list[str]
) -> None:
    """Sort what is no plain file: folders to go on with, and files to report."""
    name = f"{folder}/{entry.name}" if folder else entry.name
    linked = entry.is_symlink()
    is_folder = os.path.isdir(entry.path) if linked else entry.is_dir(follow_symlinks=False)
    if is_junk(entry.name):
        content.others.append(Entry(name + "/" * is_folder, "hidden"))
    elif is_folder:
        (links if linked else folders).append(name)
    elif not entry.is_file(follow_symlinks=False):
        other = check_file(name, entry.path)
        # A link to nothing may be a folder whose disk is not mounted; one to itself never was.
        gone = linked and not os.path.splitext(name)[1] and not os.path.exists(os.path.realpath(entry.path))
        loop = os.path.islink(os.path.realpath(entry.path))
        content.others.append(other._replace(name=f"{name}/") if gone and not loop else other)


SOURCE = Source(os.path.isdir, list_images, read, facts, has, files_below, os.listdir)
