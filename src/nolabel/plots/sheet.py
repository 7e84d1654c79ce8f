"""Sheets: labelled tiles in rows on one dark page, so that every picture of the project looks alike."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PAGE, INK, FAINT = (17, 20, 26), (232, 236, 242), (146, 155, 170)
_GAP, _MARGIN = 10, 20


class Tile(NamedTuple):
    """One picture of a sheet, or an empty place; `note` is the faint second half of the label."""

    image: Image.Image | None
    label: str = ""
    note: str = ""


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow, at `size` pixels."""
    return ImageFont.load_default(size)


def sheet(rows: Sequence[Sequence[Tile]], tile: tuple[int, int], title: str = "", note: str = "") -> Image.Image:
    """Tiles in rows, each image at the foot of `tile` (width, height), under a title and a faint note."""
    columns = max(len(row) for row in rows)
    title, note = _clip(title, 900, 20), _clip(note, 1200, 13)
    # The tiles may be few and narrow, the words are not: the page is never narrower than they are.
    head = (28 if title else 0) + (20 if note else 0) + (8 if title or note else 0)
    labels = [24 if any(t.label or t.note for t in row) else 0 for row in rows]
    words = max(font(20).getlength(title), font(13).getlength(note))
    width = max(columns * (tile[0] + _GAP) - _GAP, int(words)) + 2 * _MARGIN
    height = 2 * _MARGIN + head + sum(tile[1] + label + _GAP for label in labels) - _GAP
    page = Image.new("RGB", (width, height), PAGE)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, _MARGIN - 4), title, INK, font(20))
    draw.text((_MARGIN, _MARGIN + (26 if title else 0)), note, FAINT, font(13))
    y = _MARGIN + head
    for row, label in zip(rows, labels, strict=True):
        for i, item in enumerate(row):
            _draw_tile(page, draw, item, (_MARGIN + i * (tile[0] + _GAP), y, *tile))
        y += tile[1] + label + _GAP
    return page


def tile_size(picture: Image.Image, longest: int = 192) -> tuple[int, int]:
    """(width, height) of a tile in the shape of `picture`."""
    scale = longest / max(picture.size)
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def to_image(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """The picture behind a normalised image (3, H, W)."""
    shape = (3, 1, 1)
    x = image.detach().float().cpu() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    return Image.fromarray((x.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def _draw_tile(page: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, box: tuple[int, int, int, int]) -> None:
    x, y, width, height = box
    if tile.image is not None:
        page.paste(tile.image, (x, y + height - tile.image.height))
    label = _clip(tile.label, width, 14)
    draw.text((x, y + height + 5), label, INK, font(14))
    used = font(14).getlength(label) + 8
    draw.text((x + used, y + height + 6), _clip(tile.note, width - used, 12), FAINT, font(12))


def _clip(text: str, width: float, size: int) -> str:
    """The longest beginning of `text` that fits; a label never runs into its neighbour."""
    text = "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:300])
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…" if text else ""
