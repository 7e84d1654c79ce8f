"""Patches that stay: how many, which, and from which randomness."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from nolabel.errors import UsageError
from nolabel.networks.inspect import mass_mask
from nolabel.networks.masks import draw_keep, num_kept


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("patches", "ratio", "kept"),
    [(196, 0.15, 166), (196, 0.3, 137), (1024, 0.7, 307), (3136, 0.7, 940), (196, 0.0, 196), (4, 0.74, 1)],
)
def test_the_numbers_of_the_papers_models(patches: int, ratio: float, kept: int) -> None:
    """S/16, B/16, L/7 and B/4 at 224 px (Assran et al. 2022), then the ends."""
    assert num_kept(patches, ratio) == kept
    assert len(draw_keep(patches, ratio, rng())) == kept


@pytest.mark.parametrize("tenths", range(10))
def test_rounding_takes_no_patch_away(tenths: int) -> None:
    """100 * (1 - 0.9) is 9.999999999999998 in floating point."""
    assert num_kept(100, tenths / 10) == 100 - 10 * tenths


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_a_ratio_that_is_none_is_refused(ratio: float) -> None:
    with pytest.raises(UsageError, match="from 0 to below 1"):
        num_kept(196, ratio)


def test_nothing_left_is_refused() -> None:
    with pytest.raises(UsageError, match="leaves none of 4 patches"):
        draw_keep(4, 0.76, rng())


def test_indices_are_distinct_ascending_and_within_the_grid() -> None:
    for keep in (draw_keep(49, 0.5, rng())[None], draw_keep(49, 0.5, rng(), 20)):
        assert keep.dtype == torch.int64 and keep.shape[1] == 24
        assert (keep.diff(dim=1) > 0).all() and keep.min() >= 0 and keep.max() < 49


def test_no_ratio_keeps_everything_in_order() -> None:
    assert torch.equal(draw_keep(9, 0.0, rng()), torch.arange(9))
    assert torch.equal(draw_keep(9, 0.0, rng(), 3), torch.arange(9).expand(3, 9))


def test_the_generator_decides() -> None:
    assert torch.equal(draw_keep(196, 0.5, rng(1)), draw_keep(196, 0.5, rng(1)))
    assert not torch.equal(draw_keep(196, 0.5, rng(1)), draw_keep(196, 0.5, rng(2)))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    draw_keep(196, 0.5, rng(), 4)
    assert torch.equal(state, torch.get_rng_state())  # the global generator is left alone


def test_each_sample_has_its_own_mask() -> None:
    keep = draw_keep(64, 0.5, rng(), 50)
    assert len({tuple(row) for row in keep.tolist()}) == 50


def test_every_set_is_as_likely_as_any_other() -> None:
    drawn = Counter(tuple(row) for row in draw_keep(5, 0.5, rng(), 10_000).tolist())
    assert drawn.keys() == set(itertools.combinations(range(5), 2))
    expected = 10_000 / 10
    chi2 = sum((n - expected) ** 2 / expected for n in drawn.values())
    assert chi2 < 27.9  # the 0.1 % point of 9 degrees of freedom


def test_mass_mask_by_hand() -> None:
    """Shares 0.1, 0.2, 0.3, 0.4 add up to 0.1, 0.3, 0.6, 1.0; kept is what is above 1 - keep."""
    maps = torch.tensor([[[0.2, 0.4], [0.6, 0.8]]])
    assert mass_mask(maps, 0.6).flatten().tolist() == [False, False, True, True]
    assert mass_mask(maps, 0.8).flatten().tolist() == [False, True, True, True]
    assert mass_mask(maps, 0.3).flatten().tolist() == [False, False, False, True]
    assert mass_mask(maps, 1.0).all()
    assert not mass_mask(torch.zeros(1, 2, 2)).any()


def slow_mass_mask(values: list[float], keep: float) -> list[bool]:
    """The words of A5.8, one entry after the other."""
    total, below = sum(values), 0.0
    kept = [False] * len(values)
    for i in sorted(range(len(values)), key=lambda i: values[i]):
        below += values[i] / total
        kept[i] = below > 1 - keep
    return kept


@pytest.mark.parametrize("keep", [0.1, 0.6, 0.8, 1.0])
def test_mass_mask_equals_the_slow_one_and_holds_the_mass(keep: float) -> None:
    maps = torch.rand(5, 7, 9, generator=torch.Generator().manual_seed(0)).pow(4).double()
    masks = mass_mask(maps, keep)
    assert masks.shape == maps.shape
    for values, mask in zip(maps.flatten(1), masks.flatten(1), strict=True):
        assert mask.tolist() == slow_mass_mask(values.tolist(), keep)
        share = values[mask].sum() / values.sum()
        assert share >= keep - 1e-9
        assert share - values[mask].min() / values.sum() < keep  # one less would not be enough
        assert (values[mask].min() > values[~mask].max()) if (~mask).any() else keep == 1.0


def test_mass_mask_of_one_peak_is_that_peak() -> None:
    maps = torch.full((1, 4, 4), 0.01)
    maps[0, 2, 1] = 5.0
    assert mass_mask(maps).nonzero().tolist() == [[0, 2, 1]]


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, 60.0])
def test_mass_mask_refuses_what_is_no_share(keep: float) -> None:
    with pytest.raises(ValueError, match="share"):
        mass_mask(torch.ones(1, 2, 2), keep)
