"""PASCAL VOC's XML: one file per image, in Annotations/ with lists of names, or beside the images of each split."""

import posixpath
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from nolabel.data.names import printable
from nolabel.data.splits import SPLITS
from nolabel.errors import DataError
from nolabel.evals.detection.boxes import (
    Annotated,
    Boxed,
    check_one_folder,
    files_below,
    folder_split,
    has_file,
    make_objects,
    missing_pictures,
    text_of,
)
from nolabel.evals.shared.trees import Tree, below, shown

Pairs = dict[str, list[tuple[str, str]]]
"""By split, for each image: the name of its XML file and of the picture."""


def voc_lists(tree: Tree) -> dict[str, tuple[str, ...]]:
    """By split: the lists in ImageSets/Main. Where there are trainval and test, trainval is train."""
    lists = {s: f"ImageSets/Main/{s}.txt" for s in ("train", "val", "trainval", "test")}
    there = {s for s, name in lists.items() if has_file(tree, name)}
    if not any(name.startswith("JPEGImages/") for name in tree.names):
        return {}
    if "test" in there and "trainval" in there:
        return {"train": (lists["trainval"],), "test": (lists["test"],)}
    return {s: (lists[s],) for s in SPLITS if s in there}


def is_voc(tree: Tree) -> bool:
    """Whether there are VOC's lists, or XML files beside the images of a split."""
    return bool(voc_lists(tree)) or bool(_beside(tree))


def scan_voc(tree: Tree) -> Boxed:
    """The images and boxes of all splits. Raises DataError for what cannot be right."""
    splits, names = dict[str, tuple[Annotated, ...]](), list[str]()
    for split, pairs in (_listed(tree) or _beside(tree)).items():
        roots = [(xml, picture, _parse_xml(text_of(tree, xml), xml)) for xml, picture in pairs]
        own = sorted({_text(one, "name", xml) for xml, _, root in roots for one in root.iter("object")})
        if split == "train":
            names = own
        unknown = [name for name in own if name not in names]
        if unknown:
            raise DataError(
                f"Objects in {split} of a class that train lacks: {shown(unknown)}.\n"
                f"Correct the name in their XML files, or take their images out of {split}."
            )
        splits[split] = tuple(_annotated(root, xml, picture, names) for xml, picture, root in roots)
    return Boxed(tree, "PASCAL VOC", splits, tuple(names), False, [])


def _listed(tree: Tree) -> Pairs:
    """The images that VOC's lists name."""
    pictures, pairs = below(tree, "JPEGImages"), Pairs()
    for split, lists in voc_lists(tree).items():
        keys = " ".join(text_of(tree, name) for name in lists).split()
        lost = [key for key in keys if key not in pictures]
        if lost:
            raise missing_pictures(lists[0], lost)
        pairs[split] = [(f"Annotations/{key}.xml", pictures[key]) for key in keys]
    return pairs


def _beside(tree: Tree) -> Pairs:
    """The images of split folders that have an XML file beside them; {} where there is none."""
    files = {name for name in files_below(tree, "") if name.lower().endswith(".xml")}
    beside: Pairs = {}
    for picture in sorted(tree.names) if files else ():
        split = folder_split(picture)
        if split is not None:
            beside.setdefault(split, []).append((posixpath.splitext(picture)[0] + ".xml", picture))
    beside = {s: beside[s] for s in SPLITS if s in beside}
    if not any(xml in files for pairs in beside.values() for xml, _ in pairs):
        return {}
    check_one_folder({split: [picture for _, picture in pairs] for split, pairs in beside.items()})
    return beside


def _parse_xml(text: str, name: str) -> Element:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # nothing of VOC has them; they can make a small file huge
        raise DataError(f"{printable(name)} defines entities, which VOC does not have.")
    try:
        return ET.fromstring(text)  # noqa: S314
    except ET.ParseError as error:
        raise DataError(f"{printable(name)} is damaged: {error}.") from None


def _annotated(root: Element, name: str, picture: str, names: Sequence[str]) -> Annotated:
    def number(path: str, within: Element) -> float:
        try:
            return float(_text(within, path, name))
        except ValueError:
            raise DataError(f"{printable(name)}: {path} is no number.") from None

    objects = list(root.iter("object"))
    size = int(number("size/height", root)), int(number("size/width", root))
    boxes = [
        # pixels count from 1, and the last one belongs to the box
        tuple(number(f"bndbox/{side}", one) - (side in ("xmin", "ymin")) for side in ("xmin", "ymin", "xmax", "ymax"))
        for one in objects
    ]
    labels = [names.index(_text(one, "name", name)) for one in objects]
    difficult = [one.findtext("difficult", "0").strip() == "1" for one in objects]
    return Annotated(picture, size, make_objects(boxes, labels, difficult, None, size, printable(name)))


def _text(root: Element, path: str, name: str) -> str:
    text = root.findtext(path)
    if text is None or not text.strip():
        raise DataError(f"{printable(name)} has no {path}.")
    return text.strip()
