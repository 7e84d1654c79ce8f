"""The names of very many files in little memory: their bytes in one buffer, their folders once.

A tuple of str takes about 90 bytes per file. Each read of a str changes its reference count, so a forked process copies
the whole memory page of every name that it reads. Buffers stay shared by all forked processes.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 16  # names between two conversions of offsets while all are gone through


def name_bytes(name: str) -> bytes:
    """The bytes of a file name, by which names are ordered and hashed whatever the locale is."""
    return name.encode("utf-8", "surrogateescape")


def printable(name: str) -> str:
    """`name` for people and logs: odd bytes, control and direction marks and backslashes are escaped."""
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in name)


def ancestors(folder: str) -> Iterator[tuple[str, str]]:
    """The steps to a folder that ends in `/`: `a/b/` -> ("", a), (a/, b)."""
    above = ""
    for name in folder.split("/")[:-1]:
        yield above, name
        above += f"{name}/"


class Texts(NamedTuple):
    """Strings of bytes in one buffer, 12 more bytes each."""

    text: bytes
    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]

    def strings(self) -> list[str]:
        return [_piece(self, i).decode("utf-8", "surrogateescape") for i in range(len(self.starts))]


class Names(Sequence[str]):
    """Paths with `/` between the parts, read like a tuple of str; bytes that are not UTF-8 are lone surrogates.

    The last part of a path costs its bytes and 16 more, a folder is stored once.
    """

    __slots__ = ("files", "folder", "folders")

    def __init__(self, files: Texts, folder: NDArray[np.int32], folders: Texts) -> None:
        self.files = files
        self.folder = folder  # for each file the place in `folders`
        self.folders = folders  # each with its `/`

    def __len__(self) -> int:
        return len(self.folder)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Names": ...
    def __getitem__(self, index: int | slice) -> "str | Names":
        if isinstance(index, slice):
            return self.take(index)
        return self.raw(index).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        text, starts, lengths = self.files
        last, prefix = -1, b""
        for at in range(0, len(self), CHUNK):
            some = (column[at : at + CHUNK].tolist() for column in (starts, lengths, self.folder))
            for start, length, number in zip(*some, strict=True):
                if number != last:
                    last, prefix = number, _piece(self.folders, number)
                yield (prefix + text[start : start + length]).decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Names, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"Names({len(self)}: {', '.join(self[:3])}{', ...' if len(self) > 3 else ''})"

    def raw(self, index: int) -> bytes:
        """The bytes of one name."""
        return _piece(self.folders, self.folder[index]) + _piece(self.files, index)

    def take(self, chosen: slice | NDArray[np.integer] | Sequence[int]) -> "Names":
        """Some of them, in the order of `chosen`; the text is shared."""
        chosen = chosen if isinstance(chosen, slice) else np.asarray(chosen, np.int64)
        text, starts, lengths = self.files
        return Names(Texts(text, starts[chosen], lengths[chosen]), self.folder[chosen], self.folders)

    def find(self, name: str) -> int | None:
        """The place of `name` among names that are sorted by their bytes."""
        wanted = name_bytes(name)
        at = bisect_left(range(len(self)), wanted, key=self.raw)
        return at if at < len(self) and self.raw(at) == wanted else None


def compact(names: Iterable[str]) -> Names:
    """The same names, in the same order."""
    folders: dict[bytes, int] = {}
    files, folder = list[bytes](), list[int]()
    for name in map(name_bytes, names):
        cut = name.rfind(b"/") + 1
        files.append(name[cut:])
        folder.append(folders.setdefault(name[:cut], len(folders)))
    return Names(_texts(files), np.array(folder, np.int32), _texts(folders))


class Folder(NamedTuple):
    """The files right in a folder."""

    prefix: bytes
    """Its path with a `/` at the end; empty for the root."""
    files: Texts
    """Sorted."""


def folder_of(path: str, files: Iterable[str]) -> Folder:
    """The record of a folder; `path` without `/` at the end."""
    return Folder(name_bytes(f"{path}/" if path else ""), _texts(sorted(map(name_bytes, files))))


def merge(folders: Sequence[Folder]) -> Names:
    """The names of all, sorted by the bytes of the whole path. No folder comes twice.

    The files of a folder stay together but for its subfolders, each of which comes where its name belongs.
    """
    folders = sorted(folders, key=lambda one: one.prefix)  # a folder comes right before all that is below it
    pieces, opened = list[tuple[int, int, int]](), list[list[int]]()  # (folder, first, last); [folder, files given]

    def give(until: int) -> None:
        number, first = opened[-1]
        pieces.append((number, first, until))
        opened[-1][1] = until

    for number, one in enumerate(folders):
        while opened and not one.prefix.startswith(folders[opened[-1][0]].prefix):
            give(len(folders[opened[-1][0]].files.starts))
            opened.pop()
        if opened:
            above = folders[opened[-1][0]]
            files, below = above.files, one.prefix[len(above.prefix) :]
            give(bisect_left(range(len(files.starts)), below, key=lambda i, files=files: _piece(files, i)))  # type: ignore[misc]
        opened.append([number, 0])
    while opened:
        give(len(folders[opened[-1][0]].files.starts))
        opened.pop()
    return _joined(folders, [piece for piece in pieces if piece[1] < piece[2]])


def _joined(folders: Sequence[Folder], pieces: Sequence[tuple[int, int, int]]) -> Names:
    offsets = np.cumsum([0, *(len(one.files.text) for one in folders)])
    starts = [folders[i].files.starts[first:last] + offsets[i] for i, first, last in pieces]
    lengths = [folders[i].files.lengths[first:last] for i, first, last in pieces]
    text = b"".join(one.files.text for one in folders)
    numbers = np.array([i for i, _, _ in pieces], np.int32)
    folder = np.repeat(numbers, [last - first for _, first, last in pieces])
    files = Texts(text, np.concatenate([np.zeros(0, np.int64), *starts]), np.concatenate([_NONE, *lengths]))
    return Names(files, folder, _texts(one.prefix for one in folders))


_NONE = np.zeros(0, np.int32)


def _texts(strings: Iterable[bytes]) -> Texts:
    strings = list(strings)
    lengths = np.fromiter(map(len, strings), np.int32, len(strings))
    ends = np.cumsum(lengths, dtype=np.int64)
    return Texts(b"".join(strings), ends - lengths, lengths)


def _piece(texts: Texts, index: int) -> bytes:
    start = int(texts.starts[index])
    return texts.text[start : start + int(texts.lengths[index])]
