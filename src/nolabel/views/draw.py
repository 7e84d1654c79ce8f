"""All randomness of a view, as a pure function of (seed, epoch, sample, view)."""

import math
from typing import NamedTuple

import numpy as np

from nolabel.randomness import reused_philox
from nolabel.views.spec import View


class Drawn(NamedTuple):
    """The plain parameters of one view of one image."""

    box: tuple[int, int, int, int]
    """Top, left, height, width of the crop in pixels of the source."""
    flip: bool
    jitter: tuple[tuple[str, float], ...]
    """Colour operations in the order of application with their factors (hue: shift as a share of the circle)."""
    grayscale: bool
    sigma: float
    """Standard deviation of the blur in pixels; 0 for none."""
    solarize: bool


def draw(view: View, key: tuple[int, int, int, int], height: int, width: int) -> Drawn:
    """The parameters of `view` for an image of `height` x `width` pixels; `key` is (seed, epoch, sample, view)."""
    rng = reused_philox(*key)  # the stream "view"
    box = _crop(view, rng, height, width)
    u = rng.random(9)
    return Drawn(
        box=box,
        flip=bool(u[0] < view.flip),
        jitter=_jitter(view, u[2:6], rng.permutation(4)) if u[1] < view.jitter_p else (),
        grayscale=bool(u[6] < view.grayscale),
        sigma=float(rng.uniform(*view.blur_sigma)) if u[7] < view.blur else 0.0,
        solarize=bool(u[8] < view.solarize),
    )


def _crop(view: View, rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop: ten tries of area and log-uniform aspect, else the largest centre crop."""
    low, high = math.log(view.ratio[0]), math.log(view.ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(*view.scale)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    ratio = min(max(width / height, view.ratio[0]), view.ratio[1])
    h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
    h, w = max(h, 1), max(w, 1)
    return (height - h) // 2, (width - w) // 2, h, w


def _jitter(view: View, u: np.ndarray, order: np.ndarray) -> tuple[tuple[str, float], ...]:
    brightness, contrast, saturation, hue = view.jitter
    spans = {
        "brightness": (max(0.0, 1 - brightness), 1 + brightness),
        "contrast": (max(0.0, 1 - contrast), 1 + contrast),
        "saturation": (max(0.0, 1 - saturation), 1 + saturation),
        "hue": (-hue, hue),
    }
    drawn = [(name, low + (high - low) * float(x)) for (name, (low, high)), x in zip(spans.items(), u, strict=True)]
    return tuple(drawn[i] for i in order if drawn[i] != ("hue", 0.0))
