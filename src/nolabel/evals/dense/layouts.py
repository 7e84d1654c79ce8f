"""Layouts of images with masks, and the meaning of the ids in the masks: Cityscapes, PASCAL VOC, folders of masks."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from nolabel.data.names import printable
from nolabel.errors import DataError, UsageError
from nolabel.evals.dense.iou import VOID
from nolabel.evals.shared.trees import (
    Tree,
    below,
    check_once,
    check_same_size,
    open_tree,
    read_mask,
    read_picture,
    read_text,
    shown,
)

PICTURES = ("images", "frames", "JPEGImages")
MASKS = ("masks", "labels", "semantic", "annotations", "Annotations")
VOID_NAMES = ("void", "unlabelled", "unlabeled", "ignore", "ignored")
VOID_ID = 255

CITYSCAPES = (
    "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,truck,"
    "bus,train,motorcycle,bicycle"
)
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""In `labelIds` files, where every other id is void; `labelTrainIds` files count from 0."""

VOC = (
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,"
    "pottedplant,sheep,sofa,train,tvmonitor"
)


class Pairs(NamedTuple):
    """Images with their masks, in order."""

    pictures: tuple[str, ...]
    masks: tuple[str, ...]


class Classes(NamedTuple):
    """Meaning of the ids in masks. Ids that are neither a class nor void are an error."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    """The id of each class."""
    void: tuple[int, ...]
    others_void: bool = False
    """Every other id is void, too (Cityscapes' labelIds)."""


class Masked(NamedTuple):
    """Images with masks."""

    tree: Tree
    layout: str
    splits: dict[str, Pairs]
    """Keyed by those of train, val and test that exist, or `all`."""
    classes: Classes
    notes: list[str]
    named: bool
    """The classes have names; else they are the ids found in the masks."""


def scan_masked(data: str | Path, classes_file: str | None = None, void: int | None = None) -> Masked:
    """The images and masks of DATA, a folder or zip; docs/evals/segmentation.md has the layouts.

    Raises DataError for other trees, for masks without an image and for a list of classes that can't be read.
    """
    tree = open_tree(data)
    given = None if classes_file is None else _parse(_load(Path(classes_file)), classes_file)
    layout, splits, classes, notes = _find(tree, data, given)
    check_once({split: pairs.pictures for split, pairs in splits.items()})
    if void is not None:
        kept = [(n, i) for n, i in zip(classes.names, classes.ids, strict=True) if i != void]
        classes = classes._replace(
            names=tuple(n for n, _ in kept), ids=tuple(i for _, i in kept), void=(*classes.void, void)
        )
    named = bool(classes.ids)
    if not named:
        classes = _ids_found(tree, splits, classes.void)
    return Masked(tree, layout, splits, classes, notes, named)


def check_masks(data: str | Path) -> Collection[str]:
    """The splits of DATA, images with masks; opens no image. DataError for other data."""
    return _find(open_tree(data), data)[1]


def check_train_masks(data: str | Path) -> None:
    """DataError where DATA does not hold images with masks to learn from and others to test on."""
    splits = check_masks(data)
    if "train" not in splits or len(splits) < 2:
        raise DataError("no masks in train/ with val/ or test/")


def _find(
    tree: Tree, data: str | Path, given: Classes | None = None
) -> tuple[str, dict[str, Pairs], Classes, list[str]]:
    """Layout, splits, classes (those given, else the layout's own; none where nothing names them) and notes.

    Opens no image.
    """
    if any(name.startswith("leftImg8bit/") for name in tree.names):
        splits, classes = _cityscapes(tree)
        return "Cityscapes", splits, given or classes, []
    if any(name.startswith("SegmentationClass/") for name in tree.names):
        names = tuple(VOC.split(","))
        return "PASCAL VOC", _voc(tree), given or Classes(names, tuple(range(len(names))), (VOID_ID,)), []
    notes: list[str] = []
    splits, root = _folders(tree, data, notes)
    return "folders", splits, given or _find_classes(tree, root), notes


def read_pair(masked: Masked, split: str, index: int) -> tuple[Tensor, Tensor]:
    """An image (3, H, W) uint8 and its classes (H, W) int64. Raises DataError for what cannot be right."""
    pairs = masked.splits[split]
    picture, mask = read_picture(masked.tree, pairs.pictures[index]), read_mask(masked.tree, pairs.masks[index])
    check_same_size(picture, mask, pairs.pictures[index], pairs.masks[index])
    return picture, encode(mask, masked.classes, pairs.masks[index])


def encode(mask: Tensor, classes: Classes, name: str) -> Tensor:
    """The class (H, W) int64 of each pixel, VOID where it counts for nothing. Raises DataError for unknown ids."""
    top = max(int(mask.max()), *classes.ids, *classes.void) + 1
    table = torch.full((top + 1,), VOID if classes.others_void else VOID - 1)
    table[list(classes.void)] = VOID
    table[list(classes.ids)] = torch.arange(len(classes.ids))
    found = table[mask.clamp_min(-1)]  # -1, Cityscapes' licence plates, is the last entry
    if (found < VOID).any():
        unknown = torch.unique(mask[found < VOID]).tolist()
        raise DataError(
            f"The mask {printable(name)} holds the ids {shown([str(i) for i in unknown], 8)}, which are no class.\n"
            f"Classes are {shown([str(i) for i in classes.ids], 12)}; void: {', '.join(map(str, classes.void))}.\n"
            "Name every id with --classes FILE (id: name), or the one that counts for nothing with --void ID."
        )
    return found


def _cityscapes(tree: Tree) -> tuple[dict[str, Pairs], Classes]:
    """`leftImg8bit/SPLIT/CITY/X_leftImg8bit.png` with `gtFine/.../X_gtFine_labelTrainIds.png`, else `_labelIds`."""
    train_ids = any(name.endswith("_labelTrainIds.png") for name in tree.names)
    kind = "labelTrainIds" if train_ids else "labelIds"
    splits = {}
    for split in ("train", "val"):  # the masks of test are kept by the benchmark
        pictures = sorted(n for n in tree.names if n.startswith(f"leftImg8bit/{split}/"))
        pairs = [
            (n, "gtFine" + n.removeprefix("leftImg8bit").replace("_leftImg8bit.", f"_gtFine_{kind}.")) for n in pictures
        ]
        _check_there(tree, [mask for _, mask in pairs])
        masks = {n for n in tree.names if n.startswith(f"gtFine/{split}/") and n.endswith(f"_{kind}.png")}
        if lost := sorted(masks - {mask for _, mask in pairs}):
            raise DataError(f"Masks without an image in leftImg8bit/{split}: {shown(lost)}.")
        if pairs:
            splits[split] = Pairs(*map(tuple, zip(*pairs, strict=True)))
    names = tuple(CITYSCAPES.split(","))
    if train_ids:
        return splits, Classes(names, tuple(range(len(names))), (VOID_ID,))
    return splits, Classes(names, CITYSCAPES_IDS, (), others_void=True)


def _voc(tree: Tree) -> dict[str, Pairs]:
    """Lists in `ImageSets/Segmentation`; `train_aug.txt` with `SegmentationClassAug` where both are there."""
    pictures = below(tree, "JPEGImages")
    augmented = below(tree, "SegmentationClassAug")
    splits = {}
    for split in ("train", "val"):  # the masks of test are kept by the benchmark
        text, masks = read_text(tree, f"ImageSets/Segmentation/{split}.txt"), below(tree, "SegmentationClass")
        more = read_text(tree, f"ImageSets/Segmentation/{split}_aug.txt")
        if more is not None and augmented:
            text, masks = more, augmented
        if text is None:
            raise DataError(f"ImageSets/Segmentation/{split}.txt is missing: it lists the images of {split}.")
        names = text.split()
        if not names:
            raise DataError(f"The list of {split} in ImageSets/Segmentation is empty: expected a name a line.")
        lost = [name for name in names if name not in pictures or name not in masks]
        if lost:
            raise DataError(f"Names in {split}.txt without an image or without a mask: {shown(lost)}.")
        splits[split] = Pairs(tuple(pictures[n] for n in names), tuple(masks[n] for n in names))
    return splits


def _folders(tree: Tree, data: str | Path, notes: list[str]) -> tuple[dict[str, Pairs], str]:
    """`images/train/X.jpg` with `masks/train/X.png` and the like; also gives the folder of the masks."""
    tops = {name.split("/")[0] for name in tree.names}
    roots = [[folder for folder in choices if folder in tops] for choices in (PICTURES, MASKS)]
    if not all(roots):
        raise DataError(
            f"{printable(str(data))} holds no images with masks.\n"
            f"Expected a folder {' or '.join(PICTURES[:2])} beside {' or '.join(MASKS[:4])}, with equal names below;\n"
            "or the tree of Cityscapes (leftImg8bit, gtFine) or of PASCAL VOC (JPEGImages, SegmentationClass)."
        )
    pictures, masks = (below(tree, root[0]) for root in roots)
    lost = sorted(masks.keys() - pictures.keys())
    if lost:
        raise DataError(
            f"Masks in {roots[1][0]} without an image of that name in {roots[0][0]}: {shown(lost)}.\n"
            "An image and its mask have the same path and name below the two folders, but for the suffix."
        )
    if len(masks) < len(pictures):
        notes.append(f"{len(pictures) - len(masks)} images without a mask are left out")
    splits: dict[str, list[str]] = {}
    for key in sorted(masks):
        match = re.fullmatch(r"(train|val|test)\d*", key.split("/")[0])
        splits.setdefault(match[1] if match and "/" in key else "all", []).append(key)
    if "all" in splits and len(splits) > 1:
        raise DataError(f"Masks beside the folders train, val and test: {shown(splits['all'])}. Move them into one.")
    order = [split for split in ("train", "val", "test", "all") if split in splits]
    return {
        split: Pairs(tuple(pictures[k] for k in splits[split]), tuple(masks[k] for k in splits[split]))
        for split in order
    }, roots[1][0]


def _find_classes(tree: Tree, root: str) -> Classes:
    """The classes in `classes.json`, `.yaml` or `.txt`, in the folder of the masks or at the top."""
    for folder in (f"{root}/", ""):
        for suffix in ("json", "yaml", "yml", "txt"):
            text = read_text(tree, f"{folder}classes.{suffix}")
            if text is not None:
                return _parse(text, f"{folder}classes.{suffix}")
    return Classes((), (), (VOID_ID,))


def _load(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(f"--classes {path} cannot be read: {error}.") from None


def _parse(text: str, source: str) -> Classes:
    """`id: name` as JSON or YAML (also below `classes` or `names`), or one name per line from id 0."""
    try:
        found: Any = yaml.safe_load(text) if not source.endswith(".txt") else text.splitlines()
        for key in ("classes", "names"):
            if isinstance(found, Mapping) and key in found:
                found = found[key]
        pairs = found.items() if isinstance(found, Mapping) else enumerate(found)
        ids = {int(key): str(name).strip() for key, name in pairs if str(name).strip()}
    except (yaml.YAMLError, ValueError, TypeError):
        ids = {}
    if not ids or min(ids) < 0 or max(ids) > 65535 or len(set(ids.values())) < len(ids):
        raise DataError(
            f"{printable(source)} is no list of classes.\n"
            "Expected `id: name` lines (YAML or JSON), ids from 0 to 65535 and no name twice,\n"
            "or a .txt with one name a line."
        )
    void = tuple(i for i, name in ids.items() if name.lower() in VOID_NAMES)
    kept = {i: ids[i] for i in sorted(ids) if i not in void}
    return Classes(tuple(kept.values()), tuple(kept), void if VOID_ID in kept else (*void, VOID_ID))


def _ids_found(tree: Tree, splits: Mapping[str, Pairs], void: Sequence[int]) -> Classes:
    """The ids in the masks of train, or of all, as classes; 0 and 255 alone are background and one object."""
    first = next(iter(splits.values()))
    ids = set[int]()
    for name in first.masks:
        ids.update(torch.unique(read_mask(tree, name)).tolist())
    if ids <= {0, 255} and 255 in ids and tuple(void) == (VOID_ID,):
        return Classes(("background", "object"), (0, 255), ())
    kept = sorted(ids - set(void))
    return Classes(tuple(map(str, kept)), tuple(kept), tuple(void))


def _check_there(tree: Tree, masks: Sequence[str]) -> None:
    lost = [name for name in masks if name not in tree.names]
    if lost:
        raise DataError(f"Masks that are missing: {shown(lost)}.\nEvery image of train and val needs its mask.")
