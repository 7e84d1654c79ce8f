"""Lists of hashes: `SHA256  NAME` lines, and what differs between two of them."""

import fnmatch
from collections.abc import Mapping

Hashes = Mapping[str, str]


def selected(name: str, pattern: str) -> bool:
    """Whether --only PATTERN asks for the item: a part of its name, or a shell pattern for a part of it."""
    return fnmatch.fnmatchcase(name, f"*{pattern}*")


def format_hashes(hashes: Hashes) -> str:
    """The lines, sorted by name."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))


def parse_hashes(text: str) -> dict[str, str]:
    """The inverse of `format_hashes`."""
    pairs = (line.split("  ", 1) for line in text.splitlines() if line)
    return {name: digest for digest, name in pairs}


def differences(old: Hashes, new: Hashes, pattern: str = "") -> dict[str, list[str]]:
    """The selected items that "moved", are "new" or have "vanished", by these words; each sorted."""
    chosen = [name for name in sorted(old.keys() | new.keys()) if selected(name, pattern)]
    return {
        "moved": [name for name in chosen if name in old and name in new and old[name] != new[name]],
        "new": [name for name in chosen if name not in old],
        "vanished": [name for name in chosen if name not in new],
    }
