"""Description of a view: a frozen record of sizes and probabilities. A method's views are a tuple of these."""

from dataclasses import dataclass
from typing import Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)


IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class View:
    """One augmented image: crop and resize, flip, colour jitter, grayscale, blur, solarize, in this order.

    The defaults are what DINO's views share (Caron et al. 2021, appendix; BYOL's photometric operations).
    """

    size: int
    """Side of the square crop in pixels."""
    scale: tuple[float, float]
    """Range of the crop's area as a share of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width / height, log-uniform."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    """Strength of brightness, contrast, saturation and hue, applied in random order."""
    jitter_p: float = 0.8
    grayscale: float = 0.2
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels."""
    solarize: float = 0.0
    """Probability of inverting every value from 128 up."""
