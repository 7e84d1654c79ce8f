"""Ground truth of instance retrieval in revisitop's layout, as JSON: which images answer which query, and how hard."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from nolabel.data.images import Images, scan
from nolabel.data.names import printable
from nolabel.errors import DataError
from nolabel.evals.retrieval.ranking import Truth

PATTERN = "gnd*.json"
LEVELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""Kinds that are right, and kinds that are left out, at each level (Radenović et al. 2018)."""

_KEYS = {"easy", "hard", "junk", "bbx"}
Box = tuple[float, float, float, float]


class GroundTruth(NamedTuple):
    """Queries, database, and who answers whom."""

    queries: Images
    database: Images
    truths: dict[str, list[Truth]]
    """By level, one per query; indices are those of `database`."""
    boxes: list[Box | None]
    """Left, top, right, bottom of the object in each query, in pixels."""
    fingerprint: str
    """16 hexadecimal digits of SHA-256 of the JSON file."""


def find_ground_truth(data: str | Path) -> tuple[Images, str | None]:
    """The images of DATA and the name of the only gnd*.json in the root of a folder or zip, None where there is none.

    Raises DataError where there are several.
    """
    images = scan(data)
    names = [name for name in images.source.files_on_top(images.root) if fnmatch(name.split("/")[-1], PATTERN)]
    if len(names) > 1:
        raise DataError(
            f"{_shown(data)} holds several ground truths: {', '.join(sorted(names)[:5])}. Keep one of them."
        )
    return images, names[0] if names else None


def ground_truth(data: str | Path) -> GroundTruth:
    """The ground truth of DATA with its images. Raises DataError for all that does not fit."""
    images, file = find_ground_truth(data)
    if file is None:
        raise DataError(
            f"{_shown(data)} holds no {PATTERN}.\n"
            "Expected a folder or zip of jpg/ with the images and gnd.json with imlist, qimlist and gnd.\n"
            "docs/evals/retrieval.md shows how to convert revisitop's gnd_*.pkl."
        )
    content = images.source.read(images.root, file)
    database, queries, entries = _parse(content, file)
    _check_entries(entries, database, queries, file)
    names = _file_names([*database, *queries], images, file)
    return GroundTruth(
        queries=images._replace(names=tuple(names[q] for q in queries)),
        database=images._replace(names=tuple(names[d] for d in database)),
        truths={
            level: [Truth(*([i for kind in kinds for i in entry.get(kind, [])] for kinds in rule)) for entry in entries]
            for level, rule in LEVELS.items()
        },
        boxes=[tuple(map(float, entry["bbx"])) if entry.get("bbx") else None for entry in entries],  # type: ignore[misc]
        fingerprint=hashlib.sha256(content).hexdigest()[:16],
    )


def _parse(content: bytes, file: str) -> tuple[list[str], list[str], list[Mapping[str, Any]]]:
    try:
        truth = json.loads(content)
        database, queries, entries = (truth[key] for key in ("imlist", "qimlist", "gnd"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{file} cannot be read ({type(error).__name__}: {printable(str(error))[:200]}).\n"
            "Expected a JSON object of imlist, qimlist (names of images) and gnd (an object for each query)."
        ) from None
    good = all(isinstance(part, list) and part for part in (database, queries, entries))
    if not (good and all(isinstance(name, str) for name in [*database, *queries]) and len(queries) == len(entries)):
        raise DataError(
            f"{file}: imlist, qimlist and gnd must be lists that are not empty, the first two of names,\n"
            "and gnd must be as long as qimlist."
        )
    return database, queries, entries


def _check_entries(entries: Sequence[Any], database: Sequence[str], queries: Sequence[str], file: str) -> None:
    """DataError for indices that don't exist, answers of two kinds, invalid boxes, and images listed twice."""
    places = {name: i for i, name in enumerate(database)}
    if len(places) < len(database):
        raise DataError(f"{file}: an image is twice in imlist, so it would be found twice. Keep it once.")
    for query, entry in zip(queries, entries, strict=True):
        where = f"{file}, query {printable(query)}"
        odd = sorted(entry.keys() - _KEYS) if isinstance(entry, dict) else []
        if odd:  # such as `ok` of the old ground truth of Oxford: its answers would be lost in silence
            raise DataError(f"{where}: {printable(str(odd[0]))} is none of easy, hard, junk and bbx.")
        kinds: list[Any] = [entry.get(k, []) if isinstance(entry, dict) else None for k in ("easy", "hard", "junk")]
        if not all(isinstance(kind, list) and all(type(i) is int for i in kind) for kind in kinds):
            raise DataError(f"{where}: easy, hard and junk must be lists of indices of imlist.")
        indices = [i for kind in kinds for i in kind]
        wrong = [i for i in indices if not 0 <= i < len(database)]
        if wrong:
            raise DataError(f"{where}: index {wrong[0]} is not in imlist, which has {len(database)} images, from 0.")
        if len(set(indices)) < len(indices):
            raise DataError(f"{where}: an image is listed twice, or as two of easy, hard and junk.")
        if places.get(query, -1) not in [-1, *kinds[2]]:
            raise DataError(f"{where}: it is also in imlist and would find itself. List it as its own junk.")
        _check_box(entry.get("bbx"), where)


def _check_box(box: Any, where: str) -> None:
    if box and not (
        isinstance(box, list)
        and len(box) == 4
        and all(type(side) in (int, float) and math.isfinite(side) for side in box)
        and box[0] < box[2]
        and box[1] < box[3]
    ):
        raise DataError(f"{where}: bbx must be left, top, right and bottom in pixels, not {str(box)[:80]}.")


def _file_names(wanted: Sequence[str], images: Images, file: str) -> dict[str, str]:
    """The name below the root of each image in the ground truth, which may lack folder and suffix."""
    files: dict[str, list[str]] = {}
    for name in images.names:
        base = name.rsplit("/", 1)[-1]
        for key in {name, base, os.path.splitext(base)[0]}:
            files.setdefault(key, []).append(name)
    missing = [name for name in wanted if name not in files]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"{file} names images that {_shown(images.root)} does not hold: "
            f"{printable(', '.join(missing[:5]))}{more}.\nExpected them in jpg/, with or without suffix in the names."
        )
    unsure = [name for name in wanted if len(files[name]) > 1]
    if unsure:
        raise DataError(f"{file}: {printable(unsure[0])} may be {printable(' or '.join(files[unsure[0]][:3]))}.")
    return {name: files[name][0] for name in wanted}


def _shown(data: str | Path) -> str:
    return printable(str(data))
