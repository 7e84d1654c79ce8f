from typing import cast

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from nolabel.errors import UsageError
from nolabel.networks.backbones import Backbone, Features, backbone
from nolabel.plots.attention import attention_maps, attention_sheet, prepare, similarity_map, snapshot, upsample
from nolabel.plots.sheet import Tile, sheet, to_image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Planted(nn.Module):
    """Stands in for a backbone with patches of 8 px: all heads look at the brightest patch."""

    has_attention = True
    patch_size = 8

    def __init__(self, num_heads: int = 3, attends: bool = True) -> None:
        super().__init__()
        self.num_heads, self.has_attention = num_heads, attends
        self.weight = nn.Parameter(torch.zeros(1))
        self.norm = nn.BatchNorm2d(3)

    def attention(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        assert not self.training
        assert not torch.is_grad_enabled()
        means = nn.functional.avg_pool2d(x.mean(1, keepdim=True), 8)
        maps = means.flatten(2).softmax(-1)
        return maps.expand(-1, self.num_heads, -1), (means.shape[2], means.shape[3])

    def forward(self, x: Tensor) -> Features:
        assert not self.training
        patches = nn.functional.avg_pool2d(x, 8)
        return Features(patches.mean((2, 3)), patches.flatten(2).transpose(1, 2), (patches.shape[2], patches.shape[3]))


def planted(num_heads: int = 3, attends: bool = True) -> Backbone:
    return cast(Backbone, Planted(num_heads, attends))


def bright_patch(row: int, column: int, rows: int = 4, columns: int = 6) -> Tensor:
    image = torch.zeros(3, rows * 8, columns * 8)
    image[:, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = 9.0
    return image


@pytest.mark.parametrize(
    ("shape", "size", "multiple", "expected"),
    [
        ((300, 400), 96, 16, (96, 128)),
        ((400, 300), 96, 16, (128, 96)),
        ((17, 900), 32, 16, (32, 1696)),
        ((20, 20), 100, 16, (96, 96)),
        ((50, 50), 7, 16, (16, 16)),
        ((33, 50), 33, None, (33, 50)),
    ],
)
def test_prepare_fits_any_image_to_the_patches(
    shape: tuple[int, int], size: int, multiple: int | None, expected: tuple[int, int]
) -> None:
    image = torch.full((3, *shape), 255, dtype=torch.uint8)
    x = prepare(image, size, multiple, MEAN, STD)
    assert x.shape == (3, *expected)
    assert x.dtype == torch.float32
    white = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(x.amax((1, 2)), white, atol=1e-5, rtol=0)


def test_prepare_refuses_an_empty_size() -> None:
    with pytest.raises(ValueError, match="size"):
        prepare(torch.zeros(3, 8, 8, dtype=torch.uint8), 0, 8, MEAN, STD)


def test_to_image_undoes_prepare() -> None:
    image = torch.randint(0, 256, (3, 24, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = to_image(prepare(image, 24, 8, MEAN, STD), MEAN, STD)
    assert picture.size == (32, 24)
    assert picture.tobytes() == image.permute(1, 2, 0).contiguous().numpy().tobytes()


def test_upsample_repeats_each_patch() -> None:
    maps = torch.arange(6.0).view(1, 2, 3)
    up = upsample(maps, (4, 9))
    assert torch.equal(up, maps.repeat_interleave(2, 1).repeat_interleave(3, 2))
    assert upsample(maps > 2, (4, 9)).dtype == torch.bool


def test_maps_lie_as_the_patches_do() -> None:
    for maps in (
        attention_maps(planted(), bright_patch(1, 4)),
        similarity_map(planted(attends=False), bright_patch(1, 4)),
    ):
        assert maps.shape[1:] == (4, 6)
        assert maps.mean(0).argmax() == 1 * 6 + 4


def test_a_backbone_gets_its_modes_back() -> None:
    net = planted()
    net.train()
    net.norm.eval()  # type: ignore[union-attr]
    attention_maps(net, bright_patch(0, 0))
    assert net.training
    assert not net.norm.training  # type: ignore[union-attr]
    with pytest.raises(RuntimeError):
        attention_maps(net, torch.zeros(3, 4, 4))
    assert net.training


@pytest.fixture(scope="module")
def vit() -> Backbone:
    args = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    return backbone("vit_tiny_patch16_224", args, image_size=32)


@pytest.fixture(scope="module")
def cnn() -> Backbone:
    args = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "output_stride": 8}
    return backbone("resnet18", args)


def test_maps_of_real_networks(vit: Backbone, cnn: Backbone) -> None:
    image = torch.randn(3, 40, 64, generator=torch.Generator().manual_seed(0))
    maps = attention_maps(vit, image)
    assert maps.shape == (3, 5, 8)
    assert (maps > 0).all()
    assert (maps.sum((1, 2)) <= 1).all()
    cosines = similarity_map(cnn, image)
    assert cosines.shape == (1, 5, 8)
    assert (cosines.abs() <= 1 + 1e-5).all()
    with pytest.raises(UsageError):
        attention_maps(cnn, image)


@pytest.mark.parametrize("num_heads", [1, 3, 6, 7, 16])
def test_attention_sheet_has_a_place_for_each_head(num_heads: int) -> None:
    page = attention_sheet(planted(num_heads), bright_patch(2, 3), MEAN, STD, "an image.jpg")
    columns = 1 + min(7, 1 + num_heads)
    bands = -(-(1 + num_heads) // 7)
    tile = (192, 128)
    assert page.width >= columns * tile[0]
    assert page.height > 2 * bands * tile[1]
    assert page.height < 2 * bands * (tile[1] + 40) + 120
    assert attention_sheet(planted(num_heads), bright_patch(2, 3), MEAN, STD, "an image.jpg") == page


def test_attention_sheet_shows_the_similarity_of_a_network_without_attention(cnn: Backbone, vit: Backbone) -> None:
    image = torch.randn(3, 40, 64, generator=torch.Generator().manual_seed(0))
    assert attention_sheet(cnn, image, MEAN, STD).height < attention_sheet(vit, image, MEAN, STD).height


@pytest.mark.parametrize("attends", [True, False])
def test_snapshot_puts_each_map_under_its_image(attends: bool) -> None:
    places = [(i % 4, i // 2) for i in range(8)]
    images = torch.stack([bright_patch(row, column, 4, 4) for row, column in places])
    page = snapshot(planted(attends=attends), images, MEAN, STD)
    assert page.width < 620
    for i, (row, column) in enumerate(places):
        x, y = 8 + i % 4 * 144, 8 + i // 4 * (2 * 136 + 2 + 8) + 138
        cell = 136 // 4
        colors = {
            (r, c): page.getpixel((x + c * cell + cell // 2, y + r * cell + cell // 2))
            for r in range(4)
            for c in range(4)
        }
        assert colors[row, column] == (253, 231, 37)
        assert all(color != (253, 231, 37) for place, color in colors.items() if place != (row, column))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_snapshot_takes_any_number_of_images(count: int) -> None:
    page = snapshot(planted(), torch.zeros(count, 3, 16, 16), MEAN, STD)
    assert page.height == -(-count // 4) * 282 + 34


def test_sheets_survive_names_that_the_font_cannot_draw() -> None:
    tile = Tile(Image.new("RGB", (40, 30)), "naïve 鳥 \ud800\n" + "x" * 500, "y" * 500)
    page = sheet([[tile, Tile(None)], [tile]], (40, 30), "鳥" * 5000, "z" * 5000)
    assert page.width < 1400
