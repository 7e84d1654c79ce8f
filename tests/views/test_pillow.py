"""Every way to make views against Pillow, view by view with the same drawn parameters.

The numbers are those of docs/internals/views.md.

Pillow made the views of the papers. It rounds after each operation, counts hue in 256 steps and blurs by three boxes.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import functional as pil

from nolabel.data.demo import world
from nolabel.views import Drawn, Sources, View, as_rows, draw, render, view_function

Way = Callable[[Tensor, View, Drawn], Tensor]
PLAIN = Drawn((0, 0, 0, 0), False, (), False, 0.0, False)
BOUNDS = {  # largest, mean; docs/internals/views.md
    "crop": (2, 0.1),
    "brightness": (3, 0.6),
    "contrast": (3, 0.6),
    "saturation": (3, 0.6),
    "hue": (20, 1.0),
    "grayscale": (2, 0.3),
    "blur": (40, 1.0),
    "solarize": (2, 0.1),
    "all": (40, 2.0),
}
"""Solarize: a value that the crop puts on the other side of 128 moves no further: 127 stays, and 128 becomes 127."""


def by_pillow(image: Tensor, view: View, drawn: Drawn) -> Tensor:
    top, left, height, width = drawn.box
    x = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    x = pil.resized_crop(x, top, left, height, width, [view.size] * 2, pil.InterpolationMode.BICUBIC)
    x = pil.hflip(x) if drawn.flip else x
    for name, factor in drawn.jitter:
        x = getattr(pil, f"adjust_{name}")(x, factor)
    x = pil.to_grayscale(x, num_output_channels=3) if drawn.grayscale else x
    x = x.filter(ImageFilter.GaussianBlur(drawn.sigma)) if drawn.sigma else x
    x = ImageOps.solarize(x) if drawn.solarize else x
    return torch.from_numpy(np.array(x)).permute(2, 0, 1)


def on_the_device(image: Tensor, view: View, drawn: Drawn) -> Tensor:
    sources = Sources(image.permute(1, 2, 0).flatten(), torch.tensor([image.shape[1:]]), as_rows([drawn])[None])
    (batch,) = render(sources, [view], torch.device("cpu"), (0, 0, 0), (1, 1, 1))
    return (batch[0] * 255).round()


@pytest.fixture(params=["torch", "numba", "device"])
def way(request: pytest.FixtureRequest) -> Way:
    if request.param == "device":
        return on_the_device
    if request.param == "numba":
        pytest.importorskip("numba", reason="the extra fast is not installed")
    return view_function(request.param)


def photo(seed: int) -> Tensor:
    """A picture (3, 128, 128) of the demo world with the noise of a camera."""
    noise = np.random.default_rng(seed).normal(0, 6, (128, 128, 3))
    pixels = np.clip(world.render(seed, seed, 128)[0] + noise, 0, 255).astype(np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


PHOTOS = [photo(seed) for seed in range(4)]
VIEW = View(48, (0.1, 1.0), jitter_p=1.0, blur=1.0, solarize=0.2)


def part(drawn: Drawn, only: str) -> Drawn:
    """The crop and the operation `only` of what was drawn."""
    jitter = tuple(one for one in drawn.jitter if one[0] == only)
    changed = {"grayscale": {"grayscale": True}, "blur": {"sigma": drawn.sigma}, "solarize": {"solarize": True}}
    return drawn if only == "all" else PLAIN._replace(box=drawn.box, jitter=jitter, **changed.get(only, {}))


@pytest.mark.parametrize("only", BOUNDS)
def test_the_views_are_those_of_pillow(way: Way, only: str) -> None:
    found = []
    for i in range(24):
        image, drawn = PHOTOS[i % 4], part(draw(VIEW, (0, 0, i, 0), 128, 128), only)
        found.append((way(image, VIEW, drawn).double() - by_pillow(image, VIEW, drawn).double()).abs())
    difference = torch.stack(found)
    largest, mean = difference.max().item(), difference.mean().item()
    print(f"{only}: largest {largest:.0f}, mean {mean:.4f}")
    assert largest <= BOUNDS[only][0] and mean <= BOUNDS[only][1]


def test_another_crop_is_far_beyond_the_bounds(way: Way) -> None:
    """One pixel of the source aside."""
    drawn = PLAIN._replace(box=(10, 10, 96, 96))
    aside = drawn._replace(box=(10, 11, 96, 96))
    found = [(way(x, VIEW, aside).double() - by_pillow(x, VIEW, drawn).double()).abs().mean() for x in PHOTOS]
    assert min(found) > 5 * BOUNDS["crop"][1]
