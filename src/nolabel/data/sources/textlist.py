"""A text file of paths: one per line, or a column of a table; absolute, or relative to the folder of the text file."""

import os
from collections.abc import Iterator, Sequence

from nolabel.data.selection import SUFFIXES, Entry, inside, is_junk, select
from nolabel.data.sources.columns import Rows, read_rows, split_lines, text_encoding
from nolabel.data.sources.folder import check_file, facts, has, read
from nolabel.data.sources.source import Listing, Source, Tops

START = 4096  # bytes by which a text is recognised


def recognises(path: str) -> bool:
    """Whether the file is text, and not an image by its name. Raises OSError where it cannot be opened."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        start = file.read(START)
    return (b"\0" not in start or bool(text_encoding(start))) and not path.lower().endswith(SUFFIXES)


def list_images(path: str, tops: Tops) -> Listing:
    """The images in the list, with its labels; a file that is missing is left out.

    Raises ValueError where no file of the list is there, and for an image with two labels.
    """
    folder = os.path.dirname(path)
    with open(path, "rb") as file:
        lines = split_lines(file.read())
    rows = read_rows(lines, lambda name: "\0" not in name and os.path.exists(os.path.join(folder, name)))
    entries = list(_entries(folder, rows.paths))
    names, skipped = select(inside(entries, tops or ()))
    if not names:
        _check_some(folder, lines, entries)
    return Listing(folder, names, skipped, _labels_of(names, rows))


def _entries(folder: str, paths: Sequence[str]) -> Iterator[Entry]:
    seen = set[str]()
    for name in paths:
        if name in seen:
            yield Entry(name, "listed twice")
        elif is_junk(os.path.basename(name)) or "__MACOSX" in name.split("/"):
            yield Entry(name, "hidden")
        else:
            yield check_file(name, os.path.join(folder, name))
        seen.add(name)


def _check_some(folder: str, lines: Sequence[str], entries: Sequence[Entry]) -> None:
    """ValueError where all files are missing, with the path that was tried, or where no line is a path of an image."""
    named = [entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES)]
    if lines and not named:
        raise ValueError(f"no line of it is the path of an image, its first is {lines[0][:120]}")
    missing = [entry.name for entry in entries if entry.problem == "missing" and entry.name in set(named[:1])]
    if missing and all(entry.problem == "missing" for entry in entries):
        tried = os.path.join(folder, missing[0])
        where = "" if os.path.isabs(missing[0]) else ", as paths are relative to the folder of the list"
        here = os.path.exists(missing[0]) and not os.path.isabs(missing[0])
        advice = (
            f"; it is there from the current folder: put the list into {os.getcwd()}, or write whole paths"
            if here
            else ""
        )
        raise ValueError(f"none of its {len(entries)} files is there. The first was tried at {tried}{where}{advice}")


def _labels_of(names: Sequence[str], rows: Rows) -> list[tuple[str, ...]] | None:
    """The label of each name. ValueError for a path that is listed twice with two labels."""
    if rows.labels is None:
        return None
    labels: dict[str, tuple[str, ...]] = {}
    for path, label in zip(rows.paths, rows.labels, strict=True):
        if labels.setdefault(path, label) != label:
            raise ValueError(f"{path} is listed twice, as {'/'.join(labels[path])} and as {'/'.join(label)}")
    return [labels[name] for name in names]


SOURCE = Source(
    recognises,
    list_images,
    read,
    facts,
    has,
    has_folders=False,
    unreadable="{data} cannot be read as a list of images: {error}.\n"
    "Expected one path per line, or a table with one column of paths.",
)
