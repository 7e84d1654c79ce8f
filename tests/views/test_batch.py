"""Views cut on the device from whole images against `apply`, with the same parameters; in levels of 255."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nolabel.data.demo import world
from nolabel.views import Drawn, Sources, View, apply, as_rows, draw, render

SIZES = [(128, 128), (96, 128), (128, 70), (150, 149)]
IMAGES = [
    torch.from_numpy(world.render(i, i, 160)[0]).permute(2, 0, 1)[:, :h, :w].contiguous()
    for i, (h, w) in enumerate(SIZES)
]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
BOUNDS = {"crop": 2, "flip": 2, "solarize": 2, "all": 6}
"""Largest differences; 3 elsewhere. The crop rounds twice, and what is one level apart by chance goes on from there."""
PLAIN = Drawn((0, 0, 0, 0), False, (), False, 0.0, False)


def sources(drawn: list[list[Drawn]]) -> Sources:
    """`drawn`: for each image those of its views."""
    pixels = torch.cat([image.permute(1, 2, 0).flatten() for image in IMAGES])
    return Sources(pixels, torch.tensor(SIZES), torch.stack([as_rows(views) for views in drawn]))


def differences(view: View, only: str, device: str) -> Tensor:
    """A few draws for each image, with all operations or only one of them."""
    drawn = [[draw(view, (0, 0, i, v), *size) for v in range(6)] for i, size in enumerate(SIZES)]
    drawn = [[part(one, only) for one in views] for views in drawn]
    found = render(sources(drawn), [view] * 6, torch.device(device), (0, 0, 0), (1, 1, 1))
    levels = (torch.stack(found, 1) * 255).round().cpu()  # (B, V, 3, size, size)
    expected = [
        torch.stack([apply(image, view, one) for one in views]) for image, views in zip(IMAGES, drawn, strict=True)
    ]
    return (levels - torch.stack(expected).float()).abs()


def part(drawn: Drawn, only: str) -> Drawn:
    if only == "all":
        return drawn
    changed = {"flip": True} if only == "flip" else {only: getattr(drawn, only)} if hasattr(drawn, only) else {}
    jitter = tuple(one for one in drawn.jitter if one[0] == only)
    return PLAIN._replace(box=drawn.box, jitter=jitter, **changed)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [24, 96])
@pytest.mark.parametrize(
    "only",
    ["crop", "flip", "brightness", "contrast", "saturation", "hue", "grayscale", "sigma", "solarize", "all"],
)
def test_both_placements_make_the_same_views(only: str, size: int, interpolation: str, device: str) -> None:
    view = View(
        size, (0.1, 1.0), interpolation=interpolation, jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.9,  # type: ignore[arg-type]
        blur=0.7, solarize=0.4, grayscale=0.3,
    )  # fmt: skip
    found = differences(view, only, device)
    print(f"{only} {size} {interpolation}: largest {found.max():.0f}, mean {found.mean():.4f}")
    assert found.mean() <= 0.1 and found.max() <= BOUNDS.get(only, 3)


def test_the_table_holds_everything_that_was_drawn() -> None:
    drawn = Drawn((3, 5, 40, 50), True, (("hue", 0.25), ("contrast", 1.5)), False, 0.5, True)
    assert as_rows([drawn]).tolist() == [[3, 5, 40, 50, 4, 2, 0, 0, 0.25, 1.5, 0, 0, 1, 0, 0.5, 1]]


class Sent(TorchDispatchMode):
    """Counts the operations, and the bytes that go to a device without memory."""

    operations = bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        if func is torch.ops.aten._to_copy.default and out.device.type == "meta" and args[0].device.type == "cpu":
            self.bytes += args[0].nbytes
        return out


def sent(views: list[View]) -> Sent:
    drawn = [[draw(view, (0, 0, i, v), *size) for v, view in enumerate(views)] for i, size in enumerate(SIZES)]
    with Sent() as counted:
        render(sources(drawn), views, torch.device("meta"), (0, 0, 0), (1, 1, 1))
    return counted


def test_little_but_the_images_is_sent_and_views_of_one_size_are_made_together() -> None:
    view = View(96, (0.05, 0.4), jitter_p=1.0, blur=1.0)
    one, many = sent([view]), sent([view] * 12)
    images = sum(image.nbytes for image in IMAGES)
    assert images < one.bytes < many.bytes < 1.3 * images  # 12 parameters a view, the taps of its blur, no filters
    assert many.operations < 1.5 * one.operations


def test_views_of_two_sizes_and_two_filters_keep_their_order() -> None:
    views = [View(24, (0.3, 1)), View(16, (0.3, 1)), View(24, (0.3, 1), interpolation="bilinear"), View(24, (0.3, 1))]
    drawn = [[part(draw(v, (0, 0, i, k), *size), "crop") for k, v in enumerate(views)] for i, size in enumerate(SIZES)]
    found = render(sources(drawn), views, torch.device("cpu"), (0, 0, 0), (1, 1, 1))
    for k, view in enumerate(views):
        for image, made, of_image in zip(IMAGES, found[k], drawn, strict=True):
            assert ((made * 255).round() - apply(image, view, of_image[k]).float()).abs().mean() <= 0.1
