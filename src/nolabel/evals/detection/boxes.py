"""Images with boxes around their objects: COCO's JSON, PASCAL VOC's XML and YOLO's text files, in a folder or a zip."""

import posixpath
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nolabel.data.bad_files import BadImage
from nolabel.data.decode import Header, read_header
from nolabel.data.images import check_folders, read, scan
from nolabel.data.names import printable
from nolabel.data.splits import split_of, words
from nolabel.errors import DataError
from nolabel.evals.shared.trees import Tree, read_picture, read_text, shown

SLACK = 2.0
"""Pixels by which a box may stick out, as from rounding; it is clipped."""


class Objects(NamedTuple):
    """The objects of one image."""

    boxes: Tensor
    """(N, 4) float32: left, top, right, bottom, in pixels, or in shares of the image where `Boxed.relative`."""
    labels: Tensor
    """(N,) int64 positions in the classes."""
    ignored: Tensor
    """(N,) bool: crowds (COCO) and difficult objects (VOC), which may be found or not."""
    outlines: tuple[Any, ...] | None
    """For each object COCO's polygons or run lengths, or a YOLO polygon; None without masks."""


class Annotated(NamedTuple):
    """An image with its objects."""

    picture: str
    size: tuple[int, int] | None
    """Height and width as the annotation has them, where it does."""
    objects: Objects


class Boxed(NamedTuple):
    """Images with boxes."""

    tree: Tree
    layout: str
    splits: dict[str, tuple[Annotated, ...]]
    """Keyed by those of train, val and test that exist."""
    classes: tuple[str, ...]
    relative: bool
    notes: list[str]
    files: tuple[str, ...] = ()
    """Files that the boxes were read from, where they are few."""


def open_boxed(data: str | Path, marks: Callable[[Tree], bool]) -> Tree | None:
    """DATA seen from the first of its folders where `marks` finds a layout; None where none does."""
    images = scan(data, "")
    check_folders(images, data, "boxes: expected a folder or a zip.")
    common = posixpath.commonpath([posixpath.dirname(name) for name in images.names]).split("/")
    folders = ["".join(f"{part}/" for part in common[:i]) for i in range(len(common) + 1) if common != [""] or i == 0]
    for top in folders:
        names = frozenset(name.removeprefix(top) for name in images.names if name.startswith(top))
        tree = Tree(images, top, names)
        if names and marks(tree):
            return tree
    return None


def has_file(tree: Tree, name: str) -> bool:
    """True if there is a file of that name, an image or not."""
    return tree.images.source.has(tree.images.root, tree.top + name)


def files_below(tree: Tree, folder: str) -> list[str]:
    """The names of all files below a folder, images or not."""
    names = tree.images.source.files_below(tree.images.root, tree.top + folder)
    return [name.removeprefix(tree.top) for name in names]


def text_of(tree: Tree, name: str) -> str:
    """The text of a file that has to be there."""
    text = read_text(tree, name)
    if text is None:
        raise DataError(f"{printable(name)} is missing.")
    return text


def folder_split(name: str) -> str | None:
    """The split whose folder a file is in: train for a/train/b/x.jpg and obj_train_data/x.jpg. DataError for two."""
    splits = dict.fromkeys(split for folder in name.split("/")[:-1] if (split := split_of(folder.removeprefix("obj_"))))
    if len(splits) > 1:
        raise DataError(f"{printable(name)} is in the folders of two splits, {' and '.join(splits)}: name one of them.")
    return next(iter(splits), None)


def check_one_folder(splits: Mapping[str, Sequence[str]]) -> None:
    """DataError where pictures of a split are in two folders that are spelled differently (val, valid)."""
    for split, pictures in splits.items():
        folders = {folder for picture in pictures for folder in picture.split("/")[:-1]}
        spelled: dict[tuple[str, ...], str] = {}
        for folder in sorted(folders):
            own = tuple(word for word in words(folder) if split_of(word) == split)
            if own and split_of(folder.removeprefix("obj_")) == split:
                spelled.setdefault(own, folder)
        if len(spelled) > 1:
            raise DataError(
                f"{' and '.join(printable(folder) for folder in spelled.values())} both mean {split}.\n"
                "Expected one folder a split: join them, or take one of them out."
            )


def make_objects(
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    ignored: Sequence[bool],
    outlines: Sequence[Any] | None,
    size: tuple[float, float],
    where: str,
) -> Objects:
    """Checked objects of an image of `size` (height, width), boxes clipped to it.

    Raises DataError for a box without width or height, or more than two pixels outside of the image.
    """
    corners = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    if not corners.isfinite().all() or (corners[:, 2:] <= corners[:, :2]).any():
        bad = next(b for b in corners.tolist() if not (b[2] > b[0] and b[3] > b[1] and np.isfinite(b).all()))
        raise DataError(f"{where} has a box without width or height: {_numbers(bad)} (left, top, right, bottom).")
    height, width = size
    slack = SLACK if height > 1 or width > 1 else 0.01
    limits = torch.tensor([width, height, width, height])
    outside = ((corners < -slack) | (corners > limits + slack)).any(1)
    if outside.any():
        bad = corners[outside][0].tolist()
        raise DataError(
            f"{where} has a box outside of the image: {_numbers(bad)} (left, top, right, bottom),\n"
            f"where the image has width {width:g} and height {height:g}. Are size and units of the annotation right?"
        )
    corners = torch.minimum(corners.clamp_min(0), limits)
    kept = ((corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])).tolist()
    rows = [i for i, keep in enumerate(kept) if keep]
    return Objects(
        corners[rows],
        torch.tensor([labels[i] for i in rows], dtype=torch.int64),
        torch.tensor([ignored[i] for i in rows], dtype=torch.bool),
        None if outlines is None else tuple(outlines[i] for i in rows),
    )


def check_outline(outline: Any, size: tuple[int, int], where: str) -> None:
    """DataError for what is neither polygons within an image of `size` (height, width) nor run lengths of that size."""
    try:
        if isinstance(outline, Mapping):
            good = tuple(outline["size"]) == size and isinstance(outline["counts"], list | str)
        else:
            limits = size[1] + SLACK, size[0] + SLACK
            good = all(
                len(p) >= 6
                and len(p) % 2 == 0
                and all(-SLACK <= min(p[i::2]) <= max(p[i::2]) <= limits[i] for i in (0, 1))
                for p in outline
            )
    except (KeyError, TypeError):
        good = False
    if not good:
        raise DataError(
            f"{where} has an outline that can't be right: {printable(str(outline))[:80]}\n"
            f"Expected polygons of three or more pairs, or run lengths, in an image of {size[1]} x {size[0]} pixels."
        )


def read_annotated(boxed: Boxed, one: Annotated) -> tuple[Tensor, Objects]:
    """An image (3, H, W) uint8 and its objects, boxes in pixels. Raises DataError for an image that can't be right."""
    check_picture(boxed, one)
    picture = read_picture(boxed.tree, one.picture)
    height, width = picture.shape[1:]
    if not boxed.relative:
        return picture, one.objects
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    outlines = one.objects.outlines
    if outlines is not None:
        outlines = tuple([[c * (width, height)[i % 2] for i, c in enumerate(p)] for p in ps] for ps in outlines)
    return picture, one.objects._replace(boxes=one.objects.boxes * scale, outlines=outlines)


def check_picture(boxed: Boxed, one: Annotated) -> None:
    """DataError for an image of another size than its annotation, or that EXIF turns away from it. Decodes nothing."""
    tree = boxed.tree
    try:
        header = read_header(read(tree.images._replace(names=(tree.top + one.picture,)), 0))
    except BadImage as error:
        name = printable(one.picture)
        raise DataError(f"{name} cannot be used ({error}). Replace it, or take its boxes out.") from None
    stored, name = (header.height, header.width), printable(one.picture)
    upright = stored if header.orientation < 5 else stored[::-1]
    tag = f"EXIF orientation {header.orientation}"
    if header.orientation > 1 and one.size in (None, stored) and (one.size is None or stored == upright):
        raise DataError(
            f"{name} is turned by {tag}, and two readings of its boxes are possible, {_both(one, header)}.\n"
            "Boxes of the upright photo: turn the pixels, too, such as by `mogrify -auto-orient FILE`.\n"
            "Boxes of the stored pixels: remove the tag, such as by `exiftool -Orientation= FILE`."
        )
    if one.size in (None, upright):
        return
    if one.size == stored:
        raise DataError(
            f"{name} has {upright[1]} x {upright[0]} pixels, its annotation {one.size[1]} x {one.size[0]}: {tag}\n"
            "turns the photo, and its boxes are of the stored pixels. Remove the tag, such as by\n"
            "`exiftool -Orientation= FILE`, and image and boxes fit."
        )
    raise DataError(
        f"{name} has {upright[1]} x {upright[0]} pixels, its annotation {one.size[1]} x {one.size[0]}.\n"
        "Boxes would be in wrong places: use the images that were annotated."
    )


def _both(one: Annotated, header: Header) -> str:
    """The first box of an image as it is, and as EXIF's orientation turns it."""
    if not len(one.objects.boxes):
        return "of the upright photo or of the stored pixels"
    width, height = (1, 1) if one.size is None else (header.width, header.height)
    x0, y0, x1, y1 = one.objects.boxes[0].tolist()
    mirrored_x, mirrored_y = (width - x1, y0, width - x0, y1), (x0, height - y1, x1, height - y0)
    turned = {
        2: mirrored_x,
        3: (width - x1, height - y1, width - x0, height - y0),
        4: mirrored_y,
        5: (y0, x0, y1, x1),
        6: (height - y1, x0, height - y0, x1),
        7: (height - y1, width - x1, height - y0, width - x0),
        8: (y0, width - x1, y1, width - x0),
    }[header.orientation]
    return f"upright\nthe first is {_numbers([x0, y0, x1, y1])} or {_numbers(turned)} (left, top, right, bottom)"


def describe_boxed(boxed: Boxed) -> str:
    """A line on what was read: layout, files, images and boxes of each split, boxes of each class, ignored ones."""
    parts = []
    counts, ignored = [0] * len(boxed.classes), 0
    for split, examples in boxed.splits.items():
        objects = [one.objects for one in examples]
        empty = sum(not len(own.labels) for own in objects)
        parts.append(f"{split} {len(examples)} images with {sum(len(o.labels) for o in objects)} boxes")
        parts[-1] += f" ({empty} without a box)" if empty else ""
        ignored += sum(int(own.ignored.sum()) for own in objects)
        for own in objects:
            for label in own.labels.tolist():
                counts[label] += 1
    what = {"COCO": "crowds", "PASCAL VOC": "difficult objects"}.get(boxed.layout)
    read_from = f" ({printable(', '.join(boxed.files))})" if boxed.files else ""
    kind = "polygons" if any(o.outlines for e in boxed.splits.values() for o in (x.objects for x in e)) else "boxes"
    classes = shown([f"{name} {count}" for name, count in zip(boxed.classes, counts, strict=True)], 12)
    lines = f"{boxed.layout}{read_from}, {kind}: {'; '.join(parts)}; {len(boxed.classes)} classes: {classes}"
    return lines + (f"; {what} that count neither way: {ignored}" if what else "")


def all_outlined(examples: Sequence[Annotated]) -> bool:
    """True if every object that counts has an outline, so that masks can be learned."""
    objects = [one.objects for one in examples]
    return any(len(o.labels) for o in objects) and all(o.outlines is not None or not len(o.labels) for o in objects)


def missing_pictures(source: str, names: Sequence[str]) -> DataError:
    """The error for ground truth that names images that are not there."""
    return DataError(
        f"{printable(source)} names images that are not there: {shown(names)}.\n"
        "Every image of the ground truth is needed, or the numbers would not be of this data."
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
