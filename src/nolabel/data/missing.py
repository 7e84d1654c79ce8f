"""Files that DATA names but that are missing, refused above 5 %; and pictures with other suffixes, reported."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nolabel.data.bad_files import MAX_BAD_SHARE, BadFile
from nolabel.data.content import NUM_BYTES, describe_content
from nolabel.data.names import Names, printable
from nolabel.data.sources.source import MISSING, UNREADABLE, Source
from nolabel.errors import DataError

MOST_BYTES = 64_000_000
"""Largest file whose first bytes are looked at: a member of a zip has to be read as a whole for them."""

SYSTEM_FOLDERS = ("lost+found", "System Volume Information", "$RECYCLE.BIN")
"""Folders that the system makes on a disk. Nobody may list them, and they hold no data."""

_FIRST = ", the first is "
"""Words in the detail of a skipped file, between the number of such files and the name of the first."""


class Missing(NamedTuple):
    """Files and folders of DATA that cannot be reached."""

    files: list[str]
    """Names of links to nothing, and paths in a list at which there is no file."""
    folders: list[str]
    """Names of folders that cannot be listed."""


def find_missing(skipped: Sequence[BadFile]) -> Missing:
    """The files and folders that should be there, among those that the scan left out."""
    files = [bad.name for bad in skipped if bad.reason == "missing" and not bad.name.endswith("/")]
    folders = [bad.name for bad in skipped if bad.reason == "unreadable folder"]
    return Missing(files, [name for name in folders if name.rstrip("/").rpartition("/")[2] not in SYSTEM_FOLDERS])


def is_incomplete(names: Sequence[str], skipped: Sequence[BadFile]) -> bool:
    """Whether more than 5 % of the files are missing, or more than 5 % of the folders cannot be listed."""
    files, folders = find_missing(skipped)
    listed = len(names.folders.starts) if isinstance(names, Names) else 1
    too_many_files = len(files) > MAX_BAD_SHARE * (len(files) + len(names))
    return too_many_files or len(folders) > MAX_BAD_SHARE * (len(folders) + listed)


def check_missing(names: Sequence[str], skipped: Sequence[BadFile], data: str | Path) -> None:
    """DataError where DATA is incomplete (`is_incomplete`). Nothing is judged where there is no image at all."""
    if not names or not is_incomplete(names, skipped):
        return
    files, folders = find_missing(skipped)
    counts = [f"{len(files):,} of {len(files) + len(names):,} files are missing"] if files else []
    counts += [f"{len(folders)} folders cannot be listed"] if folders else []
    raise DataError(
        f"{printable(str(data))}: {' and '.join(counts)}, more than 5 %.\n"
        f"The first is {printable((files + folders)[0])}. Is a disk not mounted, or was the data moved?\n"
        "Bring them back, or take their lines, links or folders out: the rest alone would be other data."
    )


def describe_missing(names: Sequence[str], skipped: Sequence[BadFile]) -> list[str]:
    """A line on files that are missing and folders that cannot be listed, where there are any."""
    files, folders = find_missing(skipped)
    lines = []
    if files:
        total = len(files) + len(names)
        lines.append(f"{len(files):,} of {total:,} files are missing; the first is {printable(files[0])}")
    if folders:
        lines.append(f"{len(folders)} folders cannot be listed; the first is {printable(folders[0])}")
    return lines


def describe_unused(source: Source, root: str, skipped: Sequence[BadFile]) -> str:
    """A line on files of other suffixes that are pictures, or hold some, by their content; empty for none.

    One file of each suffix is opened.
    """
    kinds: dict[str, list[str]] = {}
    for bad in skipped:
        number, _, first = bad.detail.partition(_FIRST)
        if bad.reason == "other suffix" and first and (kind := describe_content(_start(source, root, first))):
            suffix = bad.name.removeprefix("*") or "without suffix"
            kinds.setdefault(kind, []).append(f"{number.partition(' ')[0]} {suffix}")
    parts = [f"{', '.join(counts)} ({kind})" for kind, counts in kinds.items()]
    return f"not used: {printable('; '.join(parts))}" if parts else ""


def _start(source: Source, root: str, name: str) -> bytes:
    """The first bytes of a file; none where it is large or cannot be read."""
    try:
        (facts,) = source.facts(root, [name])
        if facts is None or facts[0] > MOST_BYTES:
            return b""
        return source.read(root, name)[:NUM_BYTES]
    except (*MISSING, *UNREADABLE):
        return b""
