"""Views on pixels: pure functions of an image and the parameters drawn for it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from nolabel.views.draw import Drawn
from nolabel.views.pixels import adjust, blur, turn_hue
from nolabel.views.spec import View


def apply(image: Tensor, view: View, drawn: Drawn) -> Tensor:
    """The view of `image` (3, H, W) uint8 that `drawn` describes: (3, size, size) uint8, on the CPU.

    Fastest for an image laid out as (H, W, 3) in memory, as the decoder gives it.
    """
    x = crop(image, view, drawn)
    if drawn.jitter or drawn.grayscale or drawn.sigma:
        pixels = x.to(torch.float32, memory_format=torch.contiguous_format)
        _color(pixels, drawn)
        if drawn.sigma:
            blur(pixels, drawn.sigma)
        x = pixels.round_().to(torch.int16).to(torch.uint8)  # straight from float takes twice as long
    if drawn.solarize:
        x = torch.minimum(x, 255 - x)  # from 128 up
    if drawn.flip:
        x = x.flip(2)  # last, where it is cheapest: all but the crop is symmetric
    return x.contiguous()


def crop(image: Tensor, view: View, drawn: Drawn) -> Tensor:
    """The box of `image` resized with antialiasing: (3, size, size) uint8."""
    top, left, height, width = drawn.box
    cut = image[None, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
    return F.interpolate(cut, size=(view.size, view.size), mode=view.interpolation, antialias=True)[0]


def _color(x: Tensor, drawn: Drawn) -> None:
    """Apply jitter and grayscale in place: the operations before the hue, the hue, the operations after it."""
    names = [name for name, _ in drawn.jitter]
    turn = names.index("hue") if "hue" in names else len(names)
    adjust(x, drawn.jitter[:turn])
    if turn < len(names):
        turn_hue(x, drawn.jitter[turn][1])
    adjust(x, (*drawn.jitter[turn + 1 :], *[("saturation", 0.0)] * drawn.grayscale))


def reduction(views: Sequence[View], drawn: Sequence[Drawn]) -> int:
    """The largest of 1, 2, 4 and 8 by which an image may shrink so that no crop has to be enlarged.

    A crop that has to be enlarged anyway allows only 1.
    """
    sides = [(min(one.box[2:]), view.size) for view, one in zip(views, drawn, strict=True)]
    return next((factor for factor in (8, 4, 2) if all(box >= factor * size for box, size in sides)), 1)


def scaled_down(drawn: Drawn, factor: int) -> Drawn:
    """The same view in the image at 1 / `factor` of its size, sides rounded up; the edges of the box move to pixels."""
    top, left, height, width = drawn.box
    y, x = round(top / factor), round(left / factor)
    return drawn._replace(box=(y, x, round((top + height) / factor) - y, round((left + width) / factor) - x))
