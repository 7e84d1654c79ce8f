"""Masks as files: PNGs with the palette of PASCAL VOC and DAVIS, and animations of clips with masks over them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nolabel.errors import StorageError
from nolabel.files import replacing

WIDTH = 320
"""Pixels of an animation."""


def palette() -> NDArray[np.uint8]:
    """256 colours (256, 3): the bits of an id, three by three, are the highest bits of red, green and blue."""
    colors, ids = np.zeros((256, 3), np.uint8), np.arange(256)
    for bit in range(8):
        colors[:, bit % 3] |= ((ids >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return colors


def write_mask(path: Path, mask: Tensor) -> None:
    """Ids (H, W) from 0 to 255 as an indexed PNG. Raises StorageError."""
    image = Image.fromarray(mask.byte().numpy())
    image.putpalette(palette().tobytes())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            image.save(file, "PNG")
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}). Choose another --out.") from error


def paint(picture: Tensor, mask: Tensor) -> Image.Image:
    """A picture (3, H, W) uint8 with the objects of `mask` (H, W) tinted and the rest grey, WIDTH pixels wide."""
    height = max(1, round(WIDTH * picture.shape[1] / picture.shape[2]))
    image = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((WIDTH, height), Image.Resampling.BILINEAR)
    ids = np.asarray(Image.fromarray(mask.byte().numpy()).resize((WIDTH, height), Image.Resampling.NEAREST))
    rgb = np.asarray(image, dtype=np.float32)
    grey = 0.75 * rgb.mean(2, keepdims=True) + 0.25 * rgb
    tinted = np.where(ids[..., None] > 0, 0.5 * rgb + 0.5 * np.minimum(palette()[ids] * 1.7 + 30, 255), 0.7 * grey)
    return Image.fromarray(np.clip(np.rint(tinted), 0, 255).astype(np.uint8))


def write_clip(path: Path, pictures: Iterable[Tensor], masks: Sequence[Tensor], rate: int = 12) -> None:
    """An animated WebP, `rate` frames a second, that repeats for ever. Raises StorageError."""
    frames = [paint(picture, mask) for picture, mask in zip(pictures, masks, strict=True)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        form: dict[str, Any] = {"save_all": True, "duration": 1000 // rate, "loop": 0, "quality": 60}
        with replacing(path) as file:
            frames[0].save(file, "WEBP", append_images=frames[1:], **form)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}). Choose another --out.") from error
