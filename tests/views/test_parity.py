"""Our operations against those of torchvision on uint8, with the same drawn parameters.

The numbers are those of docs/internals/views.md.

Differences are in levels of 255. On uint8 torchvision cuts the fraction off after each operation (so alone it is half a
level darker on average), we round once at the end; on floats it does not round at all, and there the same comes out.
"""

import colorsys
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from nolabel.data.demo import world
from nolabel.views import Apply, Drawn, View, draw

MODES = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}
PLAIN = Drawn((0, 0, 0, 0), False, (), False, 0.0, False)


def slow(image: Tensor, view: View, drawn: Drawn, floats: bool = False) -> Tensor:
    """One torchvision call an operation."""
    x: Tensor = F.resized_crop(image, *drawn.box, [view.size] * 2, interpolation=MODES[view.interpolation])
    x = x.float() / 255 if floats else x
    if drawn.flip:
        x = F.horizontal_flip(x)
    for name, factor in drawn.jitter:
        x = getattr(F, f"adjust_{name}")(x, factor)
    if drawn.grayscale:
        x = F.rgb_to_grayscale(x, num_output_channels=3)
    if drawn.sigma:
        radius = min(math.ceil(3 * drawn.sigma), view.size - 1)
        x = F.gaussian_blur(x, [2 * radius + 1] * 2, [drawn.sigma] * 2)
    x = F.solarize(x, 0.5 if floats else 128) if drawn.solarize else x
    return (x * 255).round() if floats else x


def source(seed: int) -> Tensor:
    """A picture (3, 128, 128) of the demo world with the noise of a camera."""
    clean, _ = world.render(seed % 10, seed, 128)
    noise = np.random.default_rng(seed).normal(0, 6, clean.shape)
    return torch.from_numpy(np.clip(clean + noise, 0, 255).astype(np.uint8)).permute(2, 0, 1)


IMAGES = [source(seed) for seed in range(6)]


def differences(apply: Apply, view: View, only: str) -> tuple[float, float]:
    """Largest and mean difference over drawn views, with all operations or only one of them."""
    found = []
    for i in range(18):
        image = IMAGES[i % len(IMAGES)]
        drawn = draw(view, (0, 0, i, 0), 128, 128)
        if only == "crop":
            drawn = PLAIN._replace(box=drawn.box)
        elif not only.startswith("all"):
            one = dict(drawn.jitter).get(only)
            drawn = PLAIN._replace(
                box=drawn.box,
                jitter=((only, one),) if one is not None else (),
                grayscale=only == "grayscale",
                sigma=drawn.sigma if only == "blur" else 0.0,
                solarize=only == "solarize",
            )
        found.append((apply(image, view, drawn).int() - slow(image, view, drawn, only == "all, floats").int()).abs())
    difference = torch.stack(found).double()
    return difference.max().item(), difference.mean().item()


BOUNDS = {  # largest, mean
    "crop": (0, 0.0),
    "brightness": (1, 0.6),
    "contrast": (1, 0.6),
    "saturation": (1, 0.6),
    "hue": (1, 0.6),
    "grayscale": (1, 0.6),
    "blur": (1, 0.01),
    "solarize": (0, 0.0),
    "all": (8, 2.0),
    "all, floats": (1, 0.01),
}


@pytest.mark.parametrize("size", [32, 56])
@pytest.mark.parametrize("only", BOUNDS)
def test_parity(apply: Apply, only: str, size: int) -> None:
    view = View(size, (0.1, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=1.0, blur=1.0, solarize=0.2)
    largest, mean = differences(apply, view, only)
    print(f"{only} {size} px: largest {largest:.0f}, mean {mean:.4f}")
    assert largest <= BOUNDS[only][0] and mean <= BOUNDS[only][1]


@pytest.mark.parametrize("shift", [-0.5, -0.31, 0.2, 0.45, 0.5])
def test_the_whole_circle_of_hues(apply: Apply, shift: float) -> None:
    drawn = PLAIN._replace(box=(0, 0, 128, 128), jitter=(("hue", shift),))
    view = View(128, (1, 1))
    for image in IMAGES:
        assert (apply(image, view, drawn).int() - slow(image, view, drawn).int()).abs().max() <= 1


def test_every_kind_of_colour_is_turned_exactly(apply: Apply) -> None:
    """Grey, saturated, two channels equal, black, white: Python's HSV, pixel by pixel."""
    levels = (0, 1, 100, 128, 254, 255)
    colors = [(r, g, b) for r in levels for g in levels for b in levels]  # 216
    image = torch.tensor(colors, dtype=torch.uint8).T.reshape(3, 12, 18)[:, :, :12].contiguous()
    for shift in (-0.5, -1 / 6, -0.07, 0.03, 1 / 3, 0.5):
        ours = apply(image, View(12, (1, 1)), PLAIN._replace(box=(0, 0, 12, 12), jitter=(("hue", shift),)))
        for before, after in zip(image.flatten(1).T.tolist(), ours.flatten(1).T.tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*(x / 255 for x in before))
            expected = [255 * x for x in colorsys.hsv_to_rgb((h + shift) % 1, s, v)]
            assert max(abs(x - y) for x, y in zip(after, expected, strict=True)) <= 0.51


@pytest.mark.parametrize("size", [7, 32, 97, 224])
def test_the_number_of_threads_changes_no_pixel(apply: Apply, size: int) -> None:
    view = View(size, (0.1, 1.0), blur=1.0, solarize=0.2, jitter_p=1.0)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append([apply(IMAGES[i], view, draw(view, (0, 0, i, 0), 128, 128)) for i in range(4)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_the_layout_in_memory_changes_no_pixel(apply: Apply) -> None:
    view = View(32, (0.1, 1.0), blur=1.0, jitter_p=1.0)
    for i, image in enumerate(IMAGES):
        drawn = draw(view, (0, 0, i, 0), 128, 128)
        assert torch.equal(apply(image, view, drawn), apply(image.contiguous(), view, drawn))
