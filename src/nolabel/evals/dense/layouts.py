"""Layouts of images with masks, and the meaning of the ids in the masks: Cityscapes, PASCAL VOC, folders of masks."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from nolabel import console
from nolabel.data.names import printable
from nolabel.errors import DataError, UsageError
from nolabel.evals.dense.iou import VOID
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

VOID_NAMES = ("void", "unlabelled", "unlabeled", "ignore", "ignored")

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
        names = tuple(VOC.split(","))
        return "PASCAL VOC", _voc(tree), given or Classes(names, tuple(range(len(names))), (VOID_ID,)), []
    notes: list[str] = []
    splits = pair_masks(tree, data, notes)
    return "folders", splits, given or _find_classes(tree, [m for pairs in splits.values() for m in pairs.masks]), notes


def report_masks(masked: Masked, reported: str) -> None:
    """Print what was read: splits, classes with their ids, and ids that count for nothing."""
    counts = {split: (len(pairs.masks), _folder(pairs.masks)) for split, pairs in masked.splits.items()}
    classes = masked.classes
    named = [f"{i}: {n}" if masked.named else n for n, i in zip(classes.names, classes.ids, strict=True)]
    void = ", ".join(map(str, classes.void)) or "no id"
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


def _find_classes(tree: Tree, masks: Sequence[str]) -> Classes:
    """The classes in `classes.json`, `.yaml` or `.txt`, in the folder of the masks or above it."""
    for folder in folders_above(masks):
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


def _check_there(tree: Tree, masks: Sequence[str]) -> None:
    lost = [name for name in masks if name not in tree.names]
    if lost:
        raise DataError(f"Masks that are missing: {shown(lost)}.\nEvery image of train and val needs its mask.")
