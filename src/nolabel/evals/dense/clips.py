"""Clips with the masks of their objects: the trees of DAVIS 2016 and 2017, or `frames/` beside `masks/`."""

import posixpath
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nolabel.data.names import printable
from nolabel.errors import DataError
from nolabel.evals.dense.mask_ids import VOID_ID
from nolabel.evals.shared.trees import Tree, below, open_tree, read_mask, read_text, shown

ROOTS = (("JPEGImages/480p", "Annotations/480p"), ("JPEGImages/Full-Resolution", "Annotations/Full-Resolution"))
OTHER_ROOTS = (("JPEGImages", "Annotations"), ("frames", "masks"))
LISTS = (
    "ImageSets/2017/val.txt",
    "ImageSets/2016/val.txt",
    "ImageSets/480p/val.txt",
    "val.txt",
)


class Clip(NamedTuple):
    """One sequence."""

    name: str
    frames: tuple[str, ...]
    masks: tuple[str | None, ...]
    """None where a frame has no mask; the first one always has."""


class Clips(NamedTuple):
    """The clips of an evaluation."""

    tree: Tree
    clips: tuple[Clip, ...]
    listed_in: str | None
    """The list that chose them; None: all there are."""


class Ignored(NamedTuple):
    """Numbers in masks that are no objects to score, as CLIP/NUMBER; it grows clip by clip."""

    later: list[str]
    """In a later mask and not in the first: background, as in DAVIS's metric."""
    skipped: list[str]
    """Below the largest of the first mask, and in none."""

    def add(self, clip: Clip, objects: Sequence[int], masks: Sequence[Tensor]) -> None:
        """Add those of a clip with `objects` in its first mask and these `masks` (H, W) of later frames."""
        seen = {int(n) for mask in masks for n in torch.unique(mask)} - {0, *objects}
        self.later.extend(f"{clip.name}/{n}" for n in sorted(seen))
        self.skipped.extend(f"{clip.name}/{n}" for n in range(1, max(objects)) if n not in {*objects, *seen})

    def notes(self) -> list[str]:
        """A line for each kind of them."""
        notes = []
        if self.later:
            notes.append(
                f"objects that appear after the first frame are not scored, as in DAVIS's metric: {shown(self.later)}"
            )
        if self.skipped:
            notes.append(
                f"numbers that the masks skip are not scored: {shown(self.skipped)}. DAVIS's own code counts each as "
                "an object that is right in every frame"
            )
        return notes


def scan_clips(data: str | Path) -> Clips:
    """The clips of DATA, a folder or zip; docs/evals/video.md has the layouts.

    Raises DataError for other trees, a listed clip that is missing, a mask without a frame and a clip whose first
    frame has no mask or that is too short to be scored.
    """
    tree = open_tree(data)
    for frames_root, masks_root in (*ROOTS, *OTHER_ROOTS):
        frames, masks = below(tree, frames_root), below(tree, masks_root)
        if frames and masks:
            break
    else:
        raise DataError(
            f"{printable(str(data))} holds no clips with masks.\n"
            "Expected JPEGImages/480p/CLIP/00000.jpg with Annotations/480p/CLIP/00000.png (DAVIS),\n"
            "or frames/CLIP/00000.jpg with masks/CLIP/00000.png, and maybe a val.txt that names the clips."
        )
    lost = sorted(masks.keys() - frames.keys())
    if lost:
        raise DataError(f"Masks in {masks_root} without a frame in {frames_root}: {shown(lost)}.")
    by_clip = defaultdict[str, list[str]](list)
    for key in sorted(frames):
        by_clip[posixpath.dirname(key)].append(key)
    names, listed_in = _listed(tree, sorted(name for name in by_clip if any(k in masks for k in by_clip[name])))
    missing = [name for name in names if name not in by_clip]
    if missing:
        raise DataError(f"{listed_in} names clips that are not there: {shown(missing)}.")
    clips = [_clip(name, by_clip[name], frames, masks) for name in names]
    return Clips(tree, tuple(clips), listed_in)


def is_binary(tree: Tree, name: str) -> bool:
    """True if a mask holds nothing but 0 and 255: one object, as in DAVIS 2016."""
    return set(torch.unique(read_mask(tree, name)).tolist()) <= {0, VOID_ID}


def read_objects(tree: Tree, name: str, binary: bool) -> Tensor:
    """Object ids (H, W) int64 in a mask, 0 the background: of a `binary` clip 255 is one object, else background.

    Whether it is one is decided by the first mask: in another one everything may be gone but void.
    """
    mask = read_mask(tree, name)
    if not binary:
        return torch.where(mask == VOID_ID, 0, mask)
    if ((mask != 0) & (mask != VOID_ID)).any():
        raise DataError(f"{printable(name)} holds numbers of objects, and the first mask of its clip only 0 and 255.")
    return (mask == VOID_ID).long()


def _listed(tree: Tree, present: list[str]) -> tuple[list[str], str | None]:
    """The clips that the first list of LISTS names; lines may be names or, as in DAVIS 2016, paths of frames."""
    for name in LISTS:
        text = read_text(tree, name)
        if text is None:
            continue
        words = [line.split()[0] for line in text.splitlines() if line.strip()]
        clips = [posixpath.basename(posixpath.dirname(w)) if "/" in w else w for w in words]
        if not clips:
            raise DataError(f"{name} is empty: expected the name of one clip per line, or no such file to take all.")
        return sorted(set(clips)), name
    return present, None


def _clip(name: str, keys: list[str], frames: dict[str, str], masks: dict[str, str]) -> Clip:
    clip_masks = tuple(masks.get(key) for key in keys)
    if clip_masks[0] is None:
        raise DataError(
            f"The first frame of {printable(name)}, {printable(keys[0])}, has no mask: there is nothing to carry on."
        )
    if sum(mask is not None for mask in clip_masks[1:-1]) == 0:
        raise DataError(
            f"The clip {printable(name)} has no mask between its first and its last frame, which are not scored.\n"
            "Expected at least three frames with masks."
        )
    return Clip(name, tuple(frames[key] for key in keys), clip_masks)
