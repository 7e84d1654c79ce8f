"""Boxes and polygons in YOLO's text files: one per image, one object per line, in shares of the image."""

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from nolabel.data.names import printable
from nolabel.errors import DataError
from nolabel.evals.detection.boxes import (
    SPLITS,
    Annotated,
    Boxed,
    files_below,
    has_file,
    make_objects,
    missing_pictures,
    split_of,
)
from nolabel.evals.shared.trees import Tree, below, read_text, shown

YOLO_LABELS = ("labels", "polygons", "boxes")
"""Folders beside `images/` that hold a text file per image; polygons have boxes, too, and masks."""


def yolo_folder(tree: Tree, labels_folder: str | None) -> str | None:
    """The folder that holds text files for the most images of `images/`; None where none holds one."""
    names = [name for name in sorted(tree.names) if name.startswith("images/")]
    stems = [posixpath.splitext(name.removeprefix("images/"))[0] for name in names]
    choices = YOLO_LABELS if labels_folder is None else (labels_folder.strip("/"),)
    counts = {folder: sum(has_file(tree, f"{folder}/{stem}.txt") for stem in stems) for folder in choices}
    best = max(counts, key=lambda folder: counts[folder])
    return best if counts[best] else None


def scan_yolo(tree: Tree, labels_folder: str | None) -> Boxed:
    """The images of `images/` with the boxes of a folder beside it. Raises DataError for what cannot be right."""
    folder = yolo_folder(tree, labels_folder)
    assert folder is not None
    names, pictures = _yolo_names(tree, folder), below(tree, "images")
    splits: dict[str, list[Annotated]] = {}
    bare, numbers = 0, {key: i for i, key in enumerate(names)}
    for key, picture in pictures.items():
        split = split_of(key.split("/")[0]) if "/" in key else None
        text = read_text(tree, f"{folder}/{key}.txt")
        if split is None:
            raise DataError(f"{printable(picture)} is in none of images/train, images/val and images/test.")
        bare += text is None
        rows = (text or "").splitlines()
        splits.setdefault(split, []).append(_yolo_image(rows, f"{folder}/{key}.txt", picture, numbers))
    notes = [f"{bare} images without a text file count as empty"] if bare else []
    lonely = _lonely(tree, folder, pictures)
    if lonely:
        notes.append(f"{lonely} text files of train without an image are left out")
    ordered = {split: tuple(splits[split]) for split in SPLITS if split in splits}
    return Boxed(tree, "YOLO", ordered, tuple(names.values()), True, notes)


def _yolo_image(rows: Sequence[str], name: str, picture: str, numbers: Mapping[int, int]) -> Annotated:
    """`class cx cy width height` or `class x1 y1 x2 y2 x3 y3 ...` a line, all as shares of the image."""
    boxes, labels, outlines = list[tuple[float, ...]](), list[int](), list[Any]()
    for number, row in enumerate((row for row in rows if row.strip()), 1):
        where = f"{printable(name)}, line {number},"
        try:
            key, values = int(row.split()[0]), [float(value) for value in row.split()[1:]]
        except ValueError:
            raise DataError(f"{where} is no list of numbers: {printable(row[:60])}.") from None
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise DataError(f"{where} has {len(values)} numbers after the class: expected 4, or pairs of a polygon.")
        if key not in numbers:
            raise DataError(
                f"{where} has class {key}, which has no name. Classes are {shown([*map(str, numbers)], 12)}."
            )
        if len(values) == 4:
            x, y, w, h = values
            boxes.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        else:
            boxes.append((min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])))
            outlines.append([values])
        labels.append(numbers[key])
    masks = outlines if len(outlines) == len(boxes) else None
    objects = make_objects(boxes, labels, [False] * len(boxes), masks, (1, 1), printable(name))
    return Annotated(picture, None, objects)


def _yolo_names(tree: Tree, folder: str) -> dict[int, str]:
    """`id: name` of classes.yaml or .txt beside the boxes, or of data.yaml; a list counts from 0."""
    for name in (f"{folder}/classes.yaml", f"{folder}/classes.txt", "data.yaml", "classes.yaml", "classes.txt"):
        text = read_text(tree, name)
        if text is None:
            continue
        try:
            found: Any = text.split("\n") if name.endswith(".txt") else yaml.safe_load(text)
            found = found.get("names", found) if isinstance(found, Mapping) else found
            pairs = found.items() if isinstance(found, Mapping) else enumerate(found)
            names = {int(key): str(value).strip() for key, value in pairs if str(value).strip()}
        except (yaml.YAMLError, ValueError, TypeError):
            names = {}
        if not names:
            raise DataError(f"{printable(name)} is no list of classes: expected `id: name` lines or one name a line.")
        return dict(sorted(names.items()))
    raise DataError(f"Nothing names the classes: expected data.yaml with `names:`, or {folder}/classes.txt.")


def _lonely(tree: Tree, folder: str, pictures: Mapping[str, str]) -> int:
    """Number of text files of train without an image. DataError where one of another split has none."""
    names = files_below(tree, f"{folder}/")
    keys = [name.removeprefix(f"{folder}/").removesuffix(".txt") for name in names if name.endswith(".txt")]
    lost = [key for key in sorted(keys) if key not in pictures and "/" in key]
    tested = [key for key in lost if split_of(key.split("/")[0]) != "train"]
    if tested:
        raise missing_pictures(f"{folder}/", tested)
    return len(lost)
