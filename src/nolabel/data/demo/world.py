"""The demo world: small pictures of ten shapes, drawn on the spot, so that a first run needs no download.

The class is the outline of the object and nothing else. Colour, texture, pose, size, place, light, background, clutter
and occluders are random in every picture, so raw pixels hold little information about the class. One seed with two
classes is the same scene with another outline; one seed at two sizes is the same scene, sharper.

A picture is a function of (class, seed, size), the same on every machine; `data/demo/scene.py` draws it.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nolabel.data.demo.scene import Bytes, Mask, draw
from nolabel.errors import UsageError

CLASSES = ("arrow", "bolt", "crescent", "cross", "fish", "heart", "house", "mushroom", "ring", "star")


def render(class_id: int, seed: int, size: int = 32) -> tuple[Bytes, Mask]:
    """A picture (size, size, 3) of class `CLASSES[class_id]`, and the mask (size, size) of its object's visible part.

    `seed` is any number from 0 to 2**64 - 1. Raises UsageError for a class, seed or size that does not exist.
    """
    return _frame(class_id, seed, size, 0)


def _frame(class_id: int, seed: int, size: int, frame: int) -> tuple[Bytes, Mask]:
    if not (0 <= class_id < len(CLASSES) and 0 <= seed < 2**64 and size >= 8):
        raise UsageError(
            f"class {class_id}, seed {seed}, size {size}: expected a class below {len(CLASSES)}, a seed from 0 to "
            "2**64 - 1 and a size of at least 8 pixels."
        )
    return draw(CLASSES[class_id], seed, size, frame)


def clip(class_id: int, seed: int, num_frames: int, size: int) -> tuple[Bytes, NDArray[np.bool_]]:
    """A clip (T, size, size, 3) with its masks (T, size, size): object, clutter and background move, each its own way.

    Frame 0 is `render(class_id, seed, size)`; 24 frames are a second.
    """
    if num_frames < 1:
        raise UsageError(f"num_frames is {num_frames}: a clip needs at least one frame.")
    frames, masks = zip(*(_frame(class_id, seed, size, frame) for frame in range(num_frames)), strict=True)
    return np.stack(frames), np.stack(masks)


def write(folder: str | Path, num_train: int, num_val: int, size: int, seed: int) -> None:
    """Write `train/CLASS/00001.png` ... and `val/CLASS/...`: num_train and num_val pictures in all, shared out evenly.

    `seed` (below 2**31) names the world; no two of its pictures share a scene. Raises UsageError if `folder` is not
    empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder.\nName another folder, or remove it first.")
    if not 0 <= seed < 2**31 or max(num_train, num_val) >= 2**31:
        raise UsageError(f"seed {seed}: a world's seed is from 0 to 2**31 - 1, like its number of pictures.")
    for part, (split, num_images) in enumerate((("train", num_train), ("val", num_val))):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
        for index in range(num_images):
            number, class_id = divmod(index, len(CLASSES))
            image, _ = render(class_id, (seed << 33) + (part << 32) + index, size)
            file = folder / split / CLASSES[class_id] / f"{number + 1:05d}.png"
            Image.fromarray(image).save(file, compress_level=1)
