"""The views of a whole batch on any device, from whole images and the parameters drawn for them.

The same operations in the same order as `cpu_torch.apply`, the reference: each works on all samples at once, or
on those that drew it. The parameters are read on the host, so nothing waits for the device.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nolabel.views.draw import Drawn
from nolabel.views.normalize import normalize
from nolabel.views.pixels import LUMA
from nolabel.views.spec import View

OPERATIONS = ("", "brightness", "contrast", "saturation", "hue")


_BOX, _CODES, _FACTORS = slice(0, 4), slice(4, 8), slice(8, 12)


_FLIP, _GRAY, _SIGMA, _SOLARIZE = 12, 13, 14, 15


_PIXELS = 8_000_000
"""Pixels of the images that are resized together, borders included: 12 bytes each, as floats."""


class Sources(NamedTuple):
    """Whole images and the drawn parameters of their views, all on the host."""

    pixels: Tensor
    """uint8: the pixels (H, W, 3) of each image, one after the other."""
    shapes: Tensor
    """(B, 2) int64: height and width of each image."""
    drawn: Tensor
    """(B, V, 16) float32: `as_rows` of each image."""


def as_rows(drawn: Sequence[Drawn]) -> Tensor:
    """The parameters of the views of an image as numbers (V, 16)."""
    rows = []
    for one in drawn:
        codes = [float(OPERATIONS.index(name)) for name, _ in one.jitter] + [0.0] * (4 - len(one.jitter))
        factors = [factor for _, factor in one.jitter] + [0.0] * (4 - len(one.jitter))
        rows.append([*one.box, *codes, *factors, one.flip, one.grayscale, one.sigma, one.solarize])
    return torch.tensor(rows, dtype=torch.float32)


def render(
    sources: Sources, views: Sequence[View], device: torch.device, mean: Sequence[float], std: Sequence[float]
) -> list[Tensor]:
    """The normalised views on `device`: one float32 (B, 3, size, size) per view.

    Sums depend on the batch in their last bits, so a value at the edge of two levels may round otherwise in another.
    """
    pixels = sources.pixels.to(device, non_blocking=True)
    ends = sources.shapes.prod(1).mul(3).cumsum(0).tolist()
    together: dict[tuple[int, str], list[int]] = {}  # views of one size are made as one: a few times fewer kernels
    for v, view in enumerate(views):
        together.setdefault((view.size, view.interpolation), []).append(v)
    rendered: list[list[Tensor]] = [[] for _ in views]
    at_once = max(1, _PIXELS // int(sources.shapes.amax(0).prod()))
    for at in range(0, len(ends), at_once):
        some = slice(at, at + at_once)
        shapes, drawn = sources.shapes[some].tolist(), sources.drawn[some]
        height, width = sources.shapes[some].amax(0).tolist()
        images = torch.zeros(len(shapes), 3, height, width, device=device)
        for image, (h, w), end in zip(images, shapes, ends[some], strict=True):
            image[:, :h, :w] = pixels[end - 3 * h * w : end].view(h, w, 3).permute(2, 0, 1)
        for group in together.values():
            crops = crop(images, drawn[:, group, _BOX], views[group[0]])
            made = _photometric(crops.flatten(0, 1), drawn[:, group].flatten(0, 1)).view_as(crops)
            for k, v in enumerate(group):
                rendered[v].append(made[:, k])
    return [normalize(torch.cat(parts), mean, std) for parts in rendered]


def crop(images: Tensor, boxes: Tensor, view: View) -> Tensor:
    """The boxes (B, V, 4) of `images` (B, 3, H, W) resized with antialiasing, in whole levels: (B, V, 3, size, size).

    Along the rows, then down the columns, each a matrix product with the weights of the filter, rounded as 8 bits are.
    """
    (batch, num_views, _), (height, width) = boxes.shape, images.shape[2:]
    down, along = (
        _weights(boxes[..., i].flatten(), boxes[..., 2 + i].flatten(), length, view, images.device)
        for i, length in enumerate((height, width))
    )
    along = along.view(batch, num_views * view.size, width).transpose(1, 2)
    rows = torch.bmm(images.view(batch, 3 * height, width), along).round_().clamp_(0, 255)
    rows = rows.view(batch, 3, height, num_views, view.size).permute(0, 3, 2, 1, 4).reshape(-1, height, 3 * view.size)
    columns = torch.bmm(down, rows).view(batch, num_views, view.size, 3, view.size)
    return columns.permute(0, 1, 3, 2, 4).contiguous().round_().clamp_(0, 255)


def _weights(start: Tensor, length: Tensor, total: int, view: View, device: torch.device) -> Tensor:
    """(B, size, total): the share of each of `total` pixels in each output pixel; Pillow's filters, a = -1/2.

    They are made on the device, and only near their output pixel: sending them would cost many times the images.
    """
    reach = 1 if view.interpolation == "bilinear" else 2
    num_taps = int(2 * reach * max(1.0, float(length.max()) / view.size)) + 1
    place_for = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
    start, length = (x.to(place_for)[:, None, None] for x in (start, length))
    scale = (length / view.size).double()
    wide = scale.clamp(min=1)
    center = start + scale * (torch.arange(view.size, device=place_for)[None, :, None] + 0.5)
    place = (center - 0.5 - reach * wide).ceil() + torch.arange(num_taps, device=place_for)
    x = ((place + 0.5 - center) / wide).abs()
    if view.interpolation == "bilinear":
        weights = (1 - x).clamp(min=0)
    else:
        near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
        weights = torch.where(x < 1, near, torch.where(x < 2, far, 0))
    weights = weights * ((place >= start) & (place < start + length))
    weights = weights / weights.sum(2, keepdim=True)
    table = torch.zeros(len(start), view.size, total, device=place_for)
    # Places beyond the image weigh nothing: they are added where one more zero does not matter.
    return table.scatter_add_(2, place.clamp(0, total - 1).long(), weights.float()).to(device)


def _photometric(x: Tensor, drawn: Tensor) -> Tensor:
    """Jitter, grayscale, blur, solarize and flip of crops (B, 3, size, size) 0..255; `drawn` (B, 16)."""
    for codes, factors in zip(drawn[:, _CODES].T, drawn[:, _FACTORS].T, strict=True):
        for code, name in enumerate(OPERATIONS[1:], 1):
            _where(x, codes == code, name, factors)
    _where(x, drawn[:, _GRAY] > 0, "saturation", torch.zeros(len(x)))
    _where(x, drawn[:, _SIGMA] > 0, "blur", drawn[:, _SIGMA])
    x.round_()
    _where(x, drawn[:, _SOLARIZE] > 0, "solarize", drawn[:, _SOLARIZE])
    _where(x, drawn[:, _FLIP] > 0, "flip", drawn[:, _FLIP])
    return x


def _where(x: Tensor, chosen: Tensor, name: str, values: Tensor) -> None:
    """Apply the operation `name` to the chosen samples alone, in place."""
    index = chosen.nonzero()[:, 0]
    if len(index):
        at, value = index.to(x.device, non_blocking=True), values[index]
        x[at] = _operation(x[at], name, value)


def _operation(x: Tensor, name: str, value: Tensor) -> Tensor:
    if name == "flip":
        return x.flip(3)
    if name == "solarize":
        return torch.minimum(x, 255 - x)
    if name == "blur":
        return _blur(x, value)
    factor = value.to(x.device, non_blocking=True)[:, None, None, None]
    if name == "hue":
        return _turn_hue(x, factor)
    other = torch.zeros_like(factor)
    if name != "brightness":
        other = sum((share * x[:, c : c + 1] for c, share in enumerate(LUMA)), other)
    if name == "contrast":
        other = other.mean((2, 3), keepdim=True)
    return (other + factor * (x - other)).clamp_(0, 255)


def _turn_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue as `pixels.turn_hue` does, which explains it."""
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    chroma, red, green, blue = high - low, x[:, :1], x[:, 1:2], x[:, 2:]
    hue = torch.copysign((green + blue - red - low) / chroma.clamp(min=1e-6) + 1, green - blue)
    places = torch.tensor([0.0, 2.0, 4.0]).to(x.device, non_blocking=True).view(1, 3, 1, 1)
    away = ((hue + torch.remainder(6 * shift - places + 3, 6) - 3).abs() - 3).abs()
    return low + (away.clamp(1, 2) - 1) * chroma


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur each sample with its own Gaussian, cut at three sigma, with mirrored borders."""
    side = x.shape[3]
    radii = (3 * sigma).ceil().clamp(max=side - 1)
    most = int(radii.max())
    taps = torch.arange(-most, most + 1)[None]
    weights = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2) * (taps.abs() <= radii[:, None])
    weights = (weights / weights.sum(1, keepdim=True)).to(x.device, non_blocking=True)[:, :, None, None, None]
    padded = F.pad(x, (most, most, most, most), mode="reflect")
    columns = sum((weights[:, k] * padded[:, :, k : k + side] for k in range(2 * most + 1)), x.new_zeros(()))
    return sum((weights[:, k] * columns[..., k : k + side] for k in range(2 * most + 1)), torch.zeros_like(x))
