"""The demo world: small pictures of ten shapes, drawn on the spot, so that a first run needs no download.

The class is the outline of the object and nothing else. Colour, texture, pose, size, place, light, background, clutter
and occluders are random in every picture, so raw pixels tell little about it. One seed with two classes is the same
scene with another outline; one seed at two sizes is the same scene, sharper.

A picture is a function of (class, seed, size), the same on every machine; `data/scene.py` draws it.
"""

import io
import math
from pathlib import Path

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from nolabel.data.demo.scene import Bytes, Mask, draw
from nolabel.errors import UsageError, nearest

CLASSES = ("arrow", "bolt", "crescent", "cross", "fish", "heart", "house", "mushroom", "ring", "star")


KINDS = ("jpeg", "crop", "blur", "color", "rotate", "strong")  # of distorted copies


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
        raise UsageError(f"seed {seed}: a world's seed lies between 0 and 2**31 - 1, like its number of pictures.")
    for part, (split, num_images) in enumerate((("train", num_train), ("val", num_val))):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
        for index in range(num_images):
            number, class_id = divmod(index, len(CLASSES))
            image, _ = render(class_id, (seed << 33) + (part << 32) + index, size)
            file = folder / split / CLASSES[class_id] / f"{number + 1:05d}.png"
            Image.fromarray(image).save(file, compress_level=1)


def distort(image: Bytes, kind: str, seed: int) -> Bytes:
    """A distorted copy of an image (H, W, 3), of the same shape: what copy detection has to see through.

    jpeg: quality 5 to 30 (bytes as this machine's JPEG library decodes them). crop: 40 to 75 % of each side, enlarged.
    blur: sigma 2 to 5 % of the shorter side. color: gain and offset of each channel. rotate: 10 to 30 degrees.
    strong: rotate, crop, color, blur and jpeg together, with a bar pasted over it. Raises UsageError for another kind.
    """
    if kind not in KINDS:
        raise UsageError(f"Unknown distortion {kind!r}, expected one of {', '.join(KINDS)}.{nearest(kind, KINDS)}")
    rng = Generator(Philox(key=[seed, 2**63]))
    picture = Image.fromarray(image)
    for step in ("rotate", "crop", "color", "bar", "blur", "jpeg"):
        if step == kind or kind == "strong":
            picture = _distort(picture, step, rng)
    return np.asarray(picture)


def _distort(picture: Image.Image, kind: str, rng: Generator) -> Image.Image:
    width, height = picture.size
    if kind == "rotate":
        angle = math.copysign(rng.uniform(10, 30), rng.random() - 0.5)
        return picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=tuple(rng.integers(256, size=3).tolist()))
    if kind == "crop":
        share = rng.uniform(0.4, 0.75)
        left, top = rng.random() * (1 - share) * width, rng.random() * (1 - share) * height
        box = (left, top, left + share * width, top + share * height)
        return picture.resize(picture.size, Image.Resampling.BICUBIC, box=box)
    if kind == "color":
        gain, offset = 0.6 + 0.6 * rng.random(3), 80 * rng.random(3) - 40
        return picture.point(
            [int(min(255, max(0, value * g + o))) for g, o in zip(gain, offset, strict=True) for value in range(256)]
        )
    if kind == "bar":
        top, color = int(rng.random() * 0.75 * height), tuple(rng.integers(256, size=3).tolist())
        picture.paste(color, (0, top, width, top + height // 6))
        return picture
    if kind == "blur":
        return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.02, 0.05) * min(picture.size)))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=int(rng.integers(5, 31)))
    return Image.open(file).convert("RGB")
