"""Attacks: changed copies of an image, that copy detection has to see through; functions of (seed, name, attack).

The kinds are those of INRIA Copydays (Jégou et al. 2008), made on the spot for any image: JPEG after shrinking, crops,
blur, and "strong": a little rotation, a crop, other colours, a bar, blur and JPEG on top of each other. A person still
shows at a glance which image it was.
"""

import hashlib
import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from nolabel.data.names import name_bytes
from nolabel.errors import UsageError
from nolabel.randomness import generator

ATTACKS = ("strong", "jpegqual/8", "jpegqual/30", "crops/30", "crops/60", "blur/3")
LIMITS = {"jpegqual": (1, 100), "crops": (1, 95), "blur": (1, 50)}
"""Least and greatest level: JPEG quality, percent of the area cut off, percent of the shorter side."""
JPEG_PIXELS = 512 * 384
"""Images are shrunk to this before the JPEG attack: about a sixteenth of Copydays' pixels, as there."""


def check_attacks(names: Sequence[str]) -> None:
    """UsageError for an attack that does not exist, for one named twice, or for none at all."""
    for name in names:
        kind, _, level = name.partition("/")
        low, high = LIMITS.get(kind, (1, 0))
        if name != "strong" and not (level.isascii() and level.isdigit() and low <= int(level) <= high):
            levels = ", ".join(f"{kind}/{low} to {kind}/{high}" for kind, (low, high) in LIMITS.items())
            raise UsageError(f"There is no attack {name!r}. Expected strong, {levels}.")
    if not names or len(set(names)) < len(names):
        raise UsageError(f"Name every attack once and at least one, such as {', '.join(ATTACKS)}.")


def attack(image: Tensor, name: str, key: str, seed: int) -> Tensor:
    """The changed copy of `image` (3, H, W) uint8, a function of it and of (seed, key, name); `key` is its name."""
    digest = hashlib.sha256(b"%d\0%s\0%s" % (seed, name_bytes(key), name.encode())).digest()
    rng = generator("attack", int.from_bytes(digest[:8], "little"))
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    kind, _, level = name.partition("/")
    if kind == "strong":
        changed = _strong(picture, rng)
    elif kind == "crops":
        changed = _crop(picture, int(level) / 100, rng)
    elif kind == "jpegqual":
        changed = _jpeg(picture, int(level))
    else:
        changed = _blur(picture, int(level) / 100)
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1)


def _strong(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotation by up to 15 degrees, 30 to 60 % cut off, gain and offset of each channel, a bar, blur, JPEG 10 to 30."""
    color = rng.integers(256, size=6).tolist()
    picture = picture.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC, fillcolor=tuple(color[:3]))
    picture = _crop(picture, rng.uniform(0.3, 0.6), rng)
    gain, offset = rng.uniform(0.7, 1.2, 3), rng.uniform(-25, 25, 3)
    values = np.clip(np.arange(256)[None] * gain[:, None] + offset[:, None], 0, 255)
    picture = picture.point(values.astype(np.uint8).flatten().tolist())
    top, height = int(rng.random() * 0.85 * picture.height), max(1, picture.height // 8)
    picture.paste(tuple(color[3:]), (0, top, picture.width, top + height))
    return _jpeg(_blur(picture, rng.uniform(0.002, 0.01)), int(rng.integers(10, 31)))


def _crop(picture: Image.Image, cut_off: float, rng: np.random.Generator) -> Image.Image:
    """A crop without a share of the area, of the same aspect ratio and anywhere in the picture."""
    side = math.sqrt(1 - cut_off)
    width, height = max(1, round(side * picture.width)), max(1, round(side * picture.height))
    left, top = rng.integers(picture.width - width + 1), rng.integers(picture.height - height + 1)
    return picture.crop((int(left), int(top), int(left) + width, int(top) + height))


def _jpeg(picture: Image.Image, quality: int) -> Image.Image:
    scale = min(1.0, math.sqrt(JPEG_PIXELS / (picture.width * picture.height)))
    if scale < 1:
        size = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _blur(picture: Image.Image, share: float) -> Image.Image:
    """Gaussian blur with a sigma of a share of the shorter side."""
    return picture.filter(ImageFilter.GaussianBlur(share * min(picture.size)))
