"""Files that are not used: the error for one image, and the record of a file."""

from typing import NamedTuple

MAX_BAD_SHARE = 0.05


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


def too_many_bad(num_bad: int, num_seen: int, num_images: int) -> bool:
    """Whether more than 5 % of the files seen are bad, judged once max(200, 5 % of all), or all, are seen."""
    enough = min(num_images, max(200, MAX_BAD_SHARE * num_images))
    return num_seen >= enough and num_bad > MAX_BAD_SHARE * num_seen
