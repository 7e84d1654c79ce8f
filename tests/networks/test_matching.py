"""Correspondences and pooling against loops."""

import math

import pytest
import torch
from torch import Tensor

from nolabel.errors import UsageError
from nolabel.methods.densecl import check_locations
from nolabel.networks.backbones import Features, backbone
from nolabel.networks.matching import match, place_share, pool, unit


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))


def test_matches_are_the_slow_loop() -> None:
    a, b = random(3, 6, 5), random(3, 9, 5, seed=1)
    found = match(a, b)
    assert found.nearest.dtype == torch.int64 and found.nearest.shape == found.mutual.shape == (3, 6)
    for image in range(3):
        table = [[cosine(x, y) for y in b[image].tolist()] for x in a[image].tolist()]
        for i, row in enumerate(table):
            j = row.index(max(row))
            assert found.nearest[image, i] == j
            assert found.cosine[image, i].item() == pytest.approx(row[j], abs=1e-6)
            column = [r[j] for r in table]
            assert found.mutual[image, i] == (column.index(max(column)) == i)
    assert 0 < found.mutual.float().mean() < 1


def test_an_image_matches_itself_in_order() -> None:
    x = random(2, 49, 64)
    found = match(x, 3 * x)  # lengths say nothing
    assert torch.equal(found.nearest, torch.arange(49).expand(2, -1)) and found.mutual.all()
    torch.testing.assert_close(found.cosine, torch.ones(2, 49))


def test_a_permutation_is_found() -> None:
    x, order = random(1, 16, 8), torch.randperm(16, generator=torch.Generator().manual_seed(3))
    assert torch.equal(match(x[:, order], x).nearest[0], order)


def test_of_equal_locations_the_first_wins() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]])
    found = match(x, x)
    assert found.nearest.tolist() == [[0, 1, 0, 1]] and found.mutual.tolist() == [[True, True, False, False]]


def test_autocast_and_half_precision_do_not_make_ties() -> None:
    a = torch.tensor([[[1.0, 0.0]]])
    b = torch.tensor([[[1.0, 0.03], [1.0, 0.02]]])
    with torch.autocast("cpu", torch.bfloat16):
        assert match(a, b).nearest.item() == 1


@pytest.mark.parametrize("num_grid", [1, 2, 3, 6, None])
def test_pooling_is_the_mean_over_blocks(num_grid: int | None) -> None:
    x = random(2, 36, 4)
    pooled = pool(Features(x.mean(1), x, (6, 6)), num_grid)
    n = num_grid or 6
    side = 6 // n
    for row in range(n):
        for column in range(n):
            block = [
                x[:, 6 * r + c]
                for r in range(row * side, (row + 1) * side)
                for c in range(column * side, (column + 1) * side)
            ]
            torch.testing.assert_close(pooled[:, row * n + column], torch.stack(block).mean(0))


def test_the_share_of_the_place_is_one_for_a_code_of_places_and_none_for_one_of_images() -> None:
    places, images = random(1, 9, 5), random(64, 1, 5, seed=1)
    assert place_share(places.expand(64, 9, 5)).item() == pytest.approx(1, abs=1e-5)
    assert place_share(images.expand(64, 9, 5)).item() == pytest.approx(0, abs=1e-5)
    assert place_share(random(64, 9, 5)).item() < 3 / 64
    assert 0.3 < place_share(places + images).item() < 0.7
    assert place_share(torch.ones(4, 9, 5)).item() == 0  # nothing differs: finite


def test_unit_is_float32_and_survives_zeros() -> None:
    x = unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]).bfloat16())
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_backbones_and_grids_that_do_not_fit_are_refused() -> None:
    net = backbone("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "output_stride": 8})
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for num_grid in (None, 1, 2, 4):
        check_locations(net, 32, num_grid)
    assert net.training and all(torch.equal(before[n], v) for n, v in net.state_dict().items())
    for num_grid in (3, 8, 0, -1):
        with pytest.raises(UsageError, match=f"num-grid {num_grid} does not divide the 4 x 4 locations"):
            check_locations(net, 32, num_grid)
    with pytest.raises(UsageError, match="one location") as caught:
        check_locations(net, 8, None)
    assert len(str(caught.value).splitlines()) <= 5 and "output_stride" in str(caught.value)
