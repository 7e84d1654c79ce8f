"""Views on pixels: pure functions of an image and the parameters drawn for it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from nolabel.views.draw import Drawn
from nolabel.views.specs import View

_MODES = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}
_COLOR = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


def apply(image: Tensor, view: View, drawn: Drawn) -> Tensor:
    """The view of `image` (3, H, W) uint8 that `drawn` describes: (3, size, size) uint8."""
    size = [view.size, view.size]
    x: Tensor = F.resized_crop(image, *drawn.box, size, interpolation=_MODES[view.interpolation], antialias=True)
    if drawn.flip:
        x = F.horizontal_flip(x)
    for name, factor in drawn.jitter:
        x = _COLOR[name](x, factor)
    if drawn.grayscale:
        x = F.rgb_to_grayscale(x, num_output_channels=3)
    if drawn.sigma:
        radius = min(math.ceil(3 * drawn.sigma), view.size - 1)  # a mirrored border is no wider than the image
        x = F.gaussian_blur(x, [2 * radius + 1] * 2, [drawn.sigma] * 2)
    if drawn.solarize:
        x = F.solarize(x, 128)
    return x.contiguous()


def normalize(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 images (..., 3, H, W) in 0..255 to float32 with the given mean and standard deviation of 0..1 values."""
    shape = (3, 1, 1)
    return (x.float() / 255 - torch.tensor(mean, device=x.device).view(shape)) / torch.tensor(
        std, device=x.device
    ).view(shape)
