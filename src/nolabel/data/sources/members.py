"""Members of a zip or of shards: a table of names, sizes and checksums that forked processes share."""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nolabel.data.bad_files import BadImage
from nolabel.data.names import Names

MAX_MEMBER_BYTES = 256_000_000  # uncompressed


class Members(NamedTuple):
    """All members but folders."""

    names: Names
    """Sorted by their bytes."""
    rows: NDArray[np.void]
    """For each name its `size` in bytes and its `crc`, a CRC-32; more columns give its place."""

    def place(self, name: str) -> int:
        """The row of a member to read. Raises KeyError, and BadImage where it is too large."""
        at = self.names.find(name)
        if at is None:
            raise KeyError(name)
        size = self.rows["size"][at]
        if size > MAX_MEMBER_BYTES:
            raise BadImage("too large", f"{size:,} bytes, more than {MAX_MEMBER_BYTES:,} in an archive")
        return at

    def checked(self, at: int, data: bytes) -> bytes:
        """The same bytes, if they are those of this row. Raises BadZipFile."""
        row = self.rows[at]
        if len(data) != row["size"] or zlib.crc32(data) != row["crc"]:
            raise zipfile.BadZipFile(f"Bad CRC-32 for file {self.names[at]!r}")
        return data

    def facts(self, names: Sequence[str]) -> Iterator[tuple[int, int] | None]:
        """Size and CRC-32 of each; None where it is missing."""
        sizes, checksums = self.rows["size"].tolist(), self.rows["crc"].tolist()
        known = dict(zip(self.names, zip(sizes, checksums, strict=True), strict=True))
        return map(known.get, names)

    def below(self, folder: str) -> list[str]:
        """The names that begin with `folder`."""
        return [name for name in self.names if name.startswith(folder)]
