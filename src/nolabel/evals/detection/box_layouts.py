"""Layouts of images with boxes, and shares of them; docs/evals/detection.md shows the trees."""

import json
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nolabel.data.names import printable
from nolabel.errors import DataError
from nolabel.evals.detection.boxes import Annotated, Boxed, Objects, open_boxed, text_of
from nolabel.evals.detection.coco import coco_files, entries, identity, json_files, load_coco, ordered, scan_coco
from nolabel.evals.detection.voc import is_voc, scan_voc
from nolabel.evals.detection.yolo import scan_yolo, yolo_pairs
from nolabel.evals.shared.trees import Tree, check_once, shown
from nolabel.randomness import generator


def scan_boxed(data: str | Path, labels_folder: str | None = None) -> Boxed:
    """The images and boxes of DATA, a folder or zip; `labels_folder` holds the text files of YOLO.

    Of objects that are listed twice, with one class and one box, one is left out, with a note.
    Raises DataError for other trees, boxes outside of their image, classes that nothing names, and annotations of
    images that are not there.
    """
    layout, tree = find_boxes(data, labels_folder)
    if layout == "COCO":
        boxed = scan_coco(tree)
    else:
        boxed = scan_voc(tree) if layout == "PASCAL VOC" else scan_yolo(tree, labels_folder)
    check_once({split: [one.picture for one in examples] for split, examples in boxed.splits.items()})
    if len(set(boxed.classes)) < len(boxed.classes):
        raise DataError(f"Two classes have the same name: {shown(sorted(boxed.classes), 12)}.")
    return _without_doubles(boxed)


def _without_doubles(boxed: Boxed) -> Boxed:
    """The same with each object once per image: an object listed twice would have to be found twice."""
    splits, notes = dict[str, tuple[Annotated, ...]](), list(boxed.notes)
    for split, examples in boxed.splits.items():
        kept = tuple(one._replace(objects=_once(one.objects)) for one in examples)
        count = sum(len(a.objects.labels) - len(b.objects.labels) for a, b in zip(examples, kept, strict=True))
        if count:
            first = next(
                a for a, b in zip(examples, kept, strict=True) if len(a.objects.labels) > len(b.objects.labels)
            )
            notes.append(
                f"{count} objects of {split} that are listed twice, with one class and one box, are left out; "
                f"the first is in {printable(first.picture)}"
            )
        splits[split] = kept
    return boxed._replace(splits=splits, notes=notes)


def _once(objects: Objects) -> Objects:
    rows: dict[tuple[float, ...], int] = {}
    for row, key in enumerate(
        zip(objects.boxes.tolist(), objects.labels.tolist(), objects.ignored.tolist(), strict=True)
    ):
        rows.setdefault((*key[0], *key[1:]), row)
    if len(rows) == len(objects.labels):
        return objects
    kept, outlines = list(rows.values()), objects.outlines
    chosen = None if outlines is None else tuple(outlines[row] for row in kept)
    return Objects(objects.boxes[kept], objects.labels[kept], objects.ignored[kept], chosen)


def find_boxes(data: str | Path, labels_folder: str | None = None) -> tuple[str, Tree]:
    """The layout of DATA and its tree; opens no image. DataError where it holds no images with boxes."""
    for layout, marks in (
        ("COCO", lambda tree: bool(coco_files(tree))),
        ("PASCAL VOC", is_voc),
        ("YOLO", lambda tree: yolo_pairs(tree, labels_folder) is not None),
    ):
        tree = open_boxed(data, marks)
        if tree is not None:
            return layout, tree
    raise DataError(
        f"{printable(str(data))} holds no images with boxes.\n"
        "Expected COCO (annotations/instances_train2017.json, train2017/), PASCAL VOC (JPEGImages/, Annotations/,\n"
        "ImageSets/Main/train.txt) or YOLO (images/train/X.jpg, labels/train/X.txt, data.yaml)."
        f"{_without_split(data)}"
    )


def _without_split(data: str | Path) -> str:
    """A line for files of COCO whose names give no split."""
    tree = open_boxed(data, lambda tree: True)
    names = json_files(tree) if tree else []
    return f"\nThe names of these files give no split (train, val, test): {shown(names)}." if names else ""


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
    name = coco_files(boxed.tree)["train"]
    stem = posixpath.splitext(posixpath.basename(name))[0]
    return f"{stem}_{fraction:g}.json", _share_of(load_coco(text_of(boxed.tree, name), name), rows)


def _share_of(content: Mapping[str, Any], rows: Sequence[int]) -> str:
    images = entries(content, "images", ("id",), "COCO's file")
    order = ordered(images)
    ids = [order[row] for row in rows]
    chosen, among = [images[key] for key in ids], set(ids)
    kept = [
        one for one in content["annotations"] if identity(one["image_id"], "An annotation has the image_id") in among
    ]
    return json.dumps({**content, "images": chosen, "annotations": kept})


def draw_share(count: int, fraction: float, seed: int) -> list[int]:
    """Rows of `count` images that are in a share, at least one; of one seed a smaller share is part of a larger one."""
    wanted = max(1, round(fraction * count))
    chosen: list[int] = generator("share", seed).permutation(count)[:wanted].tolist()
    return sorted(chosen)
