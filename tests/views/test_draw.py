"""The parameters of views: their distributions, and that the key alone decides them."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from nolabel.randomness import generator, philox, reused_philox
from nolabel.views import Drawn, View, draw

NUM = 4000
GLOBAL = View(224, (0.4, 1.0), blur=0.1, solarize=0.2)
LOCAL = View(96, (0.05, 0.4), blur=0.5)


def many(view: View, height: int = 1000, width: int = 1000, seed: int = 0) -> list[Drawn]:
    return [draw(view, (seed, i % 7, i, i % 3), height, width) for i in range(NUM)]


def distance_to_uniform(values: list[float], low: float, high: float) -> float:
    """Kolmogorov-Smirnov distance; 0.035 is passed by chance once in ten thousand times for 4000 values."""
    x = (np.sort(values) - low) / (high - low)
    assert x[0] >= -1e-9 and x[-1] <= 1 + 1e-9, "outside of the range"
    steps = np.arange(len(x) + 1) / len(x)
    return float(max(np.abs(x - steps[1:]).max(), np.abs(x - steps[:-1]).max()))


def distance(a: list[float], b: list[float]) -> float:
    """Kolmogorov-Smirnov distance of two samples."""
    grid = np.sort(np.concatenate([a, b]))
    return float(np.abs(np.searchsorted(np.sort(a), grid) / len(a) - np.searchsorted(np.sort(b), grid) / len(b)).max())


def share(drawn: list[bool]) -> float:
    return sum(drawn) / len(drawn)


def test_the_same_key_draws_the_same_and_nothing_global_is_read_or_moved() -> None:
    states = random.getstate(), torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    first = draw(GLOBAL, (1, 2, 3, 4), 300, 400)
    random.seed(1)
    random.setstate(states[0])
    draw(LOCAL, (9, 9, 9, 9), 100, 100)  # what is drawn in between doesn't matter
    assert draw(GLOBAL, (1, 2, 3, 4), 300, 400) == first
    assert random.getstate() == states[0]
    assert torch.equal(torch.random.get_rng_state(), states[1])
    assert (np.random.get_state()[1] == states[2]).all()  # type: ignore[index]


def test_every_part_of_the_key_matters() -> None:
    keys = list(itertools.product(range(3), repeat=4))
    assert len({draw(GLOBAL, key, 1000, 1000) for key in keys}) == len(keys)  # type: ignore[arg-type]


def test_a_key_means_the_same_forever() -> None:
    """Resuming a run of last year needs this; a change of these numbers is a change of the format."""
    assert generator("view", 7, 1, 2, 3).integers(1 << 32, size=2).tolist() == [2950635312, 2037797801]
    drawn = draw(GLOBAL, (7, 1, 2, 3), 480, 640)
    assert drawn.box == (41, 264, 405, 368) and not drawn.flip
    assert [name for name, _ in drawn.jitter] == ["contrast", "brightness", "saturation", "hue"]
    assert drawn.jitter[0][1] == pytest.approx(0.7222158854807379, rel=1e-12)


def test_parameters_are_plain_python() -> None:
    kinds = {type(x) for d in many(GLOBAL)[:50] for x in (*d.box, d.flip, d.grayscale, d.sigma, d.solarize)}
    assert kinds == {int, bool, float}
    assert {type(f) for d in many(GLOBAL)[:50] for _, f in d.jitter} == {float}


def test_local_crops_have_uniform_area_log_uniform_aspect_and_uniform_place() -> None:
    boxes = [d.box for d in many(LOCAL)]
    assert all(t >= 0 and x >= 0 and h > 0 and w > 0 and t + h <= 1000 and x + w <= 1000 for t, x, h, w in boxes)
    assert distance_to_uniform([h * w / 1e6 for _, _, h, w in boxes], 0.0495, 0.4005) < 0.035
    log = math.log(4 / 3) + 0.01
    assert distance_to_uniform([math.log(w / h) for _, _, h, w in boxes], -log, log) < 0.035
    assert distance_to_uniform([t / (1000 - h) for t, _, h, _ in boxes], 0, 1) < 0.035
    assert distance_to_uniform([x / (1000 - w) for _, x, _, w in boxes], 0, 1) < 0.035


@pytest.mark.parametrize("shape", [(500, 800), (1200, 300), (64, 64)])
def test_crops_are_distributed_like_torchvisions(shape: tuple[int, int]) -> None:
    """Where tries that don't fit are thrown away, and the fallback is taken now and then."""
    torch.manual_seed(0)
    image = torch.empty(1, *shape)
    theirs = [RandomResizedCrop.get_params(image, [0.4, 1.0], [3 / 4, 4 / 3]) for _ in range(NUM)]
    ours = [d.box for d in many(GLOBAL, *shape)]
    for measure in (lambda b: b[2] * b[3], lambda b: b[3] / b[2], lambda b: b[0], lambda b: b[1]):
        assert distance([measure(b) for b in ours], [measure(b) for b in theirs]) < 0.05


@pytest.mark.parametrize("shape", [(10, 1000), (1000, 10), (1, 1), (1, 7), (300, 300), (3, 4), (7, 5)])
def test_the_fallback_is_torchvisions(shape: tuple[int, int]) -> None:
    """A crop that must have all of the area and another aspect never fits."""
    view = View(32, (1.0, 1.0), ratio=(0.8, 0.8001) if shape[0] <= shape[1] else (1.2, 1.2001))
    box = draw(view, (0, 0, 0, 0), *shape).box
    assert box == tuple(RandomResizedCrop.get_params(torch.empty(1, *shape), list(view.scale), list(view.ratio)))


@pytest.mark.parametrize("view", [GLOBAL, LOCAL])
def test_each_operation_has_its_probability(view: View) -> None:
    drawn = many(view)
    for chance, happened in (
        (view.flip, [d.flip for d in drawn]),
        (view.jitter_p, [bool(d.jitter) for d in drawn]),
        (view.grayscale, [d.grayscale for d in drawn]),
        (view.blur, [d.sigma > 0 for d in drawn]),
        (view.solarize, [d.solarize for d in drawn]),
    ):
        assert abs(share(happened) - chance) <= 4 * math.sqrt(chance * (1 - chance) / NUM)


def test_operations_do_not_hang_together() -> None:
    drawn = many(View(32, (0.05, 0.4), blur=0.5, solarize=0.5, grayscale=0.5, jitter_p=0.5))
    table = [
        [d.flip, bool(d.jitter), d.grayscale, d.sigma > 0, d.solarize, d.box[2] * d.box[3] > 225_000] for d in drawn
    ]
    correlation = np.corrcoef(np.array(table, dtype=float).T) - np.eye(6)
    assert np.abs(correlation).max() < 4 / math.sqrt(NUM)


def test_colour_factors_are_uniform_in_their_ranges() -> None:
    drawn = [dict(d.jitter) for d in many(GLOBAL) if d.jitter]
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.8, 1.2),
        ("hue", -0.1, 0.1),
    ):
        assert distance_to_uniform([d[name] for d in drawn], low, high) < 0.035


def test_the_colour_operations_come_in_every_order() -> None:
    orders = [tuple(name for name, _ in d.jitter) for d in many(GLOBAL) if d.jitter]
    expected = len(orders) / 24
    counts = {order: orders.count(order) for order in set(orders)}
    assert len(counts) == 24
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 58  # chi squared, 23 degrees: p = 1e-4


def test_the_blur_is_uniform_in_its_range() -> None:
    sigmas = [d.sigma for d in many(View(32, (0.4, 1), blur=1.0))]
    assert distance_to_uniform(sigmas, 0.1, 2.0) < 0.035


def test_nothing_happens_at_probability_zero_and_everything_at_one() -> None:
    off = View(32, (1, 1), (1, 1), flip=0, jitter_p=0, grayscale=0)
    on = View(32, (1, 1), (1, 1), flip=1, jitter_p=1, grayscale=1, blur=1, solarize=1)
    for i in range(50):
        assert draw(off, (0, 0, i, 0), 20, 20) == Drawn((0, 0, 20, 20), False, (), False, 0.0, False)
        drawn = draw(on, (0, 0, i, 0), 20, 20)
        assert drawn.flip and len(drawn.jitter) == 4 and drawn.grayscale and drawn.sigma and drawn.solarize


def test_strong_jitter_never_goes_below_zero_and_no_hue_is_left_out() -> None:
    view = View(32, (1, 1), jitter=(1.6, 0.4, 0.4, 0.0), jitter_p=1)
    drawn = [dict(draw(view, (0, 0, i, 0), 20, 20).jitter) for i in range(500)]
    assert distance_to_uniform([d["brightness"] for d in drawn], 0.0, 2.6) < 0.1
    assert all(d.keys() == {"brightness", "contrast", "saturation"} for d in drawn)


def test_a_generator_has_three_counters_that_do_not_overlap() -> None:
    draws = {
        tuple(philox(s, *c).integers(1 << 62, size=3)) for s in range(2) for c in itertools.product(range(4), repeat=3)
    }
    assert len(draws) == 2 * 4**3


def test_a_generator_that_is_used_again_draws_what_a_new_one_does() -> None:
    for key in ((0, 0, 0, 0), (3, 2, 1, 0), (2**70 + 5, 10**9, 2**40, 11)):
        found = []
        for make in (philox, reused_philox):
            rng = make(*key)
            found.append([*rng.random(5), rng.integers(100), *rng.permutation(4), rng.uniform(2, 3)])
        assert found[0] == found[1]
