"""A zip: its members, read into memory and never extracted.

Opening a zip takes `zipfile` about a second and 500 MB for a million members. It is done once; a member is then read
by its place.
"""

import os
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from nolabel.data.bad_files import BadFile, BadImage
from nolabel.data.names import compact, name_bytes
from nolabel.data.selection import IMAGE_FOLDERS, Entry, find_wrapper, group_beside, inside, is_junk, select
from nolabel.data.sources import members
from nolabel.data.sources.members import Members
from nolabel.data.sources.source import Listing, Source, Tops
from nolabel.marks import MARKS

_GOOD = ("", "")
_UNSAFE = ("unsafe name", "")
_HIDDEN = ("hidden", "")
_SPECIAL = ("not a regular file", "a link or a device")
_ENCRYPTED = ("encrypted", "")
_PACKED = ("unsupported compression", "only stored and deflated members are read")
_LARGE = ("too large", f"more than {members.MAX_MEMBER_BYTES // 10**6} MB in an archive")
_DAMAGED = ("damaged", "its place is beyond the largest file")
_PROBLEMS = (_GOOD, _UNSAFE, _HIDDEN, _SPECIAL, _ENCRYPTED, _PACKED, _LARGE, _DAMAGED)
_ROW = np.dtype(
    [("start", "<i8"), ("packed", "<u4"), ("size", "<u4"), ("crc", "<u4"), ("method", "u1"), ("problem", "u1")]
)


class Zip(NamedTuple):
    """The members of a zip; of equal names the last one, as `zipfile` has it."""

    members: Members
    """With columns for the place of each, its packed size, its method and its problem."""
    repeated: tuple[str, ...]
    """Names that others have, too."""


def recognises(path: str) -> bool:
    """Whether the file is a zip by its name or its first bytes. Raises OSError where it cannot be opened."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04" or path.lower().endswith(".zip")


def list_images(path: str, tops: Tops) -> Listing:
    """The images among the members. Raises what `zipfile` raises."""
    entries = _without_runs(_entries(path))
    beside = list[BadFile]()
    if tops is None:
        all_names = select(entries)[0]
        top = find_wrapper(all_names)
        tops = [top + t for t in IMAGE_FOLDERS if any(name.startswith(f"{top}{t}/") for name in all_names)]
        if tops:
            inner = tuple(f"{one}/" for one in tops)
            beside = group_beside(compact(name for name in all_names if not name.startswith(inner)), top)
    names, skipped = select(inside(entries, tops))
    every, chosen = _open(path).members.names, set(names)  # the same names, but in the buffer that is there already
    return Listing(path, every.take([i for i, name in enumerate(every) if name in chosen]), (*skipped, *beside))


def read(root: str, name: str) -> bytes:
    """The bytes of a member. Raises KeyError, BadImage, OSError and what `zipfile` raises."""
    members = _open(root).members
    at = members.place(name)
    start, packed, size, _, method, problem = members.rows[at].tolist()
    if _PROBLEMS[problem] in (_ENCRYPTED, _PACKED, _LARGE, _DAMAGED):
        raise BadImage(*_PROBLEMS[problem])
    with open(root, "rb") as file:  # forked processes would share the position in an open one
        file.seek(start)
        header = file.read(30)
        if header[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile(f"no member begins where {name!r} should")
        skip = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        file.seek(skip, os.SEEK_CUR)
        data = file.read(packed)
    if method == zipfile.ZIP_DEFLATED:
        data = zlib.decompressobj(-15).decompress(data, size + 1)
    return members.checked(at, data)


def facts(root: str, names: Sequence[str]) -> Iterator[tuple[int, int] | None]:
    """Size and CRC-32 of each member; None where it is missing."""
    return _open(root).members.facts(names)


def has(root: str, name: str) -> bool:
    """Whether there is a member of this name."""
    return _open(root).members.names.find(name) is not None


def files_below(root: str, folder: str) -> list[str]:
    """The names of all members below a folder."""
    return _open(root).members.below(folder)


def files_on_top(root: str) -> list[str]:
    """The names of good members in the root and right in its folders: a zip may pack one folder."""
    return [entry.name for entry in _entries(root) if not entry.problem and entry.name.count("/") < 2]


def _open(path: str) -> Zip:
    info = os.stat(path)
    return _opened(path, info.st_ino, info.st_size, info.st_mtime_ns)


@lru_cache(maxsize=8)
def _opened(path: str, *_identity: int) -> Zip:
    with zipfile.ZipFile(path) as opened:
        infos = [info for info in opened.infolist() if not info.is_dir()]
    problems = [_problem(info) for info in infos]
    last = {info.filename: i for i, info in enumerate(infos)}
    good = (info.filename for info, problem in zip(infos, problems, strict=True) if problem == _GOOD)
    repeated = _more_than_once(good) if len(last) < len(infos) else ()
    chosen = sorted(last.values(), key=lambda i: name_bytes(infos[i].filename))
    kept = [infos[i] for i in chosen]
    rows = np.zeros(len(kept), _ROW)
    rows["start"] = [min(info.header_offset, 2**63 - 1) for info in kept]
    rows["packed"] = [min(info.compress_size, 2**32 - 1) for info in kept]
    rows["size"] = [min(info.file_size, 2**32 - 1) for info in kept]
    rows["crc"] = [info.CRC for info in kept]
    rows["method"] = [info.compress_type % 256 for info in kept]
    rows["problem"] = [_PROBLEMS.index(problems[i]) for i in chosen]
    return Zip(Members(compact(info.filename for info in kept), rows), repeated)


def _entries(path: str) -> Iterator[Entry]:
    """The members, sorted by name."""
    opened = _open(path)
    names, rows = opened.members
    for name, problem, size in zip(names, rows["problem"].tolist(), rows["size"].tolist(), strict=True):
        yield Entry(name, *_PROBLEMS[problem], size)
    for name in opened.repeated:
        yield Entry(name, "listed twice")


def _without_runs(entries: Iterable[Entry]) -> list[Entry]:
    """The members of an archive but for those of runs and of folders of pictures, as a folder's are left out."""
    entries, made = list(entries), dict[str, str]()
    for entry in entries:
        folder, _, name = entry.name.rpartition("/")
        if name in MARKS and folder:
            made.setdefault(f"{folder}/", MARKS[name])
    inside = tuple(made)
    kept = [entry for entry in entries if not inside or not entry.name.startswith(inside)]
    return kept + [Entry(folder, "made by nolabel", what) for folder, what in made.items()]


def _problem(info: zipfile.ZipInfo) -> tuple[str, str]:
    parts = info.filename.split("/")
    kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
    if ".." in parts or info.filename.startswith("/"):
        return _UNSAFE
    if any(map(is_junk, parts)):
        return _HIDDEN
    if kind not in (0, stat.S_IFREG):
        return _SPECIAL
    if info.flag_bits & 1:
        return _ENCRYPTED
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return _PACKED
    if info.header_offset >= 2**63:  # zip64 has room for more than any file
        return _DAMAGED
    return _LARGE if max(info.file_size, info.compress_size) > members.MAX_MEMBER_BYTES else _GOOD


def _more_than_once(names: Iterable[str]) -> tuple[str, ...]:
    seen, twice = set[str](), list[str]()
    for name in names:
        if name in seen:
            twice.append(name)
        seen.add(name)
    return tuple(twice)


SOURCE = Source(recognises, list_images, read, facts, has, files_below, files_on_top, may_wrap=True)
