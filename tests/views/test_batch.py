"""Views cut on the device from whole images against `apply`, with the same parameters; in levels of 255."""

import pytest
import torch
from torch import Tensor

from nolabel.data import demo
from nolabel.views import Drawn, Sources, View, apply, draw, render, table

SIZES = [(128, 128), (96, 128), (128, 70), (150, 149)]
IMAGES = [
    torch.from_numpy(demo.render(i, i, 160)[0]).permute(2, 0, 1)[:, :h, :w].contiguous()
    for i, (h, w) in enumerate(SIZES)
]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
BOUNDS = {"crop": 2, "flip": 2, "solarize": 2, "all": 6}
"""Largest differences; 3 elsewhere. The crop rounds twice, and what is one level apart by chance goes on from there."""
PLAIN = Drawn((0, 0, 0, 0), False, (), False, 0.0, False)


def sources(drawn: list[list[Drawn]]) -> Sources:
    """`drawn`: for each image those of its views."""
    pixels = torch.cat([image.permute(1, 2, 0).flatten() for image in IMAGES])
    return Sources(pixels, torch.tensor(SIZES), torch.stack([table(views) for views in drawn]))


def differences(view: View, only: str, device: str) -> Tensor:
    """Of a few draws for each image, with all operations or only one of them."""
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
    assert table([drawn]).tolist() == [[3, 5, 40, 50, 4, 2, 0, 0, 0.25, 1.5, 0, 0, 1, 0, 0.5, 1]]
