"""Attacks are what they are called, and functions of seed, name and attack."""

import numpy as np
import pytest
import torch
from torch import Tensor

from nolabel.data.demo import world
from nolabel.errors import UsageError
from nolabel.evals.retrieval.attacks import ATTACKS, JPEG_PIXELS, attack, check_attacks


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.from_numpy(world.render(4, 7, 96)[0][:72].copy()).permute(2, 0, 1)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_copy_depends_on_seed_and_name_alone(image: Tensor, name: str) -> None:
    before, state = image.clone(), torch.get_rng_state()
    copy = attack(image, name, "a/1.jpg", 0)
    assert copy.dtype == torch.uint8 and copy.shape[0] == 3
    assert torch.equal(copy, attack(image, name, "a/1.jpg", 0))
    assert torch.equal(image, before) and torch.equal(torch.get_rng_state(), state)
    drawn = name.partition("/")[0] in ("strong", "crops")
    assert torch.equal(copy, attack(image, name, "a/1.jpg", 1)) != drawn
    assert torch.equal(copy, attack(image, name, "a/2.jpg", 0)) != drawn


@pytest.mark.parametrize("percent", [10, 50, 80])
def test_crops_cut_off_a_share_of_the_area_and_change_nothing_else(image: Tensor, percent: int) -> None:
    copy = attack(image, f"crops/{percent}", "1", 0)
    area = copy.shape[1] * copy.shape[2] / (image.shape[1] * image.shape[2])
    assert area == pytest.approx(1 - percent / 100, abs=0.02)
    assert copy.shape[2] / copy.shape[1] == pytest.approx(96 / 72, abs=0.05)
    windows = image.unfold(1, copy.shape[1], 1).unfold(2, copy.shape[2], 1)  # (3, Y, X, h, w)
    assert (windows == copy[:, None, None]).all(0).all(-1).all(-1).sum() >= 1


def test_crops_lie_anywhere() -> None:
    image = torch.arange(40, dtype=torch.uint8).expand(3, 30, 40)
    lefts = [int(attack(image, "crops/50", str(i), 0)[0, 0, 0]) for i in range(200)]
    assert min(lefts) == 0 and max(lefts) == 40 - round(0.5**0.5 * 40)


def test_levels_go_the_right_way(image: Tensor) -> None:
    def damage(name: str) -> float:
        return float((attack(image, name, "1", 0).float() - image.float()).abs().mean())

    assert damage("jpegqual/3") > damage("jpegqual/15") > damage("jpegqual/90") > 0
    assert damage("blur/8") > damage("blur/4") > damage("blur/1") > 0


def test_jpeg_shrinks_large_images_only() -> None:
    large = torch.zeros(3, 900, 1200, dtype=torch.uint8)
    copy = attack(large, "jpegqual/30", "1", 0)
    assert copy.shape[1] * copy.shape[2] == pytest.approx(JPEG_PIXELS, rel=0.01)
    assert copy.shape[2] / copy.shape[1] == pytest.approx(4 / 3, abs=0.01)
    assert attack(large[:, :300, :400], "jpegqual/30", "1", 0).shape == (3, 300, 400)


def test_strong_changes_much_and_leaves_more_than_nothing(image: Tensor) -> None:
    copies = [attack(image, "strong", str(i), 0) for i in range(30)]
    areas = [c.shape[1] * c.shape[2] / (72 * 96) for c in copies]
    assert 0.38 < min(areas) < 0.45 and 0.65 < max(areas) < 0.72
    assert np.mean([c.float().std() for c in copies]) > 0.5 * image.float().std()


def test_tiny_images() -> None:
    for name in ATTACKS:
        assert attack(torch.zeros(3, 1, 2, dtype=torch.uint8), name, "1", 0).numel() > 0


@pytest.mark.parametrize(
    "names", [("strongest",), ("jpegqual",), ("crops/96",), ("blur/0",), ("blur/-1",), ("crops/²",)]
)
def test_attacks_that_do_not_exist(names: tuple[str, ...]) -> None:
    check_attacks(ATTACKS)
    with pytest.raises(UsageError, match="There is no attack"):
        check_attacks(names)


def test_no_attack_or_one_named_twice() -> None:
    for names in ((), ("strong", "strong")):
        with pytest.raises(UsageError, match="Name every attack once"):
            check_attacks(names)
