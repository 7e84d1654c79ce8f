"""Members of a zip or of shards: which there are and where they lie, in numbers that forked processes share.

Opening a zip takes `zipfile` about a second and 500 MB for a million members. It is done once; a member is then read
by its place.
"""

import os
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nolabel.data.names import Names, compact, name_bytes
from nolabel.data.shards import ABOUT, Shards, open_shards, read_shard
from nolabel.data.sources import BadImage, Entry, is_junk

MAX_MEMBER_BYTES = 256_000_000  # uncompressed

_GOOD = ("", "")
_UNSAFE = ("unsafe name", "")
_HIDDEN = ("hidden", "")
_SPECIAL = ("not a regular file", "a link or a device")
_ENCRYPTED = ("encrypted", "")
_PACKED = ("unsupported compression", "only stored and deflated members are read")
_LARGE = ("too large", f"more than {MAX_MEMBER_BYTES // 10**6} MB in an archive")
_PROBLEMS = (_GOOD, _UNSAFE, _HIDDEN, _SPECIAL, _ENCRYPTED, _PACKED, _LARGE)
_ROW = np.dtype(
    [("start", "<i8"), ("packed", "<u4"), ("size", "<u4"), ("crc", "<u4"), ("method", "u1"), ("problem", "u1")]
)


class Members(NamedTuple):
    """All members but folders, sorted by their names as bytes; of equal names the last one, as `zipfile` has it."""

    shards: Shards | None
    """None for a zip."""
    names: Names
    rows: NDArray[np.void]
    """For each name its size and CRC-32; in a zip, too, where it lies, its packed size, method and what is wrong."""
    repeated: tuple[str, ...]
    """Names that others have, too."""

    def facts(self) -> dict[str, tuple[int, int]]:
        """Size and CRC-32 by name."""
        return dict(
            zip(self.names, zip(self.rows["size"].tolist(), self.rows["crc"].tolist(), strict=True), strict=True)
        )


def members(path: str) -> Members:
    """The members of the zip, or of the folder of shards, as it is now. Raises what `zipfile` or `open_shards` does."""
    about = os.path.join(path, ABOUT)
    try:
        info, shards = os.stat(about), True
    except (FileNotFoundError, NotADirectoryError):
        info, shards = os.stat(path), False
    return (_shards if shards else _members)(path, info.st_ino, info.st_size, info.st_mtime_ns)


@lru_cache(maxsize=8)
def _shards(path: str, *_identity: int) -> Members:
    found = open_shards(path)
    return Members(found, found.names, found.rows, ())


@lru_cache(maxsize=8)
def _members(path: str, *_identity: int) -> Members:
    with zipfile.ZipFile(path) as opened:
        infos = [info for info in opened.infolist() if not info.is_dir()]
    problems = [_problem(info) for info in infos]
    last = {info.filename: i for i, info in enumerate(infos)}
    good = (info.filename for info, problem in zip(infos, problems, strict=True) if problem == _GOOD)
    repeated = _more_than_once(good) if len(last) < len(infos) else ()
    chosen = sorted(last.values(), key=lambda i: name_bytes(infos[i].filename))
    found = [infos[i] for i in chosen]
    rows = np.zeros(len(found), _ROW)
    rows["start"] = [info.header_offset for info in found]
    rows["packed"] = [min(info.compress_size, 2**32 - 1) for info in found]
    rows["size"] = [min(info.file_size, 2**32 - 1) for info in found]
    rows["crc"] = [info.CRC for info in found]
    rows["method"] = [info.compress_type % 256 for info in found]
    rows["problem"] = [_PROBLEMS.index(problems[i]) for i in chosen]
    return Members(None, compact(info.filename for info in found), rows, repeated)


def zip_entries(path: str) -> Iterator[Entry]:
    """The members of a zip, sorted by name. Raises as `members`."""
    found = members(path)
    for name, problem, size in zip(
        found.names, found.rows["problem"].tolist(), found.rows["size"].tolist(), strict=True
    ):
        yield Entry(name, *_PROBLEMS[problem], size)
    for name in found.repeated:
        yield Entry(name, "listed twice")


def read_member(path: str, name: str) -> bytes:
    """The bytes of a member of a zip or of shards. Raises KeyError, BadImage, OSError and what `zipfile` raises."""
    found = members(path)
    at = found.names.find(name)
    if at is None:
        raise KeyError(name)
    row = found.rows[at]
    if row["size"] > MAX_MEMBER_BYTES:
        raise BadImage("too large", f"{row['size']:,} bytes, more than {MAX_MEMBER_BYTES:,} in an archive")
    data = read_shard(found.shards, at) if found.shards else _read_zip(path, name, row)
    if len(data) != row["size"] or zlib.crc32(data) != row["crc"]:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {name!r}")
    return data


def _read_zip(path: str, name: str, row: np.void) -> bytes:
    start, packed, size, _, method, problem = row.tolist()
    if _PROBLEMS[problem] in (_ENCRYPTED, _PACKED, _LARGE):
        raise BadImage(*_PROBLEMS[problem])
    with open(path, "rb") as file:  # forked processes would share the position in an open one
        file.seek(start)
        header = file.read(30)
        if header[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile(f"no member begins where {name!r} should")
        skip = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        file.seek(skip, os.SEEK_CUR)
        data = file.read(packed)
    return zlib.decompressobj(-15).decompress(data, size + 1) if method == zipfile.ZIP_DEFLATED else data


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
    return _LARGE if info.file_size > MAX_MEMBER_BYTES else _GOOD


def _more_than_once(names: Iterable[str]) -> tuple[str, ...]:
    seen, twice = set[str](), list[str]()
    for name in names:
        if name in seen:
            twice.append(name)
        seen.add(name)
    return tuple(twice)
