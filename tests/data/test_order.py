"""The order of the images in an epoch."""

import numpy as np
import pytest

from nolabel import distributed
from nolabel.data import order as module
from nolabel.data.images import Images
from nolabel.data.loader import Stream, samples
from nolabel.data.order import images_at, order, permuted
from nolabel.views import View

MILLIONS = 3_000_017


def some(places: range, epoch: int = 0, seed: int = 0) -> list[int]:
    return images_at(places, MILLIONS, seed, epoch)


@pytest.mark.parametrize("number", [1, 2, 3, 10, 99, 100, 101, 1000, 1023, 1024, 65_537])
def test_every_image_comes_once(number: int) -> None:
    for epoch in range(3):
        assert np.array_equal(np.sort(permuted(np.arange(number), number, 0, epoch)), np.arange(number))


def test_every_image_of_millions_comes_once() -> None:
    seen = np.zeros(MILLIONS, bool)
    seen[permuted(np.arange(MILLIONS), MILLIONS, 5, 2)] = True
    assert seen.all()


def test_any_part_of_the_order_is_that_part_of_the_whole() -> None:
    whole = some(range(5000))
    assert some(range(4000, 4100)) == whole[4000:4100] and some(range(0, 100, 7)) == whole[:100:7]
    assert some(range(2_999_000, MILLIONS))[-1] == some(range(MILLIONS - 1, MILLIONS))[0]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = [some(range(1000), epoch, seed) for epoch in range(3) for seed in range(3)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 3


def test_few_images_keep_the_listed_order() -> None:
    """Losses of runs that were started before there was another one."""
    assert images_at(range(1000), 1000, 3, 1) == order(1000, 3, 1).tolist()
    assert order(10, 0, 0).tolist() == np.random.Generator(np.random.Philox(key=0)).permutation(10).tolist()


def chi_square(counts: np.ndarray) -> float:
    """In standard deviations from what uniform counts give."""
    expected = counts.sum() / counts.size
    free = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - free) / np.sqrt(2 * free))


def test_places_are_uniform() -> None:
    """Where neighbours land, and how far apart, has the distribution of chance over 400 epochs."""
    number, epochs = 1000, 400
    found = np.stack([permuted(np.arange(number), number, 1, epoch) for epoch in range(epochs)])
    table = np.zeros((50, 50))  # from which twentieth to which
    np.add.at(table, (np.tile(np.arange(number) // 20, (epochs, 1)), found // 20), 1)
    assert abs(chi_square(table)) < 5
    steps = (np.diff(found, axis=1) % number).ravel()  # a shift or a stride would show here
    assert abs(chi_square(np.bincount(steps, minlength=number)[1:])) < 5
    pairs = np.zeros((20, 20))  # where an image and its neighbour land
    np.add.at(pairs, (found[:, :-1] // 50, found[:, 1:] // 50), 1)
    off = pairs[~np.eye(20, dtype=bool)]
    assert abs(chi_square(off)) < 5
    fixed = (found == np.arange(number)).sum()  # one per epoch is expected
    assert abs(fixed - epochs) < 5 * np.sqrt(epochs)


def test_the_rows_of_a_batch_are_uniform_for_millions() -> None:
    found = np.concatenate([np.array(some(range(64), epoch)) for epoch in range(2000)])
    assert abs(chi_square(np.bincount(found * 64 // MILLIONS, minlength=64))) < 5
    assert abs(chi_square(np.bincount(found % 2, minlength=2))) < 5


def test_a_run_starts_in_the_middle_of_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of a resumed run are those of one that got there, for listed and for computed orders."""
    names = tuple(f"{i}.jpg" for i in range(103))
    stream = Stream(Images("nowhere", "folder", names, ()), (View(8, (0.5, 1.0)),), 0, 10)
    for limit in (1000, 10):
        monkeypatch.setattr(module, "MAX_LISTED", limit)
        whole = list(samples(stream, range(35), 0, 1))
        assert list(samples(stream, range(17, 35), 0, 1)) == whole[17:]
        halves = [list(samples(stream, range(17, 35), rank, 2)) for rank in range(2)]
        assert [a + b for a, b in zip(*halves, strict=True)] == whole[17:]
        seen = [image for step in whole[:10] for _, image in step]
        assert len(set(seen)) == 100 and distributed.world_size() == 1
