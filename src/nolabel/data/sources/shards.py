"""Shards: plain tar files with an index beside them, so that any image is one read.

`docs/reference/data-formats.md` has the format.

The index is a few arrays of numbers, checked before use; names in it are never opened.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nolabel.data.bad_files import BadImage
from nolabel.data.names import Names, Texts, name_bytes
from nolabel.data.sources.members import Members
from nolabel.data.sources.source import Listing, Source, Tops

ABOUT = "nolabel-shards.json"
INDEX = "index.bin"
VERSION = 1
BLOCK = 512  # bytes of a header; contents begin and end at multiples of it
_ROW = np.dtype([("start", "<i8"), ("size", "<u4"), ("crc", "<u4"), ("shard", "<u2")])


class Shards(NamedTuple):
    """An index, checked."""

    files: tuple[str, ...]
    """The paths of the shards."""
    members: Members
    """For each name the shard, the place of its header in it, its size and CRC-32: 18 bytes."""


def recognises(path: str) -> bool:
    """Whether `nolabel pack` has written this folder."""
    return os.path.isfile(os.path.join(path, ABOUT))


def list_images(path: str, tops: Tops) -> Listing:
    """The names in the index. No other file was packed, so IMAGE_FOLDERS are not searched."""
    names = _open(path).members.names
    below = tuple(f"{top}/" for top in tops or () if top)
    return Listing(path, names.take([i for i, name in enumerate(names) if name.startswith(below)]) if below else names)


def read(root: str, name: str) -> bytes:
    """The bytes of one image. Raises KeyError, BadImage, OSError, and BadZipFile for a wrong checksum."""
    files, members = _open(root)
    at = members.place(name)
    start, size, _, shard = members.rows[at].tolist()
    with open(files[shard], "rb") as file:  # forked processes would share the position in an open one
        file.seek(start)
        data = file.read(BLOCK + size)
    try:
        header = tarfile.TarInfo.frombuf(data[:BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise BadImage("damaged", f"no member of a tar begins where the index says: {error}") from None
    if not header.isreg() or header.size != size:
        raise BadImage("damaged", "the member of the tar is no file of the size in the index")
    return members.checked(at, data[BLOCK:])


def facts(root: str, names: Sequence[str]) -> Iterator[tuple[int, int] | None]:
    """Size and CRC-32 of each image; None where it is missing."""
    return _open(root).members.facts(names)


def has(root: str, name: str) -> bool:
    """Whether there is an image of this name."""
    return _open(root).members.names.find(name) is not None


def files_below(root: str, folder: str) -> list[str]:
    """The names of all images below a folder."""
    return _open(root).members.below(folder)


def open_shards(folder: str) -> Shards:
    """The index of a folder of shards. ValueError or OSError where it is damaged or does not fit the shards."""
    with open(os.path.join(folder, ABOUT), "rb") as file:
        about = json.loads(file.read(1 << 26))
    if not os.path.isfile(os.path.join(folder, INDEX)):  # a pipe would wait for ever
        raise ValueError(f"{INDEX} is missing, or no file")
    with open(os.path.join(folder, INDEX), "rb") as file:
        index = file.read()
    if not isinstance(about, dict) or about.get("version") != VERSION:
        raise ValueError(f"{ABOUT} is not of version {VERSION}")
    if hashlib.sha256(index).hexdigest() != about.get("index_sha256"):
        raise ValueError(f"{INDEX} is damaged: its SHA-256 is not the one in {ABOUT}")
    try:
        files, sizes = _files(folder, about)
        names, rows = _columns(index, about)
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{ABOUT} is damaged: {error!r}") from None
    ends = rows["start"] + BLOCK + rows["size"]
    if len(rows) and (
        rows["shard"].max() >= len(files) or rows["start"].min() < 0 or (ends > sizes[rows["shard"]]).any()
    ):
        raise ValueError(f"{INDEX} points outside the shards")
    return Shards(files, Members(names, rows))


def header(name: str, size: int) -> bytes:
    """Bytes before the content of a member: its header, last, and for a name above 100 bytes that name."""
    info = tarfile.TarInfo(name)  # no owner, no time: equal input gives equal bytes
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def index_bytes(names: Names, rows: Mapping[str, Sequence[int]]) -> tuple[bytes, dict[str, int]]:
    """The index and the lengths by which it is cut again; `rows` are the columns of `Shards.rows`."""
    columns = [np.asarray(rows[str(column)], _ROW[str(column)]) for column in _ROW.names or ()]
    columns += [names.files.lengths, names.folder, names.folders.lengths]
    texts = names.files.text, names.folders.text
    lengths = {"images": len(names), "folders": len(names.folders.lengths)}
    lengths |= {"text": len(texts[0]), "folder_text": len(texts[1])}
    return b"".join([*(column.tobytes() for column in columns), *texts]), lengths


def _files(folder: str, about: dict[str, Any]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The paths and sizes of the shards, which must be as they were written."""
    names = [str(shard["name"]) for shard in about["shards"]]
    sizes = np.array([int(shard["bytes"]) for shard in about["shards"]], np.int64)
    for name, size in zip(names, sizes.tolist(), strict=True):
        if not re.fullmatch(r"[0-9]{5,}\.tar", name):
            raise ValueError(f"{name!r} is no name of a shard")
        there = os.stat(os.path.join(folder, name)).st_size
        if there != size:
            raise ValueError(f"{name} has {there:,} bytes, not {size:,}")
    return tuple(os.path.join(folder, name) for name in names), sizes


def _columns(index: bytes, about: dict[str, Any]) -> tuple[Names, NDArray[np.void]]:
    lengths = {key: int(about["lengths"][key]) for key in ("images", "folders", "text", "folder_text")}
    number, folders = lengths["images"], lengths["folders"]
    kinds = [(_ROW[str(column)], number) for column in _ROW.names or ()]
    kinds += [(np.dtype("<i4"), number), (np.dtype("<i4"), number), (np.dtype("<i4"), folders)]
    total = sum(kind.itemsize * count for kind, count in kinds) + lengths["text"] + lengths["folder_text"]
    if min(lengths.values()) < 0 or total != len(index):
        raise ValueError(f"{INDEX} has {len(index):,} bytes, not {total:,}")
    columns, at = [], 0
    for kind, count in kinds:
        columns.append(np.frombuffer(index, kind, count, at))
        at += kind.itemsize * count
    *numbers, file_lengths, folder, folder_lengths = columns
    text, folder_text = index[at : at + lengths["text"]], index[at + lengths["text"] :]
    files, prefixes = _cut(text, file_lengths), _cut(folder_text, folder_lengths)
    if (number and not (folder.min() >= 0 and folder.max() < folders)) or b"/" in text or b"\0" in text:
        raise ValueError(f"the names in {INDEX} are damaged")
    if any(unsafe(prefix) for prefix in prefixes.strings()):
        raise ValueError(f"{INDEX} has names outside the folder")
    rows = np.empty(number, _ROW)
    for column, values in zip(_ROW.names or (), numbers, strict=True):
        rows[column] = values
    return Names(files, folder, prefixes), rows


def unsafe(path: str) -> bool:
    """Whether a path leads out of the folder it is relative to."""
    return path.startswith("/") or ".." in path.split("/") or b"\0" in name_bytes(path)


def _cut(text: bytes, lengths: NDArray[np.int32]) -> Texts:
    ends = np.cumsum(lengths, dtype=np.int64)
    if (len(lengths) and lengths.min() < 0) or (int(ends[-1]) if len(ends) else 0) != len(text):
        raise ValueError(f"the names in {INDEX} are damaged")
    return Texts(text, ends - lengths, lengths)


def _open(folder: str) -> Shards:
    info = os.stat(os.path.join(folder, ABOUT))
    return _opened(folder, info.st_ino, info.st_size, info.st_mtime_ns)


@lru_cache(maxsize=8)
def _opened(folder: str, *_identity: int) -> Shards:
    return open_shards(folder)


SOURCE = Source(
    recognises,
    list_images,
    read,
    facts,
    has,
    files_below,
    may_wrap=True,
    unreadable="The shards {data} cannot be read: {error}.\n"
    "Copy them again from where they were made, or pack them again: nolabel pack DATA --out SHARDS",
)
