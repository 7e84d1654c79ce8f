"""Files that are not used: the error for one image, and the record of a file."""

from typing import NamedTuple


class BadImage(Exception):
    """One image cannot be used. `reason` is a short slug (truncated, too large, ...), `detail` has more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class BadFile(NamedTuple):
    """A file that is not used. Files of another suffix are in one record per suffix, named `*.txt`."""

    name: str
    reason: str
    """A short slug: empty, truncated, damaged, not an image, too large, too small, missing, hidden, ..."""
    detail: str
    size: int
    """Bytes; 0 where nobody looked."""
