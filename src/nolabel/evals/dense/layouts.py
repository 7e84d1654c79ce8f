"""Layouts of images with masks, and the meaning of the ids in the masks: Cityscapes, PASCAL VOC, folders of masks."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from nolabel import console
from nolabel.errors import DataError
from nolabel.evals.dense.class_lists import Classes as Classes
from nolabel.evals.dense.class_lists import describe_id, encode, find_classes, load_classes
from nolabel.evals.dense.mask_folders import Pairs, folders_above, pair_masks
from nolabel.evals.dense.mask_ids import VOID_ID, find_ids
from nolabel.evals.shared.leaks import leak_notes
from nolabel.evals.shared.reading import report_reading, report_values
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
    given = None if classes_file is None else load_classes(Path(classes_file))
    layout, splits, classes, notes = _find(tree, data, given)
    check_once({split: pairs.pictures for split, pairs in splits.items()})
    named = bool(classes.ids)
    if not named:
        used = {split: pairs.masks for split, pairs in splits.items() if split != "val" or "test" not in splits}
        classes = Classes(*find_ids(tree, used, void))
    elif void is not None:
        kept = [(n, i) for n, i in zip(classes.names, classes.ids, strict=True) if i != void]
        classes = classes._replace(
            names=tuple(n for n, _ in kept), ids=tuple(i for _, i in kept), void=(*classes.void, void)
        )
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
        names, splits = tuple(VOC.split(",")), _voc(tree)
        voc = Classes(names, tuple(range(len(names))), (VOID_ID,))
        own = find_classes(tree, [m for pairs in splits.values() for m in pairs.masks])  # CVAT's labelmap.txt
        return "PASCAL VOC", splits, given or (own if own.ids else voc), []
    notes: list[str] = []
    splits = pair_masks(tree, data, notes)
    masks = [m for pairs in splits.values() for m in pairs.masks]
    own = find_classes(tree, masks)
    return "folders", splits, given or (own if own.ids else _cityscapes_classes(masks) or own), notes


def report_masks(masked: Masked, reported: str) -> None:
    """Print what was read: splits, classes with their ids, and void ids."""
    counts = {split: (len(pairs.masks), _folder(pairs.pictures)) for split, pairs in masked.splits.items()}
    classes = masked.classes
    ids = [describe_id(i, classes.colours) for i in classes.ids]
    named = [f"{i}: {n}" if masked.named else n for n, i in zip(classes.names, ids, strict=True)]
    void = ", ".join(describe_id(i, classes.colours) for i in classes.void) or "no id"
    report_reading(counts, named, reported, masked.notes)
    top, pictures = masked.tree.top, next(iter(masked.splits.values())).pictures
    report_values(masked.tree.images, [top + name for name in pictures])
    console.note(f"void: {'every other id' if classes.others_void else void}; layout: {masked.layout}")


def masked_leaks(masked: Masked, splits: Sequence[str]) -> list[str]:
    """Notes on images that are in two of the splits, byte for byte."""
    tree = masked.tree
    names = {split: tuple(tree.top + name for name in masked.splits[split].pictures) for split in splits}
    return leak_notes({split: tree.images._replace(names=some) for split, some in names.items()})


def _folder(names: Sequence[str]) -> str:
    return next(folders_above(names))


def read_pair(masked: Masked, split: str, index: int) -> tuple[Tensor, Tensor]:
    """An image (3, H, W) uint8 and its classes (H, W) int64. Raises DataError for what cannot be right."""
    pairs = masked.splits[split]
    picture = read_picture(masked.tree, pairs.pictures[index])
    mask = read_mask(masked.tree, pairs.masks[index], masked.classes.colours)
    check_same_size(picture, mask, pairs.pictures[index], pairs.masks[index])
    return picture, encode(mask, masked.classes, pairs.masks[index])


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
    return splits, _classes_of_ids(train_ids)


def _classes_of_ids(train_ids: bool) -> Classes:
    names = tuple(CITYSCAPES.split(","))
    if train_ids:
        return Classes(names, tuple(range(len(names))), (VOID_ID,))
    return Classes(names, CITYSCAPES_IDS, (), others_void=True)


def _cityscapes_classes(masks: Sequence[str]) -> Classes | None:
    """Cityscapes' classes for masks of its names in another tree (`gtFine_trainvaltest/gtFine`), else None."""
    kinds = {kind for kind in ("labelTrainIds", "labelIds") if any(m.endswith(f"_gtFine_{kind}.png") for m in masks)}
    whole = len(kinds) == 1 and all("_gtFine_label" in mask for mask in masks)
    return _classes_of_ids("labelTrainIds" in kinds) if whole else None


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
            raise DataError(f"The list of {split} in ImageSets/Segmentation is empty: expected a name per line.")
        lost = [name for name in names if name not in pictures or name not in masks]
        if lost:
            raise DataError(f"Names in {split}.txt without an image or without a mask: {shown(lost)}.")
        splits[split] = Pairs(tuple(pictures[n] for n in names), tuple(masks[n] for n in names))
    return splits


def _check_there(tree: Tree, masks: Sequence[str]) -> None:
    lost = [name for name in masks if name not in tree.names]
    if lost:
        raise DataError(f"Masks that are missing: {shown(lost)}.\nEvery image of train and val needs its mask.")
