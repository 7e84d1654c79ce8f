"""Classes of masks without a list of classes: the ids in the masks, and the meaning of 255."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nolabel.errors import DataError
from nolabel.evals.shared.trees import Tree, read_mask, shown

VOID_ID = 255
OBJECT = ("background", "object")
"""Classes of black and white masks."""


class Found(NamedTuple):
    """Classes of masks, made from the ids that the masks hold."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    void: tuple[int, ...]


class _Seen(NamedTuple):
    """Ids in the masks of a split."""

    pixels: Counter[int]
    """Number of pixels by id."""
    white: int
    """Number of masks that hold 255."""
    white_with_more: int
    """Number of masks that hold 255 and an id other than 0."""


def find_ids(tree: Tree, masks: Mapping[str, Sequence[str]], asked: int | None) -> Found:
    """The classes of the masks of splits. 0 and 255 alone are background and one object.

    255 is void in two cases: the same masks hold ids that count from 0 or 1; or `asked` (--void) is 255. DataError
    where 255 may be a class as well, and where train holds one class only.
    """
    seen = {split: _look(tree, names) for split, names in masks.items()}
    ids = {i for one in seen.values() for i in one.pixels}
    others = sorted(ids - {VOID_ID})
    if asked is None and VOID_ID in ids and set(others) <= {0}:
        classes = Found(OBJECT, (0, VOID_ID), ())
    else:
        if asked != VOID_ID and VOID_ID in ids:
            _check_void(seen, others)
        void = tuple({VOID_ID: None, asked: None}) if asked is not None else (VOID_ID,)
        kept = [i for i in others if i not in void]
        classes = Found(tuple(map(str, kept)), tuple(kept), tuple(i for i in void if i is not None))
    if "train" in seen and len(classes.ids) > 1:
        _check_train(seen, classes)
    return classes


def _look(tree: Tree, names: Sequence[str]) -> _Seen:
    pixels, white, more = Counter[int](), 0, 0
    for name in names:
        values, counts = np.unique(read_mask(tree, name).numpy(), return_counts=True)
        ids = dict(zip(values.tolist(), counts.tolist(), strict=True))
        pixels.update(ids)
        white += VOID_ID in ids
        more += VOID_ID in ids and any(i not in (0, VOID_ID) for i in ids)
    return _Seen(pixels, white, more)


def _check_void(seen: Mapping[str, _Seen], others: Sequence[int]) -> None:
    """DataError where 255 may be a class: other ids have gaps, are in other masks, or look like smoothed edges."""
    pixels = sum((one.pixels for one in seen.values()), Counter[int]())
    ends = pixels[0] + pixels[VOID_ID]
    edges = len(others) > 8 and max(others) > 128 and ends > 0.8 * pixels.total()
    counting = max(others) < 3 * len(others)  # ids such as 0, 1, 2, 5, not 0, 128
    together = 2 * sum(one.white_with_more for one in seen.values()) >= sum(one.white for one in seen.values())
    if counting and together and not edges:
        return
    values = shown([str(i) for i in (*others, VOID_ID)], 12)
    rare = "Most pixels are 0 or 255: if masks of black and white were resized or smoothed, undo it.\n" * edges
    raise DataError(
        f"The masks hold the values {values}, which can be read in two ways: (1) 255 is void; (2) 255 is a class.\n"
        f"Choose: (1) --void 255; (2) --classes FILE with a line for each value, 255 too.\n"
        f"{rare}nolabel takes 255 for void only where the same masks hold ids that count from 0 or 1."
    )


def _check_train(seen: Mapping[str, _Seen], classes: Found) -> None:
    """DataError where train holds fewer than two of the classes."""
    there = [name for name, i in zip(classes.names, classes.ids, strict=True) if seen["train"].pixels[i]]
    if len(there) < 2:
        lacks = [f"{n} ({i})" for n, i in zip(classes.names, classes.ids, strict=True) if not seen["train"].pixels[i]]
        raise DataError(
            f"The masks of train hold {there[0] if there else 'void'} alone; {shown(lacks)} only in the other split.\n"
            "Nothing can be learned: train needs masks of two classes or more."
        )
