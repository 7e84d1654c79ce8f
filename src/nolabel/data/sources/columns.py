"""Text files that name images: one path per line, or a table (CSV, TSV, `path 0`, JSON) with a column of paths."""

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from nolabel.data.selection import SUFFIXES
from nolabel.data.splits import split_of

SAMPLE = 200
"""Number of lines by which the form of the text is judged."""

LABEL_WORDS = ("label", "labels", "class", "classname", "class_name", "category", "target", "species")
SPLIT_WORDS = ("split", "set", "subset", "partition", "phase")

_BOMS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_AFTER_SUFFIX = re.compile(rf"(.*?(?:{'|'.join(map(re.escape, SUFFIXES))}))[ \t]+(.*)", re.I)


class Rows(NamedTuple):
    """Paths in a text, with the columns beside them."""

    paths: list[str]
    labels: list[tuple[str, ...]] | None
    """(class,), (split, class) or () for each path; None where no column is that of the labels."""


Cells = list[str]


def text_encoding(start: bytes) -> str | None:
    """The encoding that the first bytes of a file mark, other than UTF-8; None for none."""
    return next((encoding for mark, encoding in _BOMS.items() if start.startswith(mark)), None)


def split_lines(data: bytes) -> list[str]:
    """The lines that are not empty, without line ends. In a text without a mark, bytes that are not UTF-8 are kept."""
    encoding = text_encoding(data)
    if encoding:
        return [line for line in data.decode(encoding).splitlines() if line.strip()]
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [os.fsdecode(line.removesuffix(b"\r")) for line in lines if line.strip()]


def read_rows(lines: Sequence[str], exists: Callable[[str], bool]) -> Rows:
    """The paths in the lines. `exists` returns whether there is a file at a path of the list.

    Where lines end like images and such files exist, each line is a path; else the lines are a table. ValueError shows
    a line where two columns may be the paths.
    """
    if (rows := _json(lines)) is not None:
        return _from_table(rows, lines)
    sample = lines[:SAMPLE]
    plain = [line for line in sample if _is_image(line)]
    if 2 * len(plain) > len(sample) and any(map(exists, plain)):
        return Rows(list(lines), None)
    tables = [[split(line) for line in sample] for split in _SPLITTERS]
    best = max(tables, key=lambda table: _worth(table, exists))
    worth = _worth(best, exists)
    if not worth[1] or (2 * len(plain) > len(sample) and not worth[0]):
        return Rows(list(lines), None)
    split = _SPLITTERS[tables.index(best)]
    return _from_table([split(line) for line in lines], lines)


def _is_image(path: str) -> bool:
    return path.lower().endswith(SUFFIXES)


def _by(delimiter: str) -> Callable[[str], Cells]:
    def split(line: str) -> Cells:
        cells = next(csv.reader([line.strip()], delimiter=delimiter, skipinitialspace=True), [])
        return [cell.strip().strip("'") for cell in cells]

    return split


def _after_the_path(line: str) -> Cells:
    """`my photo.jpg 3` -> the path, which may hold blanks, and what is after it."""
    match = _AFTER_SUFFIX.fullmatch(line.strip())
    return [match[1], *match[2].split()] if match else [line.strip()]


def _before_the_path(line: str) -> Cells:
    """`3 my photo.jpg` -> what is before the path, and the path."""
    return line.strip().split(None, 1)


_SPLITTERS = (*map(_by, "\t,;|"), _after_the_path, _before_the_path)


def _worth(table: Sequence[Cells], exists: Callable[[str], bool]) -> tuple[int, int]:
    """Value of a way to split lines: of its best column, the number of files that exist, and of cells like images."""
    width = max(map(len, table), default=0)
    columns = [[row[at] for row in table if len(row) > at and _is_image(row[at])] for at in range(width)]
    return max(((sum(map(exists, cells)), len(cells)) for cells in columns), default=(0, 0))


def _from_table(rows: Sequence[Cells], lines: Sequence[str]) -> Rows:
    """The column of paths, and that of labels."""
    header = rows[0] if rows and not any(map(_is_image, rows[0])) else None
    body = rows[1:] if header else rows
    width = max(map(len, body), default=0)
    counts = [sum(len(row) > at and _is_image(row[at]) for row in body) for at in range(width)]
    likely = [at for at, count in enumerate(counts) if 2 * count > len(body)]
    shown = (lines[1] if header and len(lines) > 1 else lines[0] if lines else "")[:120]
    if len(likely) > 1:
        raise ValueError(f"two columns of it are paths of images, such as in the line {shown}; expected one")
    if not likely:
        raise ValueError(f"no column of it is paths of images: its lines are like {shown}")
    (at,) = likely
    used = [row for row in body if len(row) > at]
    others = [i for i in range(width) if i != at]
    names = [cell.strip().lower() for cell in header] if header else []
    label = _only(others, names, LABEL_WORDS)
    split = _only([i for i in others if i != label], names, SPLIT_WORDS) if names else None
    label = label if label is not None or split is None else _only([i for i in others if i != split], names, ())
    paths = [row[at] for row in used]
    if label is None:
        return Rows(paths, None)
    return Rows(paths, _labels([row[label] if len(row) > label else "" for row in used], _column(used, split)))


def _only(columns: Sequence[int], names: Sequence[str], words: Sequence[str]) -> int | None:
    """The one column with a title in `words`; without such a title the only column that there is; else None."""
    named = [i for i in columns if i < len(names) and names[i] in words]
    chosen = named or (columns if not names or words != SPLIT_WORDS else [])
    return chosen[0] if len(chosen) == 1 else None


def _column(rows: Sequence[Cells], at: int | None) -> list[str] | None:
    return None if at is None else [row[at] if len(row) > at else "" for row in rows]


def _labels(classes: Iterable[str], splits: Sequence[str] | None) -> list[tuple[str, ...]]:
    known = [split_of(name) for name in splits] if splits else []
    if any(known):
        return [(split, name) if split and name else () for split, name in zip(known, classes, strict=True)]
    return [(name,) if name else () for name in classes]


def _json(lines: Sequence[str]) -> list[Cells] | None:
    """The rows of JSON: a list, an object of paths and labels, or an object per line; None for other text."""
    if not lines or lines[0].lstrip()[:1] not in ("[", "{"):
        return None
    try:
        content = json.loads("\n".join(lines))
    except (ValueError, RecursionError):
        try:
            content = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            return None
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        if all(_is_image(str(key)) for key in content):  # an object of paths and labels
            content = [[str(key), value] for key, value in content.items()]
        else:
            content = lists[0] if len(lists) == 1 else [content]
    keys = dict.fromkeys(key for one in content if isinstance(one, dict) for key in one)
    rows = [list(map(str, keys))] if keys else []
    return rows + [_cells(one, list(keys)) for one in content]


def _cells(one: Any, keys: Sequence[str]) -> Cells:
    if isinstance(one, dict):
        one = [one.get(key) for key in keys]
    cells = one if isinstance(one, list) else [one]
    return ["" if cell is None else cell if isinstance(cell, str) else json.dumps(cell) for cell in cells]
