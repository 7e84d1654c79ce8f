"""YOLO's layouts: the text file of each image, its split, and the names of the classes."""

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from nolabel.data.names import printable
from nolabel.data.splits import SPLITS
from nolabel.errors import DataError
from nolabel.evals.detection.boxes import (
    Annotated,
    Boxed,
    check_one_folder,
    files_below,
    folder_split,
    missing_pictures,
)
from nolabel.evals.detection.yolo_lines import Form, Line, find_form, read_line, to_annotated
from nolabel.evals.shared.trees import Tree, read_text, shown

YOLO_LABELS = ("labels", "polygons", "boxes")
"""Folders beside `images/` that hold a text file per image; polygons have boxes, too, and masks."""

BESIDE = ""
"""In place of a folder of labels: the text file is beside its image."""


class Pairs(NamedTuple):
    """Images with the names of their text files."""

    folder: str
    """labels, polygons or another folder in place of `images`, or BESIDE."""
    texts: dict[str, str]
    """By picture: its text file, which may be missing."""


def yolo_pairs(tree: Tree, labels_folder: str | None) -> Pairs | None:
    """The pairs of the folder that has text files for the most images; None where there is none.

    `images` may be anywhere in the path: images/train/x.jpg has labels/train/x.txt, train/images/x.jpg has
    train/labels/x.txt. A folder of labels may also mirror the whole tree (labels/train/x.txt of train/x.jpg), and
    text files may be beside their images.
    """
    files = {name for name in files_below(tree, "") if name.endswith(".txt")}
    choices = YOLO_LABELS if labels_folder is None else (labels_folder.strip("/"),)
    found = [_in_place_of_images(tree, folder) for folder in choices]
    found += [Pairs(f, {name: f"{f}/{_stem(name)}.txt" for name in tree.names if folder_split(name)}) for f in choices]
    if labels_folder is None:
        found.append(Pairs(BESIDE, {name: f"{_stem(name)}.txt" for name in tree.names if folder_split(name)}))
    best = max(found, key=lambda pairs: len(files.intersection(pairs.texts.values())))
    return best if files.intersection(best.texts.values()) else None


def _in_place_of_images(tree: Tree, folder: str) -> Pairs:
    texts = {}
    for name in tree.names:
        parts = _stem(name).split("/")
        if "images" in parts[:-1]:
            at = len(parts) - 2 - parts[:-1][::-1].index("images")
            texts[name] = "/".join([*parts[:at], folder, *parts[at + 1 :]]) + ".txt"
    return Pairs(folder, texts)


def scan_yolo(tree: Tree, labels_folder: str | None) -> Boxed:
    """The images that have text files, with their boxes. Raises DataError for what cannot be right."""
    pairs = yolo_pairs(tree, labels_folder)
    assert pairs is not None
    _check_suffixes(pairs)
    around = posixpath.commonpath([posixpath.dirname(name) for name in pairs.texts])
    top = [name for name in files_below(tree, "") if f"{around}/".startswith(f"{posixpath.dirname(name)}/".lstrip("/"))]
    names = _class_names(tree, pairs, top)
    lines: dict[str, list[Line]] = {}
    splits: dict[str, list[str]] = {}
    bare = 0
    for picture in sorted(pairs.texts):
        split, text = folder_split(picture), read_text(tree, pairs.texts[picture])
        if split is None:
            raise DataError(f"{printable(picture)} is in none of images/train, images/val and images/test.")
        bare += text is None
        rows = [row for row in (text or "").splitlines() if row.strip()]
        lines[picture] = [read_line(row, pairs.texts[picture], n, names) for n, row in enumerate(rows, 1)]
        splits.setdefault(split, []).append(picture)
    check_one_folder(splits)
    form = find_form([one for found in lines.values() for one in found], _keypoints(tree, top), pairs.folder)
    notes = [f"{bare} images without a text file count as empty"] if bare else []
    notes += [form.note] if form.note else []
    unmatched = _count_unmatched(tree, pairs)
    if unmatched:
        notes.append(f"{unmatched} text files of train without an image are left out")
    examples = {s: _examples(splits[s], lines, names, form) for s in SPLITS if s in splits}
    return Boxed(tree, "YOLO", examples, tuple(names.values()), True, notes)


def _check_suffixes(pairs: Pairs) -> None:
    """DataError where two images would have one text file."""
    pictures: dict[str, str] = {}
    for picture, text in sorted(pairs.texts.items()):
        if text in pictures:
            both = f"{printable(pictures[text])} and {printable(picture)}"
            raise DataError(f"{both} differ in the suffix only: keep one of them.")
        pictures[text] = picture


def _examples(
    pictures: Sequence[str], lines: Mapping[str, Sequence[Line]], names: Mapping[int, str], form: Form
) -> tuple[Annotated, ...]:
    numbers = {key: i for i, key in enumerate(names)}
    return tuple(to_annotated(picture, lines[picture], numbers, form) for picture in pictures)


def _class_names(tree: Tree, pairs: Pairs, top: Sequence[str]) -> dict[int, str]:
    """`id: name` of all files that name the classes; a list counts from 0. DataError where two files differ."""
    folders = {posixpath.dirname(text) for text in pairs.texts.values()} | {posixpath.dirname(name) for name in top}
    folders |= {root for text in pairs.texts.values() if (root := _label_root(text, pairs.folder))} | {""}
    named = ("classes.yaml", "classes.txt", "data.yaml")
    wanted = [posixpath.join(folder, file) for folder in sorted(folders) for file in named]
    others = [name for name in top if name.lower().endswith((".yaml", ".yml", ".names"))]
    found: dict[str, dict[int, str]] = {}
    for name in dict.fromkeys([*wanted, *sorted(others)]):
        text = read_text(tree, name)
        if text is None:
            continue
        names = _names_in(name, text)
        if names:
            found[name] = names
        elif name in wanted:
            raise DataError(f"{printable(name)} is no list of classes: expected `id: name` lines or one name per line.")
    if not found:
        folder = pairs.folder or "train"
        raise DataError(
            f"Nothing names the classes: expected data.yaml with `names:`, or {printable(folder)}/classes.txt."
        )
    (first, names), *more = found.items()
    for other, different in more:
        if different != names:
            raise DataError(
                f"{printable(first)} and {printable(other)} name the classes differently:\n"
                f"{_shown(names)}, and {_shown(different)}. Remove the one that is not of these boxes."
            )
    return dict(sorted(names.items()))


def _names_in(name: str, text: str) -> dict[int, str]:
    """The classes that a file names; {} for none."""
    try:
        plain = name.endswith((".txt", ".names"))
        found: Any = text.split("\n") if plain else yaml.safe_load(text)
        found = found.get("names", found) if isinstance(found, Mapping) else found
        pairs = found.items() if isinstance(found, Mapping) else enumerate(found)
        return {int(key): str(value).strip() for key, value in pairs if str(value).strip()}
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return {}


def _keypoints(tree: Tree, top: Sequence[str]) -> tuple[int, int] | None:
    """`kpt_shape` of a yaml: the number of keypoints, and of values of each. DataError where it cannot be."""
    for name in sorted(name for name in top if name.lower().endswith((".yaml", ".yml"))):
        try:
            found = yaml.safe_load(read_text(tree, name) or "")
        except (yaml.YAMLError, RecursionError):
            continue
        shape = found.get("kpt_shape") if isinstance(found, Mapping) else None
        if shape is None:
            continue
        if not (isinstance(shape, list) and len(shape) == 2 and type(shape[0]) is int and shape[1] in (2, 3)):
            raise DataError(f"{printable(name)} has kpt_shape {printable(str(shape))[:60]}: expected [number, 2 or 3].")
        return shape[0], shape[1]
    return None


def _count_unmatched(tree: Tree, pairs: Pairs) -> int:
    """The number of text files of train without an image. DataError for such a file in another split."""
    if pairs.folder == BESIDE:
        return 0  # any text may be beside images
    texts = set(pairs.texts.values())
    roots = {_label_root(text, pairs.folder) for text in texts}
    lost: dict[str, list[str]] = {}
    for name in sorted(files_below(tree, "")):
        root, file = _label_root(name, pairs.folder), posixpath.basename(name)
        if root in roots and name.endswith(".txt") and name not in texts and file != "classes.txt":
            split = folder_split(name)
            lost.setdefault(split or "", []).append(name.removeprefix(f"{root}/").removesuffix(".txt"))
    tested = [name for split, names in lost.items() if split not in ("train", "") for name in names]
    if tested:
        raise missing_pictures(f"{pairs.folder}/", tested)
    return len(lost.get("train", ()))


def _label_root(text: str, folder: str) -> str:
    """`a/labels` of a/labels/train/x.txt; an empty string where the folder is not in the path."""
    before, found, _ = f"/{text}".rpartition(f"/{folder}/")
    return f"{before}/{folder}".lstrip("/") if found and folder else ""


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _shown(names: Mapping[int, str]) -> str:
    return shown([f"{key} {value}" for key, value in sorted(names.items())], 6)
