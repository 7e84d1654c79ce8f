"""Images with boxes around their objects: COCO's JSON, PASCAL VOC's XML and YOLO's text files, in a folder or a zip."""

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nolabel.data.images import check_folders, scan
from nolabel.data.names import printable
from nolabel.errors import DataError
from nolabel.evals.shared.trees import Tree, read_picture, read_text, shown

SLACK = 2.0
"""Pixels by which a box may stick out, as from rounding; it is clipped."""


SPLITS = ("train", "val", "test")


class Objects(NamedTuple):
    """The objects of one image."""

    boxes: Tensor
    """(N, 4) float32: left, top, right, bottom, in pixels, or in shares of the image where `Boxed.relative`."""
    labels: Tensor
    """(N,) int64 positions in the classes."""
    ignored: Tensor
    """(N,) bool: crowds (COCO) and difficult objects (VOC), which may be found or not."""
    outlines: tuple[Any, ...] | None
    """COCO's polygons or run lengths, or a YOLO polygon, an object; None without masks."""


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


def split_of(folder: str) -> str | None:
    """`train2017` -> train, `valid` -> val; None for other names."""
    match = re.fullmatch(r"(train|val|valid|test)\d*", folder)
    return None if match is None else "val" if match[1] == "valid" else match[1]


def make_objects(
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    ignored: Sequence[bool],
    outlines: Sequence[Any] | None,
    size: tuple[float, float],
    where: str,
) -> Objects:
    """Checked objects of an image of `size` (height, width), boxes clipped to it.

    Raises DataError for a box that is no box, or that lies more than two pixels outside.
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
    picture = read_picture(boxed.tree, one.picture)
    height, width = picture.shape[1:]
    if one.size is not None and one.size != (height, width):
        raise DataError(
            f"{printable(one.picture)} has {width} x {height} pixels, its annotation {one.size[1]} x {one.size[0]}.\n"
            "Boxes would be in wrong places: use the images that were annotated."
        )
    if not boxed.relative:
        return picture, one.objects
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    outlines = one.objects.outlines
    if outlines is not None:
        outlines = tuple([[c * (width, height)[i % 2] for i, c in enumerate(p)] for p in ps] for ps in outlines)
    return picture, one.objects._replace(boxes=one.objects.boxes * scale, outlines=outlines)


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
