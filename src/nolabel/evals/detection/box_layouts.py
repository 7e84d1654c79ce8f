"""Three layouts of images with boxes, two of them read here; docs/evals/detection.md shows the trees."""

import json
import posixpath
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from nolabel.data.names import printable
from nolabel.errors import DataError
from nolabel.evals.detection.boxes import (
    SPLITS,
    Annotated,
    Boxed,
    check_outline,
    has_file,
    make_objects,
    missing_pictures,
    open_boxed,
    split_of,
    text_of,
)
from nolabel.evals.detection.yolo import scan_yolo, yolo_folder
from nolabel.evals.shared.trees import Tree, below, check_once, shown
from nolabel.randomness import generator


def scan_boxed(data: str | Path, labels_folder: str | None = None) -> Boxed:
    """The images and boxes of DATA, a folder or zip; `labels_folder` holds the text files of YOLO.

    Raises DataError for other trees, boxes outside of their image, classes that nothing names, and annotations of
    images that are not there.
    """
    layout, tree = find_boxes(data, labels_folder)
    if layout == "COCO":
        boxed = _coco(tree)
    else:
        boxed = _voc(tree) if layout == "PASCAL VOC" else scan_yolo(tree, labels_folder)
    check_once({split: [one.picture for one in examples] for split, examples in boxed.splits.items()})
    if len(set(boxed.classes)) < len(boxed.classes):
        raise DataError(f"Two classes have the same name: {shown(sorted(boxed.classes), 12)}.")
    return boxed


def find_boxes(data: str | Path, labels_folder: str | None = None) -> tuple[str, Tree]:
    """The layout of DATA and its tree; opens no image. DataError where it holds no images with boxes."""
    for layout, marks in (
        ("COCO", lambda tree: bool(_coco_files(tree))),
        ("PASCAL VOC", lambda tree: bool(_voc_lists(tree))),
        ("YOLO", lambda tree: yolo_folder(tree, labels_folder) is not None),
    ):
        tree = open_boxed(data, marks)
        if tree is not None:
            return layout, tree
    raise DataError(
        f"{printable(str(data))} holds no images with boxes.\n"
        "Expected COCO (annotations/instances_train2017.json, train2017/), PASCAL VOC (JPEGImages/, Annotations/,\n"
        "ImageSets/Main/train.txt) or YOLO (images/train/X.jpg, labels/train/X.txt, data.yaml)."
    )


def _coco_files(tree: Tree) -> dict[str, tuple[str, str]]:
    """By split: the JSON file and the folder of its images."""
    folders = {posixpath.dirname(name) for name in tree.names}
    found: dict[str, tuple[str, str]] = {}
    for folder in sorted(folders):
        parts = folder.split("/")
        split = split_of(parts[-1])
        if split is None or parts[:-1] not in ([], ["images"]):
            continue
        choices = (f"annotations/instances_{parts[-1]}.json", f"annotations/{parts[-1]}.json")
        for name in (*choices, f"{folder}/_annotations.coco.json"):
            if split not in found and has_file(tree, name):
                found[split] = name, folder
    return found


def _coco(tree: Tree) -> Boxed:
    splits: dict[str, tuple[Annotated, ...]] = {}
    names, notes = dict[int, str](), list[str]()
    for split in SPLITS:
        if split in _coco_files(tree):
            name, folder = _coco_files(tree)[split]
            content = load_coco(text_of(tree, name), name)
            own = {int(c["id"]): str(c["name"]) for c in content["categories"]}
            if splits and own != names:
                raise DataError(f"{printable(name)} has other categories than the other splits: expected the same.")
            names = own
            splits[split] = _coco_split(tree, content, name, folder)
    return Boxed(tree, "COCO", splits, tuple(names[i] for i in sorted(names)), False, notes)


def load_coco(text: str, name: str) -> dict[str, Any]:
    """The content of a COCO file with its three lists. Raises DataError for another file."""
    try:
        content = json.loads(text)
        lists = [content[key] for key in ("images", "annotations", "categories")]
    except (ValueError, KeyError, TypeError, RecursionError):
        lists = []
    if not lists or not all(isinstance(found, list) for found in lists):
        raise DataError(
            f"{printable(name)} is no COCO file: expected JSON with the lists images, annotations, categories."
        )
    loaded: dict[str, Any] = content
    return loaded


def write_share(source: Path, target: Path, fraction: float, seed: int) -> int:
    """Write a COCO file with a share of the images of another, and return their number: such as a tenth of COCO.

    Drawn as `--fraction` and `--split-seed` draw them, images in the order of their ids. No image is needed.
    """
    content = load_coco(source.read_text(encoding="utf-8"), source.name)
    rows = draw_share(len(content["images"]), fraction, seed)
    target.write_text(_share_of(content, rows), encoding="utf-8")
    return len(rows)


def split_file(boxed: Boxed, rows: Sequence[int], fraction: float) -> tuple[str, str]:
    """These images of train for other tools, as the name and the text of a file.

    Of COCO's layout a COCO file, named as in the protocol (`instances_train2017_0.1.json`); else the images' names.
    """
    if boxed.layout != "COCO":
        return f"train_{fraction:g}.txt", "".join(f"{boxed.splits['train'][row].picture}\n" for row in rows)
    name, _ = _coco_files(boxed.tree)["train"]
    stem = posixpath.splitext(posixpath.basename(name))[0]
    return f"{stem}_{fraction:g}.json", _share_of(load_coco(text_of(boxed.tree, name), name), rows)


def _share_of(content: Mapping[str, Any], rows: Sequence[int]) -> str:
    images = sorted(content["images"], key=lambda image: int(image["id"]))
    chosen = [images[row] for row in rows]
    ids = {image["id"] for image in chosen}
    kept = [one for one in content["annotations"] if one["image_id"] in ids]
    return json.dumps({**content, "images": chosen, "annotations": kept})


def draw_share(count: int, fraction: float, seed: int) -> list[int]:
    """Rows of `count` images that are in a share, at least one; of one seed a smaller share is part of a larger one."""
    wanted = max(1, round(fraction * count))
    chosen: list[int] = generator("share", seed).permutation(count)[:wanted].tolist()
    return sorted(chosen)


def _coco_split(tree: Tree, content: Mapping[str, Any], name: str, folder: str) -> tuple[Annotated, ...]:
    try:
        for kind in ("images", "categories"):
            ids = [int(one["id"]) for one in content[kind]]
            if len(set(ids)) < len(ids):
                twice = next(i for i in ids if ids.count(i) > 1)
                raise DataError(f"{printable(name)}: the id {twice} stands twice in {kind}: expected every id once.")
        images = {int(image["id"]): image for image in content["images"]}
        pictures = {key: f"{folder}/{image['file_name']}" for key, image in images.items()}
        labels = {key: i for i, key in enumerate(sorted(int(c["id"]) for c in content["categories"]))}
        lost = [picture for picture in pictures.values() if picture not in tree.names]
        if lost:
            raise missing_pictures(name, lost)
        by_image: dict[int, list[Mapping[str, Any]]] = {key: [] for key in images}
        for one in content["annotations"]:
            if one["image_id"] not in by_image:
                raise DataError(
                    f"{printable(name)}: annotation {one.get('id')} is of image {one['image_id']}, not listed."
                )
            if one["category_id"] not in labels:
                raise DataError(
                    f"{printable(name)}: annotation {one.get('id')} has category {one['category_id']}, not listed.\n"
                    f"Categories are {shown([str(key) for key in labels], 12)}."
                )
            by_image[one["image_id"]].append(one)
        return tuple(_coco_image(images[key], by_image[key], labels, pictures[key]) for key in sorted(images))
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{printable(name)} has an entry that can't be read: {type(error).__name__} {error}.") from None


def _coco_image(
    image: Mapping[str, Any], found: Sequence[Mapping[str, Any]], labels: Mapping[int, int], picture: str
) -> Annotated:
    found = [one for one in found if one["bbox"][2] != 0 and one["bbox"][3] != 0]  # COCO itself has two without width
    size = int(image["height"]), int(image["width"])
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (one["bbox"] for one in found)]
    outlined = all(one.get("segmentation") for one in found)
    for one in found if outlined else ():
        check_outline(one["segmentation"], size, f"{printable(picture)}, annotation {one.get('id')},")
    objects = make_objects(
        boxes,
        [labels[one["category_id"]] for one in found],
        [bool(one.get("iscrowd", 0)) for one in found],
        [one["segmentation"] for one in found] if outlined else None,
        size,
        printable(picture),
    )
    return Annotated(picture, size, objects)


def _voc_lists(tree: Tree) -> dict[str, tuple[str, ...]]:
    """By split: the lists in ImageSets/Main; train and val together are train where there is a test."""
    found = {s: f"ImageSets/Main/{s}.txt" for s in ("train", "val", "trainval", "test")}
    there = {s for s, name in found.items() if has_file(tree, name)}
    if not any(name.startswith("JPEGImages/") for name in tree.names):
        return {}
    if "test" in there and "trainval" in there:
        return {"train": (found["trainval"],), "test": (found["test"],)}
    return {s: (found[s],) for s in SPLITS if s in there}


def _voc(tree: Tree) -> Boxed:
    pictures, splits = below(tree, "JPEGImages"), dict[str, tuple[Annotated, ...]]()
    names: list[str] = []
    for split, lists in _voc_lists(tree).items():
        keys = " ".join(text_of(tree, name) for name in lists).split()
        lost = [key for key in keys if key not in pictures]
        if lost:
            raise missing_pictures(lists[0], lost)
        roots = [(key, _parse_xml(text_of(tree, f"Annotations/{key}.xml"), key)) for key in keys]
        own = sorted({_text(one, "name", key) for key, root in roots for one in root.iter("object")})
        if split == "train":
            names = own
        unknown = [name for name in own if name not in names]
        if unknown:
            raise DataError(
                f"Objects in {split} of a class that train lacks: {shown(unknown)}.\n"
                f"Correct the name in Annotations/, or take their images out of {lists[0]}."
            )
        splits[split] = tuple(_voc_image(root, key, pictures[key], names) for key, root in roots)
    return Boxed(tree, "PASCAL VOC", splits, tuple(names), False, [])


def _parse_xml(text: str, key: str) -> Element:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # nothing of VOC has them; they can make a small file huge
        raise DataError(f"Annotations/{printable(key)}.xml defines entities, which VOC has none of.")
    try:
        return ET.fromstring(text)  # noqa: S314
    except ET.ParseError as error:
        raise DataError(f"Annotations/{printable(key)}.xml is damaged: {error}.") from None


def _voc_image(root: Element, key: str, picture: str, names: Sequence[str]) -> Annotated:
    def number(path: str, within: Element) -> float:
        try:
            return float(_text(within, path, key))
        except ValueError:
            raise DataError(f"Annotations/{printable(key)}.xml: {path} is no number.") from None

    found = list(root.iter("object"))
    size = int(number("size/height", root)), int(number("size/width", root))
    boxes = [
        # pixels count from 1, and the last one belongs to the box
        tuple(number(f"bndbox/{side}", one) - (side in ("xmin", "ymin")) for side in ("xmin", "ymin", "xmax", "ymax"))
        for one in found
    ]
    labels = [names.index(_text(one, "name", key)) for one in found]
    difficult = [one.findtext("difficult", "0").strip() == "1" for one in found]
    where = f"Annotations/{printable(key)}.xml"
    return Annotated(picture, size, make_objects(boxes, labels, difficult, None, size, where))


def _text(root: Element, path: str, key: str) -> str:
    found = root.findtext(path)
    if found is None or not found.strip():
        raise DataError(f"Annotations/{printable(key)}.xml has no {path}.")
    return found.strip()
