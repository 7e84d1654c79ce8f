"""A clip with the attention of each frame beside it, as one animation; and the frames of a clip that is one file.

After Caron et al. 2021: the mean over the heads, in inferno.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nolabel.data.decode import open_image
from nolabel.data.modes import to_rgb
from nolabel.errors import DataError
from nolabel.files import replacing
from nolabel.networks.backbones import Backbone
from nolabel.plots.attention import attention_maps, similarity_map, upsample
from nolabel.plots.colors import colormap
from nolabel.plots.sheet import to_image

_HEIGHT = 240
_ANIMATIONS = (".gif", ".webp", ".png", ".apng")
_VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def clip_frames(paths: Sequence[Path], limit: int) -> list[tuple[str, Tensor]]:
    """Names and pixels (3, H, W) uint8 of at most `limit` frames, where `paths` is one GIF, WebP or PNG; else none.

    Raises DataError for a video file, which needs a decoder of its own, and for a frame that can't be read.
    """
    if len(paths) != 1 or not paths[0].is_file() or paths[0].suffix.lower() not in _ANIMATIONS + _VIDEOS:
        return []
    path, frames = paths[0], list[tuple[str, Tensor]]()
    if path.suffix.lower() in _VIDEOS:
        raise DataError(
            f"{path} is a video file, and nolabel reads frames: a folder of images, or an animated GIF, WebP or PNG.\n"
            f"Make frames of it: mkdir frames && ffmpeg -i {path} frames/%05d.png"
        )
    try:
        file = open_image(path.read_bytes()).file
        if file is None:
            return []  # a JPEG under another name
        for index in range(min(getattr(file, "n_frames", 1), limit)):
            file.seek(index)
            pixels = np.array(to_rgb(file))
            frames.append((f"{path.stem}-{index:05d}", torch.from_numpy(pixels).permute(2, 0, 1)))
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise DataError(f"{path} cannot be read at frame {len(frames)}: {error}.") from None
    return frames


def attention_clip(
    path: Path,
    backbone: Backbone,
    frames: Iterable[Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    rate: int = 12,
) -> None:
    """Write an animated WebP, `rate` frames a second: each frame (3, H, W), normalised, beside its map.

    The map is the mean over the heads of the last block or, for a backbone without attention, its similarity map;
    each is stretched from its lowest to its highest value.
    """
    pages = [_page(backbone, frame, mean, std) for frame in frames]
    pages = [page if page.size == pages[0].size else page.resize(pages[0].size) for page in pages]
    form: dict[str, Any] = {"save_all": True, "duration": 1000 // rate, "loop": 0, "quality": 70}
    with replacing(path) as file:
        pages[0].save(file, "WEBP", append_images=pages[1:], **form)


def _page(backbone: Backbone, frame: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    find = attention_maps if backbone.has_attention else similarity_map
    values = find(backbone, frame).mean(0, keepdim=True)
    values = (values - values.min()) / (values.max() - values.min()).clamp_min(1e-12)
    picture = to_image(frame, mean, std)
    size = (max(1, round(picture.width * _HEIGHT / picture.height)), _HEIGHT)
    page = Image.new("RGB", (2 * size[0] + 4, _HEIGHT))
    page.paste(picture.resize(size, Image.Resampling.BICUBIC), (0, 0))
    page.paste(Image.fromarray(colormap(upsample(values, size[::-1])[0], "inferno")), (size[0] + 4, 0))
    return page
