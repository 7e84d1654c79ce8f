"""Class folders: which folders of a tree are splits, which are classes, and which are neither.

Only folders with images count. A tree that can be read in two ways is refused, and the error shows both ways.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nolabel.data.masks import is_pictures
from nolabel.data.names import Names, ancestors, printable
from nolabel.data.splits import PICTURE_WORDS, PLAIN_WORDS, SPLITS, looks_like, split_of, splits_of, words
from nolabel.errors import DataError

VOID = "void"
"""A class folder that is ignored."""
_OF_ALL_KINDS = PICTURE_WORDS & {"images", "imgs", "img", "frames", "jpg", "jpeg"} | PLAIN_WORDS | {"left", "bit"}
"""Words that name no class: a folder of such words alone (`images`, `img_dir`, `leftImg8bit`) holds all classes."""


class Tree(NamedTuple):
    """Folders with images, by path with a `/` at the end; the root is "". Folders without images are not in it."""

    own: dict[str, int]
    """Number of images directly in a folder, where there are any."""
    every: dict[str, int]
    """Number of images below a folder at any depth."""
    inside: dict[str, list[str]]
    """Names of the folders directly in a folder."""


class Part(NamedTuple):
    """Meaning of a folder: it holds class folders (`train/`), or one class of a split (`cat/train/`)."""

    split: str
    """train, val or test; `all` without splits."""
    label: str | None = None
    """The class of all images below; None: the folders in it are the classes."""


class Reading(NamedTuple):
    """The one way to read a tree."""

    parts: dict[str, Part]
    """By path of the folder, with a `/` at the end."""
    unused: list[str]
    """Descriptions of folders that hold images and are not used."""


class Labels(NamedTuple):
    """The split and class of images."""

    labels: list[tuple[str, ...]]
    """(split, class) of each group of images, such as those of one folder; () where the group is not used. Without
    splits the split is `all`."""
    group: NDArray[np.int32]
    """For each image the position of its group in `labels`."""
    places: Mapping[str, str]
    """The folder of each split, with a `/` at the end."""
    unused: Sequence[str]
    """Descriptions of images that are in no class."""


def read_folders(names: Names, data: str, masks: Sequence[str] = ()) -> Labels:
    """The labels of images in class folders. DataError where there are two ways to read them; `data` is for errors.

    `masks` are folders of masks that were left out. Folders in `images/` beside them may be clips as well as classes.
    """
    tree = folder_tree(names)
    reading = read_tree(tree, data)
    (top, first), *_ = reading.parts.items()  # the only one where there are no splits
    pictures = next((f"{above}{name}/" for above, name in ancestors(top) if is_pictures(name)), "")
    if masks and pictures and first == Part("all"):
        raise _of_all_kinds(pictures, masks, data)
    labels = []
    for folder in names.folders.strings():
        label: tuple[str, ...] = ()
        for above, name in ancestors(folder):
            if part := reading.parts.get(above):
                label = (part.split, part.label or name)
        if (part := reading.parts.get(folder)) and part.label:
            label = (part.split, part.label)
        labels.append(label if folder in tree.own and label[1:] != (VOID,) else ())
    places = {part.split: path for path, part in reading.parts.items() if not part.label}
    return Labels(labels, names.folder, places, reading.unused)


def read_column(column: Sequence[tuple[str, ...]]) -> Labels:
    """The labels in the column of a source: (class,), (split, class) or () for each image."""
    places: dict[tuple[str, ...], int] = {}
    group = np.array([places.setdefault(label, len(places)) for label in column], np.int32)
    if any(len(one) > 1 and one[0] in SPLITS and one[1] != VOID for one in places):
        labels = [one[:2] if len(one) > 1 and one[0] in SPLITS else () for one in places]
    else:
        labels = [("all", one[0]) if one else () for one in places]
    labels = [one if one[1:] != (VOID,) else () for one in labels]
    bare = int(np.array([not one for one in labels], bool)[group].sum())
    return Labels(labels, group, {}, (f"{_count(bare)} without a class or a split",) if bare else ())


def folder_tree(names: Names) -> Tree:
    """The tree of the folders of `names`."""
    tree = Tree({}, {}, {})
    counts = np.bincount(names.folder, minlength=len(names.folders.starts)).tolist()
    for folder, count in zip(names.folders.strings(), counts, strict=True):
        if not count:
            continue
        tree.own[folder] = count
        tree.every[""] = tree.every.get("", 0) + count
        for above, name in ancestors(folder):
            path = f"{above}{name}/"
            if path not in tree.every:
                tree.inside.setdefault(above, []).append(name)
            tree.every[path] = tree.every.get(path, 0) + count
    return tree


def read_tree(tree: Tree, data: str) -> Reading:
    """The splits and classes of a tree. DataError where it can be read in two ways; `data` names it there."""
    top = ""
    while len(kids := tree.inside.get(top, [])) == 1 and not split_of(kids[0]) and tree.inside.get(f"{top}{kids[0]}/"):
        top += f"{kids[0]}/"  # a folder that holds everything
    splits = splits_of(kids)
    _check_two_names(splits, top, data)
    with_classes = [kid for kid in splits if tree.inside.get(f"{top}{kid}/")]
    different = {splits[kid] for kid in with_classes}
    others = [kid for kid in kids if kid not in splits]
    if not with_classes:  # class folders without splits, or splits of images without classes
        if len(set(splits.values())) > 1 or (splits and not others):
            raise _no_class_folders(splits, top, data)
        return _without_splits(tree, top, kids, data)
    if others and not ("train" in different and len(different) > 1):  # `train` may be a class, too
        as_splits = f"{_list(splits)} as splits; {_list(others)} not used"
        raise _two_readings(data, f"classes {_list(kids)}, without splits", as_splits, f"{top}{with_classes[0]}/")
    parts = {_classes_of(tree, f"{top}{kid}/"): Part(splits[kid]) for kid in with_classes}
    for path in parts:
        _check_classes(tree.inside[path], path, data)
        _check_inside(tree, tree.inside[path], path, data)
    return Reading(parts, _unused(tree, parts))


def check_spelling(classes: Sequence[str]) -> None:
    """DataError for two classes whose names look equal: they differ in their bytes only."""
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(looks_like(name), name)
        if other != name:
            raise DataError(
                f"Two classes look equal and differ in their bytes only: {_bytes(other)} and {_bytes(name)}.\n"
                "macOS writes accents apart (NFD), other systems in one (NFC): rename the folders alike."
            )


def _without_splits(tree: Tree, top: str, kids: list[str], data: str) -> Reading:
    """Class folders alone, or each with splits in it (`cat/train/1.jpg`)."""
    inner = {kid: splits_of(tree.inside.get(f"{top}{kid}/", [])) for kid in kids}
    whole = [kid for kid, splits in inner.items() if "train" in splits.values() and len(set(splits.values())) > 1]
    if whole and len(kids) > 1:
        below = [f"{top}{kid}/{name}/" for kid in kids for name in tree.inside.get(f"{top}{kid}/", [])]
        plain = all(not tree.inside.get(path) for path in below) and not any(f"{top}{kid}/" in tree.own for kid in kids)
        if len(whole) < len(kids) or not plain or any(len(inner[k]) < len(tree.inside[f"{top}{k}/"]) for k in kids):
            sets = f"{_list(whole)} as data sets of their own, with splits inside"
            raise _two_readings(data, f"classes {_list(kids)}, without splits", sets, f"{top}{whole[0]}/")
        for kid in kids:
            _check_two_names(inner[kid], f"{top}{kid}/", data)
        parts = {f"{top}{kid}/{name}/": Part(split, kid) for kid in kids for name, split in inner[kid].items()}
        return Reading(parts, _unused(tree, parts))
    if len(kids) > 1:
        _check_classes(kids, top, data)
        _check_inside(tree, kids, top, data)
    parts = {top: Part("all")}
    return Reading(parts, _unused(tree, parts))


def _classes_of(tree: Tree, path: str) -> str:
    """The folder that holds the classes of the split at `path`: `train/images/` for `train/images/cat`."""
    while len(kids := tree.inside[path]) == 1 and len(tree.inside.get(f"{path}{kids[0]}/", [])) > 1:
        path += f"{kids[0]}/"
    return path


def _unused(tree: Tree, parts: dict[str, Part]) -> list[str]:
    """Descriptions of images outside of classes, by folder."""
    above = {path for part in parts for path, _ in ancestors(part)}
    lines = []
    for path in sorted({"", *tree.every}):
        part = parts.get(path)
        if part is not None and part.label is None:
            if path in tree.own:
                lines.append(f"{_count(tree.own[path])} beside the class folders in {_shown(path)}")
            if VOID in tree.inside.get(path, []):
                lines.append(f"{_shown(f'{path}{VOID}/')} ({_count(tree.every[f'{path}{VOID}/'])})")
        elif part is None and path in above:
            if path in tree.own:
                lines.append(f"{_count(tree.own[path])} directly in {_shown(path)}")
        elif part is None and path[: path.rstrip("/").rfind("/") + 1] in above:  # its subfolders are part of its count
            lines.append(f"{_shown(path)} ({_count(tree.every[path])})")
    return lines


def _check_two_names(splits: dict[str, str], at: str, data: str) -> None:
    """DataError where two folders have names of one split, such as val and valid."""
    for split in SPLITS:
        named = [kid for kid, own in splits.items() if own == split]
        if len(named) > 1:
            raise DataError(
                f"{data} holds {' and '.join(_shown(f'{at}{kid}/') for kid in sorted(named))}: each means {split}.\n"
                "Expected one folder per split: join them, or take one of them out."
            )


def _check_classes(kids: Sequence[str], at: str, data: str) -> None:
    """DataError for folders of classes that hold splits, or pictures of all kinds."""
    if len(set(splits_of(kids).values())) > 1 and "train" in splits_of(kids).values():
        raise _two_readings(
            data, f"{_list(kids)} as classes of {_shown(at)}", f"{_list(splits_of(kids))} as splits", at
        )
    odd = [kid for kid in kids if all(word in _OF_ALL_KINDS or word.isdigit() for word in words(kid)) and words(kid)]
    odd = [kid for kid in odd if set(words(kid)) & PICTURE_WORDS]
    if odd and len(kids) > 1:
        raise _of_all_kinds(f"{at}{odd[0]}/", [kid for kid in kids if kid != odd[0]], data)


def _check_inside(tree: Tree, kids: Sequence[str], at: str, data: str) -> None:
    """DataError where folders of classes all hold the same folders, or one of them holds those beside it.

    They may be parts of a data set (`fold1/cat`, `grey/cat`), or a copy (`thumbnails/cat` beside `cat`).
    """
    inner = {kid: _class_names(tree.inside.get(f"{at}{kid}/", ())) for kid in kids}
    for kid, own in inner.items():
        if len(beside := own & (set(kids) - {kid})) > 1:
            copy = f"classes {_list(set(kids) - {kid})}, and those in {_shown(f'{at}{kid}/')} not used"
            raise _two_readings(data, f"classes {_list(kids)}, where {kid} holds {_list(beside)}, too", copy, "")
    common, every = set.intersection(*inner.values()), set.union(*inner.values())
    if len(kids) > 1 and len(common) > 1 and 2 * len(common) >= len(every):
        parts = f"classes {_list(common)}, in {_list(kids)} as data sets of their own"
        raise _two_readings(data, f"classes {_list(kids)}", parts, f"{at}{kids[0]}/")


def _class_names(folders: Iterable[str]) -> set[str]:
    """Folders that may be classes: not `images`, and not numbered ones (`cam1`, `cam2`, `000`, `001`)."""
    named = [kid for kid in folders if not set(words(kid)) <= PICTURE_WORDS | PLAIN_WORDS]
    alike = Counter("".join(word for word in words(kid) if not word.isdigit()) for kid in named)
    return {
        kid
        for kid in named
        if not (any(c.isdigit() for c in kid) and alike["".join(w for w in words(kid) if not w.isdigit())] > 1)
        or (kid.isdigit() and len(kid) < 3)
    }


def _of_all_kinds(folder: str, beside: Iterable[str], data: str) -> DataError:
    return DataError(
        f"no class folders: {_shown(folder)} holds pictures of all kinds\n"
        f"It is beside {_list(beside)} in {data}.\n"
        f"If the classes are in {_shown(folder)}, give that folder; if it is a class, rename it."
    )


def _no_class_folders(splits: dict[str, str], top: str, data: str) -> DataError:
    return DataError(
        f"{data} holds splits without class folders: in {_list(f'{top}{kid}/' for kid in splits)}.\n"
        "Expected SPLIT/CLASS/IMAGE, such as train/cat/1.jpg: without class folders no image has a label."
    )


def _two_readings(data: str, first: str, second: str, give: str) -> DataError:
    return DataError(
        f"{data} can be read in two ways: (1) {first}; (2) {second}.\n"
        f"Rename or move folders so that one way is left, or give the folder that is meant"
        f"{f', such as {_shown(give)}' if give else ''}."
    )


def _list(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return printable(", ".join(names[:5])) + more


def _count(number: int) -> str:
    return f"{number:,} image{'s' * (number != 1)}"


def _shown(path: str) -> str:
    return printable(path) or "the root"


def _bytes(name: str) -> str:
    return f"{printable(name)} ({ascii(name)[1:-1]})"
