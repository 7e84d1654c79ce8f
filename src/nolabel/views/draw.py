"""All randomness of a view, as a pure function of (seed, epoch, sample, view)."""

import math
import threading
from typing import NamedTuple

import numpy as np

from nolabel.views.specs import View

_THREAD = threading.local()
_ZEROS = (0, 0, 0, 0)


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


def generator(seed: int, *counter: int) -> np.random.Generator:
    """A counter-based generator for up to three non-negative counters, for example (epoch, sample, view)."""
    words = np.zeros(4, dtype=np.uint64)
    words[1 : 1 + len(counter)] = counter
    return np.random.Generator(np.random.Philox(key=seed, counter=words))


def _reused(seed: int, *counter: int) -> np.random.Generator:
    """As `generator`, but one for each thread, put where it has to begin: half of `draw` would go into making one."""
    if not hasattr(_THREAD, "generator"):
        _THREAD.generator = generator(0)
    found: np.random.Generator = _THREAD.generator
    state = {"counter": (0, *counter, *_ZEROS[len(counter) + 1 :]), "key": (seed % 2**64, seed >> 64)}
    found.bit_generator.state = {
        "bit_generator": "Philox", "state": state, "buffer": _ZEROS, "buffer_pos": 4, "has_uint32": 0, "uinteger": 0
    }  # fmt: skip
    return found


def draw(view: View, key: tuple[int, int, int, int], height: int, width: int) -> Drawn:
    """The parameters of `view` for an image of `height` x `width` pixels; `key` is (seed, epoch, sample, view)."""
    rng = _reused(*key)
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
