"""Matches between places of two images: correspondences between patch features, as DenseCL makes them.

After Wang et al. 2021, figure 5: each location's nearest in the other image by cosine, kept where both agree.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from nolabel.errors import UsageError
from nolabel.networks.backbones import Backbone, Features
from nolabel.networks.matching import Matches, match
from nolabel.plots.attention import looking, prepare, upsample
from nolabel.plots.sheet import PAGE, Tile, sheet, to_image
from nolabel.views import Drawn, View, apply, draw, normalize

_HEIGHT, _GAP, _SMOOTH = 420, 14, 3
_WRONG = (112, 118, 128)
# Corners of the first image: upper left and right, lower left and right. Between them colours blend.
_CORNERS = torch.tensor([[[255, 176, 0], [64, 176, 255]], [[240, 60, 110], [40, 225, 140]]], dtype=torch.float32)


class Pair(NamedTuple):
    """Two views of one image, and how they were cut from it."""

    first: Tensor
    """(3, S, S), normalised, as `second`."""
    second: Tensor
    drawn: tuple[Drawn, Drawn]


def show_matches(
    backbone: Backbone, images: Sequence[tuple[str, Tensor]], size: int, mean: Sequence[float], std: Sequence[float]
) -> Image.Image:
    """The sheet of two named images (3, H, W) uint8 or, of one, of two views of it; shorter side `size` pixels."""
    if len(images) == 1:
        (name, image) = images[0]
        first, second, drawn = two_views(image, size, backbone.patch_size, mean, std)
        return matches_sheet(backbone, first, second, mean, std, ("one view", "another"), name, drawn)
    if len(images) != 2:
        raise UsageError(f"nolabel show matches takes one image (two views of it) or two, not {len(images)}.")
    (name, x), (other, y) = [(n, prepare(image, size, backbone.patch_size, mean, std)) for n, image in images]
    return matches_sheet(backbone, x, y, mean, std, (name, other), f"{name} and {other}")


def two_views(image: Tensor, size: int, multiple: int | None, mean: Sequence[float], std: Sequence[float]) -> Pair:
    """Two views of an image (3, H, W) uint8 as in training, always the same: half its area or more, `size` pixels."""
    side = max(round(size / (multiple or 1)), 1) * (multiple or 1)
    view = View(side, (0.4, 0.8), interpolation="bilinear", jitter=(0.4, 0.4, 0.4, 0.1), grayscale=0.0)
    height, width = image.shape[-2:]
    a, b = (draw(view, (0, 0, 0, number), height, width) for number in range(2))
    b = b._replace(flip=not a.flip)  # so that the lines cross: place alone doesn't give the answer away
    first, second = (normalize(apply(image, view, drawn), mean, std) for drawn in (a, b))
    return Pair(first, second, (a, b))


def true_places(drawn: tuple[Drawn, Drawn], grid: tuple[int, int]) -> Tensor:
    """True place of each location of the first view in the second: (N, 2) row and column as shares of its sides.

    Locations that the second view does not show have shares below 0 or above 1.
    """
    places = centres(grid)
    (top, left, height, width), (top2, left2, height2, width2) = drawn[0].box, drawn[1].box
    across = 1 - places[:, 1] if drawn[0].flip else places[:, 1]
    row = (top + places[:, 0] * height - top2) / height2
    column = (left + across * width - left2) / width2
    return torch.stack([row, 1 - column if drawn[1].flip else column], dim=1)


def right_matches(matches: Matches, grid: tuple[int, int], truth: Tensor) -> Tensor:
    """(N,) bool: whether a match is the true place, in `grid`, the second image's, or a neighbour of it."""
    away = (centres(grid)[matches.nearest[0]] - truth) * torch.tensor(grid)
    # A true place is up to half a location beside a centre; its neighbours one more.
    return (away.abs() <= 1.5 + 1e-6).all(1)


def matches_sheet(
    backbone: Backbone,
    first: Tensor,
    second: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    names: tuple[str, str] = ("first", "second"),
    title: str = "",
    drawn: tuple[Drawn, Drawn] | None = None,
    limit: int = 40,
) -> Image.Image:
    """The strongest mutual matches between two images (3, H, W), normalised, as lines; below, all of the second.

    A colour marks a place in the first image. Below, each location of the second image has the colour of
    the one in the first that it matches, dim where the match is not mutual. With `drawn`, how two views were cut from
    one image, the sheet has the number of right matches, and wrong lines are grey. At most `limit` lines, spread out.
    """
    with looking(backbone) as device:
        a, b = (_on_cpu(backbone(image[None].to(device))) for image in (first, second))
    matches, back = match(a.patches, b.patches), match(b.patches, a.patches)
    pictures = [_at_height(to_image(image, mean, std)) for image in (first, second)]
    colors = place_colors(a.grid)
    chosen = spread(matches, a.grid, limit)
    share, cosine = matches.mutual.float().mean(), matches.cosine[0, chosen].mean()
    note = f"{share:.0%} of {matches.nearest.shape[1]} locations match both ways; cosine of those drawn {cosine:.2f}."
    ink = colors
    if drawn is not None:
        truth = true_places(drawn, a.grid)
        right, seen = right_matches(matches, b.grid, truth), ((truth >= 0) & (truth <= 1)).all(1)
        ink = torch.where(right[:, None], colors, torch.tensor(_WRONG, dtype=colors.dtype))
        note += f" Of the {seen.float().mean():.0%} that both views show, {right[seen].float().mean():.0%} are right"
        note += " to one location; wrong lines are grey."
    lines = _lines(pictures, matches, chosen, a.grid, b.grid, ink)
    left = _tinted(pictures[0], colors, torch.ones(len(colors)), a.grid)
    maps = _side_by_side([left, _tinted(pictures[1], colors[back.nearest[0]], back.mutual[0].float(), b.grid)])
    rows = [
        [Tile(lines, f"{names[0]}  |  {names[1]}", f"the {len(chosen)} strongest mutual matches")],
        [Tile(maps, "where it comes from", "right: the colour of the matching place on the left; dim: one way only")],
    ]
    return sheet(rows, lines.size, title, note)


def centres(grid: tuple[int, int]) -> Tensor:
    """(N, 2) row and column of each location's centre, as shares of the sides."""
    rows, columns = ((torch.arange(n) + 0.5) / n for n in grid)
    return torch.cartesian_prod(rows, columns)


def place_colors(grid: tuple[int, int]) -> Tensor:
    """(N, 3) colours from 0 to 255 that blend from corner to corner."""
    corners = _CORNERS.permute(2, 0, 1)
    p = centres(grid)
    row, column = p[:, 0], p[:, 1]
    top = corners[:, 0, :1] * (1 - column) + corners[:, 0, 1:] * column
    bottom = corners[:, 1, :1] * (1 - column) + corners[:, 1, 1:] * column
    blended = (top * (1 - row) + bottom * row).T
    vivid = blended - 0.6 * blended.amin(1, keepdim=True)  # the middle would be grey
    return vivid * 235 / vivid.amax(1, keepdim=True)


def spread(matches: Matches, grid: tuple[int, int], limit: int) -> Tensor:
    """Indices of the strongest mutual matches, none next to another: at most `limit`, strongest first."""
    places = centres(grid) * torch.tensor(grid)
    apart = max(1.5, math.sqrt(grid[0] * grid[1] / limit) * 0.75)
    chosen: list[int] = []
    for i in matches.cosine[0].argsort(descending=True, stable=True).tolist():
        if len(chosen) == limit:
            break
        if matches.mutual[0, i] and all((places[i] - places[j]).norm() >= apart for j in chosen):
            chosen.append(i)
    return torch.tensor(chosen, dtype=torch.int64)


def _on_cpu(features: Features) -> Features:
    return Features(features.pooled.cpu(), features.patches.cpu(), features.grid)


def _at_height(picture: Image.Image) -> Image.Image:
    return picture.resize((max(1, round(picture.width * _HEIGHT / picture.height)), _HEIGHT), Image.Resampling.BICUBIC)


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    page = Image.new("RGB", (sum(p.width for p in pictures) + _GAP, _HEIGHT), PAGE)
    page.paste(pictures[0], (0, 0))
    page.paste(pictures[1], (pictures[0].width + _GAP, 0))
    return page


def _lines(
    pictures: Sequence[Image.Image],
    matches: Matches,
    chosen: Tensor,
    grid: tuple[int, int],
    second_grid: tuple[int, int],
    colors: Tensor,
) -> Image.Image:
    """Both pictures, a little dim, with a line and two dots for each chosen match; drawn large for smooth edges."""
    calm = [Image.blend(p, Image.new("RGB", p.size, PAGE), 0.3) for p in pictures]
    page = _side_by_side(calm)
    page = page.resize((page.width * _SMOOTH, page.height * _SMOOTH), Image.Resampling.BICUBIC)
    art = ImageDraw.Draw(page)
    offset = pictures[0].width + _GAP
    edge, dots = _SMOOTH * 2, []
    for i in chosen.flip(0).tolist():  # the strongest on top
        (y, x), (y2, x2) = centres(grid)[i].tolist(), centres(second_grid)[matches.nearest[0, i]].tolist()
        start = (x * pictures[0].width * _SMOOTH, y * _HEIGHT * _SMOOTH)
        end = ((offset + x2 * pictures[1].width) * _SMOOTH, y2 * _HEIGHT * _SMOOTH)
        color = tuple(int(c) for c in colors[i].round().tolist())
        way = _arc(start, end)
        art.line(way, fill=PAGE, width=5 * _SMOOTH, joint="curve")
        art.line(way, fill=color, width=2 * _SMOOTH, joint="curve")
        dots += [(start, color), (end, color)]
    for (x, y), color in dots:
        for radius, fill in ((4 * _SMOOTH + edge, PAGE), (4 * _SMOOTH, color)):
            art.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)
    return page.resize((page.width // _SMOOTH, page.height // _SMOOTH), Image.Resampling.LANCZOS)


def _arc(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    """A flat arch, because straight lines between places at one height would cover each other."""
    bow = 0.05 * math.dist(start, end) * (1 if start[1] + end[1] > _HEIGHT * _SMOOTH else -1)  # towards the middle
    steps = [i / 32 for i in range(33)]
    return [
        (start[0] + (end[0] - start[0]) * t, start[1] + (end[1] - start[1]) * t - 4 * bow * t * (1 - t)) for t in steps
    ]


def _tinted(picture: Image.Image, colors: Tensor, strength: Tensor, grid: tuple[int, int]) -> Image.Image:
    """The picture in grey, each location in its colour (N, 3); `strength` (N,) 0 leaves it dim."""
    grey = np.asarray(picture.convert("L"), dtype=np.float64)[..., None] / 255
    size = (picture.height, picture.width)
    rgb = upsample(colors.T.reshape(3, *grid), size).permute(1, 2, 0).numpy()
    strong = upsample(strength.view(1, *grid), size).permute(1, 2, 0).numpy()
    out = (0.35 + 0.65 * grey) * rgb * strong + (0.25 * 255 * grey + 0.1 * rgb) * (1 - strong)
    return Image.fromarray(np.clip(np.rint(out), 0, 255).astype(np.uint8))
