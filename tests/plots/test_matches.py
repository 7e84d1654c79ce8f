from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from nolabel.cli.main import main
from nolabel.data.demo.world import render
from nolabel.errors import UsageError
from nolabel.networks.backbones import Backbone, Features, backbone
from nolabel.networks.matching import match
from nolabel.plots.matches import (
    centres,
    matches_sheet,
    place_colors,
    right_matches,
    show_matches,
    spread,
    true_places,
    two_views,
)
from nolabel.views import Drawn

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Pixels(nn.Module):
    """Stands in for a backbone: the feature of a patch of 4 px is its mean colour, and a constant."""

    patch_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Features:
        assert not self.training and not torch.is_grad_enabled()
        maps = nn.functional.avg_pool2d(x, 4)
        maps = torch.cat([maps, torch.ones_like(maps[:, :1])], 1)
        return Features(maps.mean((2, 3)), maps.flatten(2).transpose(1, 2), (maps.shape[2], maps.shape[3]))


def pixels() -> Backbone:
    return cast(Backbone, Pixels())


def cut(box: tuple[int, int, int, int], flip: bool = False) -> Drawn:
    return Drawn(box, flip, (), False, 0.0, False)


def test_centres_are_in_the_order_of_the_patches() -> None:
    assert centres((2, 4)).tolist() == [[r, c] for r in (0.25, 0.75) for c in (0.125, 0.375, 0.625, 0.875)]


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_true_places_follow_the_pixels(flips: tuple[bool, bool]) -> None:
    """Two crops of an image whose channels are row and column show where each location lies."""
    rows, columns = torch.meshgrid(torch.arange(120.0), torch.arange(160.0), indexing="ij")
    image = torch.stack([rows, columns])
    boxes = ((8, 16, 64, 96), (24, 40, 80, 64))
    seen = []
    for (top, left, height, width), flip in zip(boxes, flips, strict=True):
        crop = image[:, top : top + height, left : left + width]
        crop = crop.flip(-1) if flip else crop
        seen.append(nn.functional.adaptive_avg_pool2d(crop, (8, 8)).flatten(1).T)
    truth = true_places((cut(boxes[0], flips[0]), cut(boxes[1], flips[1])), (8, 8))
    inside = ((truth > 0.07) & (truth < 0.93)).all(1)
    assert 5 < inside.sum() < 60
    for i in inside.nonzero().flatten().tolist():
        nearest = (seen[1] - seen[0][i]).norm(dim=1).argmin()
        away = (centres((8, 8))[nearest] - truth[i]) * 8
        assert (away.abs() <= 0.51).all()
    outside = seen[0][((truth < 0) | (truth > 1)).any(1)]
    top, left, height, width = boxes[1]
    beyond = (outside < torch.tensor([top, left])) | (outside > torch.tensor([top + height, left + width]))
    assert len(outside) and beyond.any(1).all()


def test_right_is_the_true_place_or_its_neighbour() -> None:
    x = random(1, 16, 8)
    found = match(x, x)
    truth = centres((4, 4))
    assert right_matches(found, (4, 4), truth).all()
    for shift, right in ((1 / 4, True), (1.4 / 4, True), (1.6 / 4, False), (-2 / 4, False)):
        assert right_matches(found, (4, 4), truth + torch.tensor([0.0, shift])).all() == right
    assert not right_matches(found._replace(nearest=15 - found.nearest), (4, 4), truth)[0]


def test_the_two_views_are_cut_from_the_image_and_one_is_mirrored() -> None:
    image = (random(3, 60, 90) * 40 + 128).clamp(0, 255).byte()
    pair, again = (two_views(image, 30, 4, MEAN, STD) for _ in range(2))
    assert pair.first.shape == pair.second.shape == (3, 32, 32)
    assert torch.equal(pair.first, again.first) and torch.equal(pair.second, again.second)
    assert pair.drawn[0].flip is not pair.drawn[1].flip and pair.drawn[0].box != pair.drawn[1].box
    assert two_views(image, 33, None, MEAN, STD).first.shape == (3, 33, 33)


def test_the_strongest_are_spread_and_mutual() -> None:
    a = random(1, 64, 16)
    found = match(a, a + 0.8 * random(1, 64, 16, seed=1))
    chosen = spread(found, (8, 8), 10)
    assert 3 < len(chosen) <= 10 and found.mutual[0, chosen].all()
    cosines = found.cosine[0, chosen]
    assert torch.equal(cosines, cosines.sort(descending=True).values)
    assert chosen[0] == torch.where(found.mutual[0], found.cosine[0], -1.0).argmax()
    places = centres((8, 8))[chosen] * 8
    gaps = torch.cdist(places, places) + 99 * torch.eye(len(chosen))
    assert gaps.min() >= 1.5
    assert len(spread(found._replace(mutual=torch.zeros_like(found.mutual)), (8, 8), 10)) == 0


def test_colors_separate_places() -> None:
    colors = place_colors((6, 9))
    assert colors.shape == (54, 3) and colors.min() >= 0 and colors.max() <= 255
    apart = torch.cdist(colors, colors) + 999 * torch.eye(54)
    assert apart.min() > 5
    assert min((colors[i] - colors[j]).norm() for i, j in ((0, 8), (0, 45), (8, 53), (45, 53), (0, 53))) > 100


def test_a_sheet_draws_lines_where_the_match_is() -> None:
    """One red patch in grey: the strongest match joins its two places, in the colour of the first."""
    first, second = torch.zeros(3, 32, 48), torch.zeros(3, 32, 32)
    first[0, 8:12, 40:44], second[0, 20:24, 4:8] = 3.0, 3.0
    page = matches_sheet(pixels(), first, second, MEAN, STD)
    color = place_colors((8, 12))[2 * 12 + 10]
    scale = 420 / 32
    head = page.height - 20 - 2 * 444 - 10
    for x, y in ((42, 10), (48 + 14 / scale + 6, 22)):
        seen = torch.tensor(page.getpixel((round(20 + x * scale), round(head + y * scale))), dtype=torch.float32)
        assert (seen - color).abs().max() < 25


def test_sheets_are_the_same_each_time_and_take_any_shapes() -> None:
    a, b = random(3, 32, 48), random(3, 24, 16, seed=1)
    page = matches_sheet(pixels(), a, b, MEAN, STD, ("a", "b"), "two")
    assert page == matches_sheet(pixels(), a, b, MEAN, STD, ("a", "b"), "two")
    assert page.width >= 630 + 280 + 14 and page.height > 2 * 420


def test_features_without_any_difference_still_make_a_sheet() -> None:
    flat = torch.zeros(3, 32, 32)
    matches_sheet(pixels(), flat, flat, MEAN, STD, drawn=(cut((0, 0, 9, 9)), cut((50, 50, 9, 9))))


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_real_networks_show_one_image_or_two(name: str) -> None:
    nets = {
        "vit": lambda: backbone("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}),
        "resnet": lambda: backbone("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}),
    }
    net = nets[name]()
    images = [(n, torch.from_numpy(render(seed, 0, 64)[0]).permute(2, 0, 1)) for seed, n in enumerate(("a", "b", "c"))]
    for number in (1, 2):
        page = show_matches(net, images[:number], 64, MEAN, STD)
        assert page.width >= 854
    with pytest.raises(UsageError, match=r"one image .* or two, not 3"):
        show_matches(net, images, 64, MEAN, STD)
    assert net.training


def test_the_command_shows_a_pair_or_two_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("a", "b")):
        Image.fromarray(render(seed, 0, 64)[0]).save(tmp_path / f"{name}.png")
    common = ["--out", str(tmp_path / "out"), "--size", "64", "--device", "cpu"]
    for images in (["a.png"], ["a.png", "b.png"]):
        main(["show", "matches", "random:resnet18", *(str(tmp_path / name) for name in images), *common])
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["matches-a-b.png", "matches-a.png"]
    assert capsys.readouterr().out.count("matches-a") == 2
    with pytest.raises(SystemExit) as caught:
        main(["show", "matches", "random:resnet18", *[str(tmp_path / "a.png")] * 3, *common])
    assert caught.value.code == 2 and "one image" in capsys.readouterr().err
