"""COCO's JSON: the file of each split, the image of each entry, and its boxes."""

import json
import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nolabel.data.names import printable
from nolabel.data.splits import SPLITS, split_of, words
from nolabel.errors import DataError
from nolabel.evals.detection.boxes import (
    Annotated,
    Boxed,
    check_outline,
    files_below,
    make_objects,
    missing_pictures,
    text_of,
)
from nolabel.evals.shared.trees import Tree, shown

LISTS = ("images", "annotations", "categories")
OTHER_TASKS = ("captions", "panoptic", "stuff", "info")
"""Words in the names of COCO's files that hold no boxes."""

Id = int | str


def coco_files(tree: Tree) -> dict[str, str]:
    """The JSON file of each split, recognised by its own name or its folder's; instances come before keypoints.

    DataError where two files fit a split equally well.
    """
    ranked: dict[str, list[tuple[int, str]]] = {}
    for name in sorted(json_files(tree)):
        split = _split_of_file(name)
        rank = _rank(name)
        if split is not None and rank is not None and (_is_named_so(name) or _looks_like_coco(tree, name)):
            ranked.setdefault(split, []).append((rank, name))
    for split, files in ranked.items():
        best = [name for rank, name in files if rank == min(files)[0]]
        if len(best) > 1:
            raise DataError(
                f"Two files may be the boxes of {split}: {printable(best[0])} and {printable(best[1])}.\n"
                f"Keep one of them, or name it annotations/instances_{split}.json."
            )
    return {split: min(ranked[split])[1] for split in SPLITS if split in ranked}


def json_files(tree: Tree) -> list[str]:
    """The names of all JSON files, without hidden ones."""
    return [n for n in files_below(tree, "") if n.lower().endswith(".json") and not re.search(r"(^|/)(\.|__MAC)", n)]


def _split_of_file(name: str) -> str | None:
    """train of `instances_train2017.json`, `Train_default.json`, `train/annotations.json`; None without one split."""
    *folders, file = name.split("/")
    splits = {split for word in words(posixpath.splitext(file)[0]) if (split := split_of(word))}
    for folder in reversed(folders):
        if splits:
            break
        splits = {split for split in [split_of(folder)] if split}
    return splits.pop() if len(splits) == 1 else None


def _rank(name: str) -> int | None:
    """Order of the names of files with boxes, the surest first; None for those of other tasks."""
    stem = posixpath.splitext(posixpath.basename(name))[0]
    parts = words(stem)
    if any(word in OTHER_TASKS for word in parts):
        return None
    if "keypoints" in parts:
        return 4
    if parts[:1] == ["instances"]:
        return 0
    return 1 if split_of(stem) else 2 if stem == "_annotations.coco" else 3


def _is_named_so(name: str) -> bool:
    """Whether the name alone shows that the file holds boxes: if it is broken, that is then an error."""
    folder, file = posixpath.split(name)
    return file.startswith(("instances_", "_annotations.coco.")) or posixpath.basename(folder) == "annotations"


def _looks_like_coco(tree: Tree, name: str) -> bool:
    text = text_of(tree, name)
    return all(f'"{key}"' in text for key in LISTS)


def scan_coco(tree: Tree) -> Boxed:
    """The images and boxes of all splits. Raises DataError for entries that cannot be right."""
    splits: dict[str, tuple[Annotated, ...]] = {}
    names = dict[Id, str]()
    files, by_base = coco_files(tree), dict[str, list[str]]()
    for picture in sorted(tree.names):
        by_base.setdefault(posixpath.basename(picture), []).append(picture)
    for split, name in files.items():
        content = load_coco(text_of(tree, name), name)
        own = {key: str(one["name"]) for key, one in entries(content, "categories", ("id", "name"), name).items()}
        if splits and own != names:
            raise DataError(f"{printable(name)} has other categories than the other splits: expected the same.")
        names = own
        images = entries(content, "images", ("id", "file_name", "width", "height"), name)
        pictures = _pictures(tree, images, split, name, by_base)
        splits[split] = _read_split(content, images, pictures, names, name)
    return Boxed(tree, "COCO", splits, tuple(names[i] for i in ordered(names)), False, [], tuple(files.values()))


def load_coco(text: str, name: str) -> dict[str, Any]:
    """The content of a COCO file with its three lists. Raises DataError for another file."""
    try:
        content = json.loads(text, object_pairs_hook=_read_once)
        missing = [key for key in LISTS if not isinstance(content[key], list)]
    except DataError as error:
        raise DataError(f"{printable(name)}: {error}") from None
    except KeyError as error:
        missing = [str(error.args[0])]
    except (ValueError, TypeError, RecursionError):
        missing = list(LISTS)
    if missing:
        raise DataError(
            f"{printable(name)} is no COCO file: expected JSON with the lists {', '.join(LISTS)}.\n"
            f"It has no list {', '.join(missing)}."
        )
    loaded: dict[str, Any] = content
    return loaded


def _read_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of JSON. DataError for a key that is given twice: no reader of JSON agrees on which one counts."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = [printable(key)[:40] for key, count in counts.items() if count > 1]
        raise DataError(f"an entry gives {', '.join(twice[:4])} twice: expected every key once.")
    return mapping


def _is_crowd(one: Mapping[str, Any], picture: str) -> bool:
    """The mark of a group of objects. DataError for what is neither 0 nor 1, such as the text "0"."""
    value = one.get("iscrowd") or 0
    if value not in (0, 1):
        where = f"{printable(picture)}, annotation {one.get('id')}"
        raise DataError(f"{where}, has iscrowd {printable(repr(value))[:40]}: expected 0 or 1.")
    return bool(value)


def _side(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{value} is no number of pixels")
    return int(value)


def entries(content: Mapping[str, Any], kind: str, keys: Sequence[str], name: str) -> dict[Id, Mapping[str, Any]]:
    """The entries of a list by their ids. DataError names the entry that lacks one of `keys`, or an id twice."""
    by_id: dict[Id, Mapping[str, Any]] = {}
    for place, one in enumerate(content[kind]):
        where = f"{printable(name)}: {kind}[{place}]"
        check_entry(one, keys, where)
        key = identity(one["id"], f"{where} has the id")
        if key in by_id:
            raise DataError(f"{printable(name)}: the id {key} is twice in {kind}: expected every id once.")
        by_id[key] = one
    return by_id


def check_entry(one: Any, keys: Sequence[str], where: str) -> None:
    """DataError where an entry is no mapping, or lacks a key."""
    if not isinstance(one, Mapping):
        raise DataError(f"{where} is {printable(repr(one))[:60]}: expected a mapping with {', '.join(keys)}.")
    missing = [key for key in keys if one.get(key) is None]
    if missing:
        about = printable(json.dumps(one, default=str))[:120]
        raise DataError(f"{where} has no {' and no '.join(missing)}: {about}\nExpected {', '.join(keys)} in every one.")


def identity(value: Any, where: str) -> Id:
    """The id as a number if it is one, also in a text: "12" and 12 are the same id. Other texts are ids, too."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d+\s*", value):
        return int(value) if len(value) < 30 else value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        return value
    raise DataError(f"{where} {printable(repr(value))[:60]}: expected a number or a text.")


def ordered(ids: Mapping[Id, Any]) -> list[Id]:
    """Ids in their order: numbers, then texts."""
    return sorted(ids, key=lambda key: (isinstance(key, str), key))


def _pictures(
    tree: Tree, images: Mapping[Id, Mapping[str, Any]], split: str, name: str, by_base: Mapping[str, list[str]]
) -> dict[Id, str]:
    """The picture of each image, by id. DataError where one is missing, or where a name fits two pictures."""
    own = posixpath.dirname(name)
    folders = {posixpath.dirname(picture) for picture in tree.names}
    folders |= {folder.rpartition("/")[0] for folder in folders}
    first = [folder for folder in sorted(folders) if split_of(posixpath.basename(folder)) == split]
    first += [own, posixpath.dirname(own)]
    picture_of: dict[Id, str] = {}
    lost = []
    for key, image in images.items():
        asked = str(image["file_name"])
        parts = [p for p in re.sub(r"^[A-Za-z]:", "", asked.replace("\\", "/")).split("/") if p not in ("", ".", "..")]
        exact = [p for f in dict.fromkeys(first) if (p := posixpath.join(f, *parts)) in tree.names] if parts else []
        fitting = exact or _fitting(by_base.get(parts[-1] if parts else "", ()), parts, split)
        fitting = [p for p in fitting if "images" in p.split("/")] or fitting if len(fitting) > 1 else fitting
        if len(fitting) > 1:
            raise DataError(
                f"{printable(name)}: {printable(asked)} may be {printable(fitting[0])} or {printable(fitting[1])}.\n"
                "Write file_name with the folder of the image."
            )
        if fitting:
            picture_of[key] = fitting[0]
        else:
            lost.append(asked)
    if lost:
        raise missing_pictures(name, lost)
    return picture_of


def _fitting(candidates: Sequence[str], parts: Sequence[str], split: str) -> list[str]:
    """The pictures that share the most last parts with a name, none of them in the folder of another split."""
    scores: dict[str, int] = {}
    for picture in candidates:
        folders = picture.split("/")
        shared = 0
        while shared < min(len(parts), len(folders)) and parts[-1 - shared] == folders[-1 - shared]:
            shared += 1
        if all(split_of(folder) in (None, split) for folder in folders[: len(folders) - shared]):
            scores[picture] = shared
    return [picture for picture, score in scores.items() if score == max(scores.values())]


def _read_split(
    content: Mapping[str, Any],
    images: Mapping[Id, Mapping[str, Any]],
    pictures: Mapping[Id, str],
    names: Mapping[Id, str],
    name: str,
) -> tuple[Annotated, ...]:
    labels = {key: i for i, key in enumerate(ordered(names))}
    by_image: dict[Id, list[tuple[int, Mapping[str, Any]]]] = {key: [] for key in images}
    for place, one in enumerate(content["annotations"]):
        where = f"{printable(name)}: annotations[{place}]"
        check_entry(one, ("image_id", "category_id", "bbox"), where)
        image, category = (identity(one[key], f"{where} has the {key}") for key in ("image_id", "category_id"))
        if image not in by_image:
            raise DataError(f"{printable(name)}: annotation {one.get('id')} is of image {image}, not listed.")
        if category not in labels:
            raise DataError(
                f"{printable(name)}: annotation {one.get('id')} has category {category}, not listed.\n"
                f"Categories are {shown([str(key) for key in labels], 12)}."
            )
        box = one["bbox"]
        if not (isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)):
            raise DataError(
                f"{where} has the bbox {printable(repr(box))[:60]}: expected four numbers, x, y, width, height."
            )
        by_image[image].append((labels[category], one))
    return tuple(_annotated(images[key], by_image[key], pictures[key], name) for key in ordered(images))


def _annotated(
    image: Mapping[str, Any], annotations: Sequence[tuple[int, Mapping[str, Any]]], picture: str, name: str
) -> Annotated:
    # COCO itself has two boxes without width
    used = [(label, one) for label, one in annotations if one["bbox"][2] != 0 and one["bbox"][3] != 0]
    try:
        size = _side(image["height"]), _side(image["width"])
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (tuple(map(float, one["bbox"])) for _, one in used)]
    except (TypeError, ValueError, OverflowError) as error:
        where = f"{printable(name)} has an entry that can't be read, of {printable(picture)}"
        raise DataError(f"{where}: {printable(str(error))[:100]}.") from None
    outlined = all(one.get("segmentation") for _, one in used)
    for _, one in used if outlined else ():
        check_outline(one["segmentation"], size, f"{printable(picture)}, annotation {one.get('id')},")
    objects = make_objects(
        boxes,
        [label for label, _ in used],
        [_is_crowd(one, picture) for _, one in used],
        [one["segmentation"] for _, one in used] if outlined else None,
        size,
        printable(picture),
    )
    return Annotated(picture, size, objects)
