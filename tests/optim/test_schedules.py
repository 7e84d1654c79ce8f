"""Every schedule of DINO against the arrays of its definition (Caron et al. 2021), built literally with numpy."""

import numpy as np
import pytest
import torch

from nolabel.optim.optimizers import OptimConfig, optimizer, set_schedules
from nolabel.optim.schedules import Clock, cosine, fit_warmup, linear_by_epoch, warmup_cosine

EPOCHS, PER_EPOCH = 7, 5
TOTAL = EPOCHS * PER_EPOCH
CLOCKS = [Clock(step, TOTAL, PER_EPOCH) for step in range(TOTAL)]


def half_cosine(start: float, end: float, number: int) -> np.ndarray:
    """end + (start - end) / 2 * (1 + cos(pi i / M)) for i = 0 .. M - 1."""
    i = np.arange(number)
    return end + 0.5 * (start - end) * (1 + np.cos(np.pi * i / number))


def test_clock_counts_steps_epochs_and_progress() -> None:
    assert [c.epoch for c in CLOCKS] == [e for e in range(EPOCHS) for _ in range(PER_EPOCH)]
    np.testing.assert_allclose([c.progress for c in CLOCKS], np.arange(TOTAL) / TOTAL)
    assert CLOCKS[0].progress == 0 and CLOCKS[-1].progress < 1


@pytest.mark.parametrize(("start", "end"), [(0.996, 1.0), (0.04, 0.4), (1e-4, 1e-4)])
def test_cosine_is_the_array_of_the_definition(start: float, end: float) -> None:
    values = [cosine(start, end, c.progress) for c in CLOCKS]
    np.testing.assert_allclose(values, half_cosine(start, end, TOTAL), rtol=1e-12)
    assert values[0] == pytest.approx(start)


@pytest.mark.parametrize("warmup_epochs", [0, 1, 3])
def test_learning_rate_is_linspace_then_cosine(warmup_epochs: int) -> None:
    peak, end, warmup = 5e-4, 1e-6, warmup_epochs * PER_EPOCH
    expected = np.concatenate([np.linspace(0, peak, warmup), half_cosine(peak, end, TOTAL - warmup)])
    values = [warmup_cosine(peak, end, warmup, c) for c in CLOCKS]
    assert len(values) == len(expected) == EPOCHS * PER_EPOCH
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    if warmup:
        assert values[0] == 0 and values[warmup - 1] == peak
    assert values[-1] > end  # the end itself is never reached


def test_a_warmup_of_one_step_starts_at_zero_like_linspace() -> None:
    assert [warmup_cosine(1.0, 0.0, 1, Clock(s, 3, 1)) for s in range(2)] == [np.linspace(0, 1, 1)[0], 1.0]


@pytest.mark.parametrize("warmup", [0, 1, 3, EPOCHS])
def test_teacher_temperature_is_linspace_by_epoch_then_constant(warmup: int) -> None:
    by_epoch = np.concatenate([np.linspace(0.04, 0.07, warmup), np.full(EPOCHS - warmup, 0.07)])
    values = [linear_by_epoch(0.04, 0.07, warmup, c) for c in CLOCKS]
    np.testing.assert_allclose(values, np.repeat(by_epoch, PER_EPOCH), rtol=1e-12)


def test_a_warmup_as_long_as_the_run_shrinks_to_a_tenth() -> None:
    assert fit_warmup(10, 100) == 10
    assert fit_warmup(10, 10) == 1
    assert fit_warmup(30, 20) == 2
    assert fit_warmup(0, 1) == 0


@pytest.mark.parametrize(("batch_size", "warmup_epochs"), [(256, 2), (1024, 2), (512, 50)])
def test_set_schedules_scales_the_peak_and_fills_the_groups(batch_size: int, warmup_epochs: int) -> None:
    from torch import nn

    config = OptimConfig(lr=5e-4, min_lr=1e-6, warmup_epochs=warmup_epochs, weight_decay=0.04, weight_decay_end=0.4)
    steps = round((warmup_epochs if warmup_epochs < EPOCHS else EPOCHS / 10) * PER_EPOCH)
    peak = 5e-4 * batch_size / 256
    lr = np.concatenate([np.linspace(0, peak, steps), half_cosine(peak, 1e-6, TOTAL - steps)])
    decay = half_cosine(0.04, 0.4, TOTAL)
    opt = optimizer(nn.Linear(3, 3), config)
    for clock in CLOCKS:
        said = set_schedules(opt, config, batch_size, clock)
        assert said == {"lr": pytest.approx(lr[clock.step]), "weight_decay": pytest.approx(decay[clock.step])}
        assert [g["lr"] for g in opt.param_groups] == [said["lr"]] * 2
        assert [g["weight_decay"] for g in opt.param_groups] == [said["weight_decay"], 0.0]


def test_a_warmup_may_start_above_zero() -> None:
    values = [warmup_cosine(1e-3, 1e-6, 10, c, start=2e-4) for c in CLOCKS]
    np.testing.assert_allclose(values[:10], np.linspace(2e-4, 1e-3, 10), rtol=1e-12)
    np.testing.assert_allclose(values[10:], half_cosine(1e-3, 1e-6, TOTAL - 10), rtol=1e-12)


def test_a_stretched_schedule_ends_early() -> None:
    """MSN's 1.25: decay reaches .3656 of .4 and the learning rate 9.8 % of its peak (800 epochs, 15 of warm-up)."""
    end = Clock(800, 1000, 1)
    assert cosine(0.04, 0.4, end.progress) == pytest.approx(0.3656, abs=1e-4)
    assert warmup_cosine(1.0, 0.0, 15, end) == pytest.approx(0.098, abs=2e-3)


def test_the_learning_rate_can_be_read_once_an_epoch() -> None:
    config = OptimConfig("sgd", lr=1.0, min_lr=0.0, warmup_epochs=0, lr_by_epoch=True)
    optim = optimizer(torch.nn.Linear(1, 1), config)
    rates = [set_schedules(optim, config, 256, c)["lr"] for c in CLOCKS]
    np.testing.assert_allclose(rates, np.repeat(half_cosine(1.0, 0.0, EPOCHS), PER_EPOCH), rtol=1e-12)
