"""Each operation on pixels against Pillow (or numpy) with the same drawn parameters; tolerances in levels of 255."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import functional as pil

from nolabel.views import IMAGENET_MEAN, IMAGENET_STD, Apply, Drawn, View, normalize

HEIGHT, WIDTH = 48, 64
PLAIN = Drawn((0, 0, 48, 48), False, (), False, 0.0, False)
SAME = View(48, (1, 1))


def photo() -> Tensor:
    """(3, 48, 64) uint8: smooth colours, an edge and some noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH] / HEIGHT
    smooth = np.stack([x * 150, y * 220, 255 * (0.5 + 0.5 * np.sin(6 * x + 3 * y))])
    smooth[:, 10:30, 20:40] = np.array([230, 60, 20])[:, None, None]
    return torch.from_numpy(np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8))


IMAGE = photo()


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pil(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def errors(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Largest and mean difference."""
    assert a.shape == b.shape and a.dtype == b.dtype == torch.uint8
    difference = (a.int() - b.int()).abs().float()
    return difference.max().item(), difference.mean().item()


def square() -> Tensor:
    return IMAGE[:, :, :48]


def test_nothing_drawn_changes_nothing(apply: Apply) -> None:
    assert torch.equal(apply(IMAGE, SAME, PLAIN), square())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [8, 24, 96])
@pytest.mark.parametrize("box", [(0, 0, 48, 64), (5, 9, 31, 40), (40, 60, 8, 4), (7, 3, 1, 1)])
def test_crop_and_resize_are_pillows(
    apply: Apply, box: tuple[int, int, int, int], size: int, interpolation: str
) -> None:
    """At most one level: both filter with antialiasing, and round at different places."""
    top, left, height, width = box
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    cut = to_pil(IMAGE).crop((left, top, left + width, top + height))
    expected = from_pil(cut.resize((size, size), filters[interpolation]))
    ours = apply(IMAGE, View(size, (1, 1), interpolation=interpolation), PLAIN._replace(box=box))  # type: ignore[arg-type]
    largest, mean = errors(ours, expected)
    assert largest <= 1 and mean < 0.1


def test_the_flip_is_horizontal(apply: Apply) -> None:
    assert torch.equal(apply(IMAGE, SAME, PLAIN._replace(flip=True)), square().flip(2))


@pytest.mark.parametrize(
    ("name", "enhance"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
@pytest.mark.parametrize("factor", [0.0, 0.6, 0.93, 1.0, 1.4])
def test_colour_operations_are_pillows(
    apply: Apply, name: str, enhance: Callable[[Image.Image], object], factor: float
) -> None:
    expected = from_pil(enhance(to_pil(square())).enhance(factor))  # type: ignore[attr-defined]
    largest, mean = errors(apply(IMAGE, SAME, PLAIN._replace(jitter=((name, factor),))), expected)
    assert largest <= 1 and mean <= 1
    if factor != 1.0:
        assert errors(square(), expected)[1] > 2  # more than the tolerance


@pytest.mark.parametrize("shift", [-0.1, -0.03, 0.05, 0.1, 0.5])
def test_the_hue_is_turned_like_pillows(apply: Apply, shift: float) -> None:
    """Pillow counts hue in 256 steps, we in floats: up to 14 levels apart at saturated colours, below 2 on average."""
    expected = from_pil(pil.adjust_hue(to_pil(square()), shift))
    largest, mean = errors(apply(IMAGE, SAME, PLAIN._replace(jitter=(("hue", shift),))), expected)
    assert largest <= 16 and mean < 2
    assert errors(square(), expected)[1] > 3


def test_grayscale_is_pillows_luma_in_three_channels(apply: Apply) -> None:
    ours = apply(IMAGE, SAME, PLAIN._replace(grayscale=True))
    assert errors(ours, from_pil(to_pil(square()).convert("L")))[0] <= 1
    assert torch.equal(ours[0], ours[1]) and torch.equal(ours[0], ours[2])


def gaussian(image: Tensor, sigma: float) -> Tensor:
    """Blur with the normalised kernel exp(-x^2 / 2 sigma^2) cut at 3 sigma and mirrored borders, in float64."""
    radius = int(np.ceil(3 * sigma))
    x = np.arange(-radius, radius + 1)
    kernel = np.exp(-(x**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    out = np.pad(image.double().numpy(), ((0, 0), (radius, radius), (radius, radius)), mode="reflect")
    for axis in (1, 2):
        out = np.apply_along_axis(lambda row: np.convolve(row, kernel, mode="valid"), axis, out)
    return torch.from_numpy(np.rint(out).astype(np.uint8))


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 1.0, 1.5, 2.0])
def test_the_blur_is_gaussian(apply: Apply, sigma: float) -> None:
    ours = apply(IMAGE, SAME, PLAIN._replace(sigma=sigma))
    assert errors(ours, gaussian(square(), sigma))[0] <= 1
    # DINO's views were blurred by Pillow: three box filters that come close, and a border repeated, not mirrored.
    largest, mean = errors(ours, from_pil(to_pil(square()).filter(ImageFilter.GaussianBlur(sigma))))
    assert largest <= 16 and mean < 1


def test_solarize_turns_every_value_from_128_up(apply: Apply) -> None:
    ours = apply(IMAGE, SAME, PLAIN._replace(solarize=True))
    assert torch.equal(ours, from_pil(ImageOps.solarize(to_pil(square()), 128)))
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, 16, 16)
    expected = torch.tensor([v if v < 128 else 255 - v for v in range(256)], dtype=torch.uint8).view(1, 16, 16)
    drawn = PLAIN._replace(box=(0, 0, 16, 16), solarize=True)
    assert torch.equal(apply(ramp, View(16, (1, 1)), drawn), expected.expand(3, 16, 16))


def test_the_operations_come_in_the_order_of_the_paper(apply: Apply) -> None:
    """Crop, flip, colours in their drawn order, grayscale, blur, solarize: one by one differs by its rounding only."""
    jitter = (("hue", 0.1), ("contrast", 1.4), ("brightness", 0.7), ("saturation", 1.2))
    drawn = Drawn((3, 5, 40, 50), True, jitter, False, 1.3, True)
    steps = [
        PLAIN._replace(box=drawn.box),
        PLAIN._replace(flip=True),
        *[PLAIN._replace(jitter=(j,)) for j in jitter],
        PLAIN._replace(sigma=1.3),
        PLAIN._replace(solarize=True),
    ]

    def one_by_one(order: list[Drawn]) -> Tensor:
        x = IMAGE
        for step in order:
            x = apply(x, SAME, step)
        return x

    ours = apply(IMAGE, SAME, drawn)
    largest, mean = errors(ours, one_by_one(steps))
    assert largest <= 4 and mean < 0.6
    for i in range(2, len(steps) - 1):  # the flip commutes with everything
        swapped = [*steps[:i], steps[i + 1], steps[i], *steps[i + 2 :]]
        assert errors(ours, one_by_one(swapped))[0] > 4, f"the order of {i} and {i + 1} shows nowhere"
    gray = drawn._replace(grayscale=True, solarize=False)
    largest, _ = errors(apply(IMAGE, SAME, gray), one_by_one([*steps[:-2], PLAIN._replace(grayscale=True), steps[-2]]))
    assert largest <= 3


def test_the_result_is_a_new_contiguous_uint8_image_and_the_source_stays(apply: Apply) -> None:
    before = IMAGE.clone()
    drawn = Drawn((3, 5, 40, 50), True, (("brightness", 1.2),), True, 0.5, True)
    out = apply(IMAGE, View(24, (1, 1)), drawn)
    assert out.shape == (3, 24, 24) and out.dtype == torch.uint8 and out.is_contiguous()
    assert torch.equal(IMAGE, before)
    apply(IMAGE, SAME, PLAIN).zero_()
    assert torch.equal(IMAGE, before)


def test_nothing_random_is_left(apply: Apply) -> None:
    drawn = Drawn((3, 5, 40, 50), True, (("hue", 0.05),), True, 1.5, True)
    states = random.getstate(), torch.random.get_rng_state()
    assert torch.equal(apply(IMAGE, SAME, drawn), apply(IMAGE, SAME, drawn))
    assert random.getstate() == states[0] and torch.equal(torch.random.get_rng_state(), states[1])


@pytest.mark.parametrize("size", [1, 4, 7])
def test_tiny_crops_can_be_blurred(apply: Apply, size: int) -> None:
    out = apply(IMAGE, View(size, (1, 1)), PLAIN._replace(sigma=2.0))
    assert out.shape == (3, size, size)


def test_normalize_by_hand() -> None:
    batch = torch.stack([IMAGE, IMAGE.flip(2)])
    out = normalize(batch, IMAGENET_MEAN, IMAGENET_STD)
    assert out.dtype == torch.float32 and out.shape == batch.shape
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (batch.numpy().transpose(0, 2, 3, 1) / 255 - mean) / std
    np.testing.assert_allclose(out.numpy().transpose(0, 2, 3, 1), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(normalize(IMAGE, (0, 0, 0), (1, 1, 1)), IMAGE.float() / 255)
