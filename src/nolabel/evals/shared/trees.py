"""Images with masks, in a folder or in a zip of one: what is where, and masks as class ids."""

import io
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from nolabel.data.bad_files import BadImage
from nolabel.data.decode import MAX_PIXELS, decode
from nolabel.data.images import Images, check_folders, check_listed, fingerprint, read, scan
from nolabel.data.names import printable
from nolabel.data.sources.source import MISSING, UNREADABLE
from nolabel.errors import DataError

_IDS = ("P", "L", "1", "I", "I;16", "LA")
"""Pillow's modes whose values are ids."""


class Tree(NamedTuple):
    """Everything below a folder, or in a zip, that ends like an image: pictures and masks."""

    images: Images
    top: str
    """The folders, with a `/` at the end, that hold all of it (`VOCdevkit/VOC2012/`); names start below them."""
    names: frozenset[str]


def open_tree(data: str | Path) -> Tree:
    """The files of DATA. Raises DataError where it is missing, holds no image, or is a text file of paths."""
    images = scan(data, "")
    check_folders(images, data, "masks: expected a folder or a zip.")
    check_listed(images, data)
    top = posixpath.commonpath([posixpath.dirname(name) for name in images.names])
    top = f"{top}/" if top else ""
    return Tree(images, top, frozenset(name.removeprefix(top) for name in images.names))


def below(tree: Tree, folder: str) -> dict[str, str]:
    """The names below `folder` by what they are called there, without suffix: `train/0001` -> `images/train/0001.jpg`.

    Raises DataError where two differ in the suffix only.
    """
    found: dict[str, str] = {}
    for name in sorted(n for n in tree.names if n.startswith(f"{folder}/")):
        key = posixpath.splitext(name.removeprefix(f"{folder}/"))[0]
        if key in found:
            raise DataError(
                f"{printable(found[key])} and {printable(name)} differ in the suffix only: keep one of them."
            )
        found[key] = name
    return found


def read_text(tree: Tree, name: str) -> str | None:
    """The text of a file that is no image (a list of names, a list of classes), or None where there is none."""
    try:
        return tree.images.source.read(tree.images.root, tree.top + name).decode("utf-8-sig")
    except MISSING:
        return None
    except (*UNREADABLE, BadImage) as error:
        raise DataError(f"{printable(name)} cannot be read: {printable(str(error))[:200]}.") from None


def read_picture(tree: Tree, name: str) -> Tensor:
    """An image (3, H, W) uint8. Raises DataError: a picture that has a mask is not left out in silence."""
    try:
        return decode(_bytes(tree, name), limits=tree.images.limits)
    except BadImage as error:
        raise DataError(f"{printable(name)} cannot be used ({error}). Replace it, or take its mask out.") from None


def read_mask(tree: Tree, name: str, colours: bool = False) -> Tensor:
    """The ids (H, W) int64 in a mask file: the values of a grey image, the indices of one with a palette.

    With `colours` they are 65536 red + 256 green + blue. Raises DataError for a file that is damaged or, without, a
    picture in colours.
    """
    try:
        file = Image.open(io.BytesIO(_bytes(tree, name)), formats=("PNG", "BMP", "GIF", "TIFF", "WEBP"))
        if file.width * file.height > MAX_PIXELS:
            raise DataError(f"{printable(name)} has {file.width} x {file.height} pixels, more than {MAX_PIXELS:,}.")
        values = np.array(file.convert("RGB") if colours else _grey(file), dtype=np.int64)
    except DataError:
        raise
    except Exception as error:  # Pillow's openers raise nearly anything on damaged files
        what = "not an image" if isinstance(error, UnidentifiedImageError) else printable(str(error))[:200]
        if name.lower().endswith((".jpg", ".jpeg")):
            what = "a JPEG has other values than were drawn; save masks as PNG"
        raise DataError(f"The mask {printable(name)} cannot be read: {what}.") from None
    if colours:
        return torch.from_numpy(values @ np.array([65536, 256, 1]))
    if file.mode in _IDS:
        return torch.from_numpy(values[..., 0] if values.ndim == 3 else values)
    if values.ndim == 3 and (values[..., :3] == values[..., :1]).all():
        return torch.from_numpy(values[..., 0].copy())
    raise DataError(
        f"The mask {printable(name)} is a picture in colours (Pillow's mode {file.mode}).\n"
        "Expected one channel of class ids, a palette image whose indices are the ids, or a list of classes with the\n"
        "colour of each: classes.json beside the masks or --classes FILE, [{name: road, color: [128, 64, 128]}, ...]."
    )


def _grey(file: Image.Image) -> Image.Image:
    """A GIF of grey values by these, not by the places of its palette: encoders number only values that are there."""
    palette = np.array(file.getpalette() or [0, 1, 2])[: 3 * 256].reshape(-1, 3)
    if file.format == "GIF" and file.mode == "P" and (palette == palette[:, :1]).all():
        return file.convert("L")
    return file


def check_same_size(picture: Tensor, mask: Tensor, picture_name: str, mask_name: str) -> None:
    """DataError where an image (3, H, W) and its mask (H, W) differ in size."""
    if picture.shape[1:] != mask.shape:
        (h, w), (rows, columns) = picture.shape[1:], mask.shape
        raise DataError(
            f"{printable(mask_name)} has {columns} x {rows} pixels, its image {printable(picture_name)} {w} x {h}.\n"
            "A mask must have the size of its image."
        )


def check_once(splits: Mapping[str, Iterable[str]]) -> None:
    """DataError where an image is in two splits, or twice in one: it would be counted twice, or learned and tested."""
    seen: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            if name in seen:
                where = f"twice in {split}" if seen[name] == split else f"in {seen[name]} and in {split}"
                raise DataError(f"{printable(name)} is {where}: expected every image once.")
            seen[name] = split


def tree_fingerprint(tree: Tree, names: Iterable[str]) -> str:
    """16 hexadecimal digits over names and sizes of these files."""
    return fingerprint(tree.images._replace(names=tuple(tree.top + name for name in names)))


def shown(names: Sequence[str], number: int = 3) -> str:
    """The first few of many names, for an error."""
    more = f" and {len(names) - number} more" if len(names) > number else ""
    return printable(", ".join(names[:number])) + more


def _bytes(tree: Tree, name: str) -> bytes:
    return read(tree.images._replace(names=(tree.top + name,)), 0)
