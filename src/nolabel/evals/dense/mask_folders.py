"""Pairs of images and masks in plain folders of any common form; masks are recognised as in `data/masks.py`."""

import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nolabel.data.masks import MASK_WORDS, find_masks, is_masks, is_pictures, mask_bases, photo_bases
from nolabel.data.names import compact, name_bytes, printable
from nolabel.data.splits import SPLITS, split_of, words
from nolabel.errors import DataError
from nolabel.evals.shared.trees import Tree, shown

Key = tuple[str, ...]
"""Key that is equal for an image and its mask: the folders of the file without words for images and masks, splits as
train, val or test; last its name without suffix."""

_MASK_END = re.compile(rf"(.+?)[-_. ]?(?:{'|'.join(sorted(MASK_WORDS, key=len, reverse=True))})", re.IGNORECASE)


class Pairs(NamedTuple):
    """Images with their masks, in order."""

    pictures: tuple[str, ...]
    masks: tuple[str, ...]


def pair_masks(tree: Tree, data: str | Path, notes: list[str]) -> dict[str, Pairs]:
    """The pairs of a tree by split: train, val, test, or `all`. `notes` gets the number of images without a mask.

    Raises DataError for a tree without masks, masks without an image, and images with two masks.
    """
    names = sorted(tree.names, key=name_bytes)
    groups: dict[str, list[str]] = {}
    for one in find_masks(compact(names)):
        groups.setdefault(one.name, []).extend(names[i] for i in one.rows)
    masks = {name for group in groups.values() for name in group}
    if not masks or len(masks) == len(names):
        raise DataError(
            f"{printable(str(data))} holds no images with masks.\n"
            "Expected folders such as images beside masks, labels, semantic or annotations, with equal names below;\n"
            "or the tree of Cityscapes (leftImg8bit, gtFine) or of PASCAL VOC (JPEGImages, SegmentationClass)."
        )
    pictures = _index([name for name in names if name not in masks])
    mask_of: dict[str, str] = {}
    kind: dict[str, str] = {}
    for group, members in groups.items():
        for mask, picture in _pair(members, pictures).items():
            if picture in mask_of:
                _refuse_second(picture, mask_of[picture], mask, kind[picture] == group)
            mask_of[picture], kind[picture] = mask, group
    bare = len(names) - len(masks) - len(mask_of)
    if bare:
        notes.append(f"{bare} images without a mask are left out")
    return _by_split(mask_of)


def folders_above(masks: Sequence[str]) -> Iterator[str]:
    """The folder of all masks, then each one above it, with a `/` at the end; last the root, which is empty."""
    folder = posixpath.commonpath([posixpath.dirname(name) for name in masks])
    while folder:
        yield f"{folder}/"
        folder = posixpath.dirname(folder)
    yield ""


def _index(pictures: Sequence[str]) -> dict[Key, str]:
    """Pictures by key: by their own names, and without words such as `_leftImg8bit` where only one picture fits."""
    own: dict[Key, str] = {}
    for name in pictures:
        if (key := _key(name)) in own:
            raise DataError(
                f"{printable(own[key])} and {printable(name)} have one name and one split: keep one of them."
                if posixpath.dirname(own[key]) != posixpath.dirname(name)
                else f"{printable(own[key])} and {printable(name)} differ in the suffix only: keep one of them."
            )
        own[key] = name
    others: dict[Key, list[str]] = {}
    for key, name in own.items():
        for base in photo_bases(key[-1])[1:]:
            others.setdefault((*key[:-1], base), []).append(name)
    return own | {key: some[0] for key, some in others.items() if key not in own and len(some) == 1}


def _pair(masks: Sequence[str], pictures: Mapping[Key, str]) -> dict[str, str]:
    """The picture of each mask of one kind, by one rule for all: equal names, a word for masks, or a common ending."""
    keys = {mask: _key(mask) for mask in masks}
    rules: list[Callable[[str], list[str]]] = [lambda stem: [stem], mask_bases]
    ends = {match[0] for key in keys.values() if (match := re.search(r"[-_. ][^-_. ]+$", key[-1]))}
    if len(ends) == 1:
        end = ends.pop()
        rules.append(lambda stem: [stem.removesuffix(end)])
    lost: list[str] = []
    for rule in rules:
        tried = {mask: [(*key[:-1], base) for base in rule(key[-1])] for mask, key in keys.items()}
        fitting = {mask: next((key for key in some if key in pictures), None) for mask, some in tried.items()}
        missing = [mask for mask, key in fitting.items() if key is None]
        if not missing:
            return {mask: pictures[key] for mask, key in fitting.items() if key is not None}
        lost = missing if not lost or len(missing) < len(lost) else lost
    at, of = (next(folders_above(list(names))).rstrip("/") or "the root" for names in (masks, pictures.values()))
    raise DataError(
        f"Masks in {printable(at)} without an image of that name in {printable(of)}: "
        f"{shown(sorted('/'.join(keys[mask]) for mask in lost))}.\n"
        "An image and its mask have the same path and name, except for the folder or the word that marks the mask."
    )


def _key(name: str) -> Key:
    *folders, file = name.split("/")
    plain = (_plain(folder) for folder in folders)
    return (*(folder for folder in plain if folder), os.path.splitext(file)[0])


def _plain(folder: str) -> str:
    """A folder without its words for images and masks: `val_images` -> val, `trainannot` -> train, `masks` -> ""."""
    if is_pictures(folder) or is_masks(folder):
        return next((split for word in words(folder) if word != "trainval" and (split := split_of(word))), "")
    if split := split_of(folder):
        return split
    match = _MASK_END.fullmatch(folder)
    return (split_of(match[1]) or match[1]) if match else folder


def _refuse_second(picture: str, first: str, second: str, one_kind: bool) -> None:
    """Raise DataError for a picture with two masks; `one_kind` where both are of one folder or pattern."""
    if one_kind and os.path.splitext(first)[0] == os.path.splitext(second)[0]:
        raise DataError(f"{printable(first)} and {printable(second)} differ in the suffix only: keep one of them.")
    raise DataError(
        f"{printable(picture)} has two masks, so the data can be read in two ways: "
        f"(1) {printable(first)}; (2) {printable(second)}.\n"
        "Keep one mask per image, and move the others out."
    )


def _by_split(mask_of: Mapping[str, str]) -> dict[str, Pairs]:
    """The pairs by split, in the order of the names of the masks; `mask_of` has the mask of each picture."""
    rows = sorted((os.path.splitext(mask)[0], picture, mask, _key(mask)[:-1]) for picture, mask in mask_of.items())
    level = min((i for *_, key in rows for i, folder in enumerate(key) if folder in SPLITS), default=None)
    splits: dict[str, list[tuple[str, str]]] = {}
    for _, picture, mask, key in rows:
        split = key[level] if level is not None and len(key) > level and key[level] in SPLITS else "all"
        splits.setdefault(split, []).append((picture, mask))
    if "all" in splits and len(splits) > 1:
        some = shown([mask for _, mask in splits["all"]])
        raise DataError(f"Masks beside the folders train, val and test: {some}. Move them into one.")
    for split, pairs in splits.items():
        _check_one_name(split, [mask for _, mask in pairs])
    return {
        split: Pairs(*(tuple(names) for names in zip(*splits[split], strict=True)))
        for split in (*SPLITS, "all")
        if split in splits
    }


def _check_one_name(split: str, masks: Sequence[str]) -> None:
    """DataError where two folders mean one split (val, valid); folders that differ in a number may (train1, train2)."""
    named = {folder for mask in masks for folder in mask.split("/")[:-1] if _plain(folder) == split}
    different = {tuple(word for word in words(folder) if split_of(word)): folder for folder in sorted(named)}
    spelled = {spelling for spelling in different if spelling}
    if len(spelled) > 1:
        raise DataError(
            f"{' and '.join(printable(different[one]) for one in sorted(spelled))} both mean {split}.\n"
            "Expected one folder per split: join them, or take one of them out."
        )
