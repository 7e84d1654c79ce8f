"""Attention maps: attention of the class token or, without one, likeness to the whole image.

After Caron et al. 2021, figures 1, 3 and 4.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as VF

from nolabel.networks.backbones import Backbone
from nolabel.networks.inspect import cosine_to_pooled, mass_mask
from nolabel.networks.modes import evaluating
from nolabel.plots.colors import CATEGORICAL, colormap
from nolabel.plots.sheet import FAINT, INK, PAGE, Tile, font, sheet, tile_size, to_image
from nolabel.views import normalize

_MAPS_A_ROW = 7


def prepare(image: Tensor, size: int, multiple: int | None, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Resize an image (3, H, W) uint8 for a backbone and normalise it: (3, h, w) float32.

    The shorter side becomes `size` pixels and the shape stays, but for rounding both sides to a `multiple`
    (the patch size; None for a CNN). The authors show 480 px for networks trained at 224.
    """
    if size < 1:
        raise ValueError(f"size is the shorter side of the picture in pixels and must be at least 1, not {size}.")
    step = multiple or 1
    shorter = min(image.shape[-2:])
    sides = [max(step, round(side * size / shorter / step) * step) for side in image.shape[-2:]]
    return normalize(VF.resize(image, sides, interpolation=InterpolationMode.BICUBIC, antialias=True), mean, std)


def attention_maps(backbone: Backbone, image: Tensor) -> Tensor:
    """Attention of the class token over the patches in the last block: (H, rows, columns), one map per head.

    `image` is (3, H, W), normalised. Raises UsageError for a backbone without: see `similarity_map`.
    """
    with looking(backbone) as device:
        maps, grid = backbone.attention(image[None].to(device))
    return maps[0].float().view(-1, *grid).cpu()


def similarity_map(backbone: Backbone, image: Tensor) -> Tensor:
    """Cosine between each location's feature and the pooled one: (1, rows, columns), from -1 to 1."""
    with looking(backbone) as device:
        features = backbone(image[None].to(device))
        return cosine_to_pooled(features).float().view(-1, *features.grid).cpu()


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (H, rows, columns) at `size` = (height, width) pixels: nearest, so that patches show."""
    return F.interpolate(maps[None].float(), size=size, mode="nearest-exact")[0].to(maps.dtype)


def attention_sheet(
    backbone: Backbone,
    image: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    title: str = "",
    keep: float = 0.6,
) -> Image.Image:
    """Draw one image, the mean map and a map per head in viridis; below, the patches that hold the share `keep`.

    `image` is (3, H, W), normalised (see `prepare`). A backbone without attention gets its similarity map
    instead, and the sheet has a note.
    """
    picture = to_image(image, mean, std)
    if not backbone.has_attention:
        return _similarity_sheet(similarity_map(backbone, image), picture, title)
    heads = attention_maps(backbone, image)
    size = tile_size(picture)
    average = heads.mean(0, keepdim=True)
    maps = torch.cat([average, heads])
    masks = mass_mask(maps, keep)
    colors = [INK, *(CATEGORICAL[i % len(CATEGORICAL)] for i in range(len(heads)))]
    names = [f"mean of {len(heads)}", *(f"head {i}" for i in range(1, len(heads) + 1))]
    top = [Tile(_heat(m, size), name, f"peak {m.max():.1%}") for m, name in zip(maps, names, strict=True)]
    low = [
        Tile(_overlay(picture, mask[None], [color], size), f"{mask.float().mean():.0%}", "of the patches")
        for mask, color in zip(masks, colors, strict=True)
    ]
    ours = (
        Tile(picture.resize(size, Image.Resampling.BICUBIC), "image", f"{picture.width} x {picture.height}"),
        Tile(_overlay(picture, _strongest(heads, masks[1:]), colors[1:], size), "all heads"),
    )
    rows = [
        [first if start == 0 else Tile(None), *tiles[start : start + _MAPS_A_ROW]]
        for start in range(0, len(maps), _MAPS_A_ROW)
        for first, tiles in zip(ours, (top, low), strict=True)
    ]
    note = f"Attention of the class token, last block. Below: the fewest patches that hold {keep:.0%} of it."
    return sheet(rows, size, title, note)


def snapshot(backbone: Backbone, images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """A contact sheet of images (B, 3, H, W), normalised, each above its map: one frame of a run's history.

    Rows of four. The map is the mean over the heads, or the similarity map of a backbone without attention,
    each stretched from its lowest to its highest value.
    """
    with looking(backbone) as device:
        if backbone.has_attention:
            values, grid = backbone.attention(images.to(device))
            caption = f"Attention of the class token, mean of {values.shape[1]} heads"
        else:
            features = backbone(images.to(device))
            values, grid = cosine_to_pooled(features)[:, None], features.grid
            caption = "Cosine of each location with the pooled feature"
    maps = values.mean(1).float().view(-1, *grid).cpu()
    side, gap, columns = 136, 8, 4
    num_rows = -(-len(images) // columns)
    pitch = 2 * side + 2  # an image and its map belong together
    page = Image.new("RGB", (columns * (side + gap) + gap, num_rows * (pitch + gap) + gap + 26), PAGE)
    for i, (image, one) in enumerate(zip(images, maps, strict=True)):
        x, y = gap + i % columns * (side + gap), gap + i // columns * (pitch + gap)
        page.paste(to_image(image, mean, std).resize((side, side), Image.Resampling.BICUBIC), (x, y))
        page.paste(_heat(one, (side, side)), (x, y + side + 2))
    ImageDraw.Draw(page).text((gap, page.height - 26), caption, FAINT, font(16))
    return page


def _similarity_sheet(similarity: Tensor, picture: Image.Image, title: str) -> Image.Image:
    size = tile_size(picture)
    heat = _heat(similarity[0], size)
    image = picture.resize(size, Image.Resampling.BICUBIC)
    row = [
        Tile(image, "image", f"{picture.width} x {picture.height}"),
        Tile(heat, "cosine", f"{similarity.min():.2f} to {similarity.max():.2f}"),
        Tile(Image.blend(image, heat, 0.55), "both"),
    ]
    note = "Cosine of each location with the pooled feature: this network has no class token to attend."
    return sheet([row], size, title, note)


def _heat(values: Tensor, size: tuple[int, int]) -> Image.Image:
    """A map (rows, columns) in viridis, from its lowest to its highest value, at `size` = (width, height)."""
    low, high = values.min(), values.max()
    stretched = (values - low) / (high - low).clamp_min(1e-12)
    return Image.fromarray(colormap(upsample(stretched[None], size[::-1])[0]))


def _overlay(
    picture: Image.Image, masks: Tensor, colors: Sequence[tuple[int, int, int]], size: tuple[int, int]
) -> Image.Image:
    """The picture, dim outside the masks (H, rows, columns) bool, tinted inside each mask with its colour."""
    rgb = np.asarray(picture.resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    grey = rgb.mean(-1, keepdims=True)
    out = 0.3 * grey + 0.7 * np.array(PAGE) * 0.5
    for mask, color in zip(upsample(masks, size[::-1]).numpy(), colors, strict=True):
        out = np.where(mask[..., None], 0.5 * rgb + 0.2 * grey + 0.3 * np.array(color), out)
    return Image.fromarray(np.clip(np.rint(out), 0, 255).astype(np.uint8))


def _strongest(heads: Tensor, masks: Tensor) -> Tensor:
    """Masks (H, rows, columns) without overlap: a patch stays with the head that looks at it the most."""
    winner = torch.where(masks, heads, -1.0).argmax(0, keepdim=True)
    return masks & (torch.arange(len(heads))[:, None, None] == winner)


@contextmanager
def looking(backbone: Backbone) -> Iterator[torch.device]:
    """Eval mode without gradients; afterwards every module has its own mode back. Gives the device."""
    with evaluating(backbone):
        yield next(backbone.parameters()).device
