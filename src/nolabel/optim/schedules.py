"""Schedules as pure functions of the clock: there is nothing to save and nothing to restore."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Clock(NamedTuple):
    """Progress of training at one optimizer step (the first has `step == 0`)."""

    step: int
    total_steps: int
    """Steps that the schedules span; MSN's go beyond the end of the run."""
    steps_per_epoch: int
    seed: int = 0
    """Seed of the run. Draws of a method are functions of it and the step, the same in all processes."""

    @property
    def progress(self) -> float:
        """Share of the schedules that is over, in [0, 1)."""
        return self.step / self.total_steps

    @property
    def epoch(self) -> int:
        """Index of the current pass over the data."""
        return self.step // self.steps_per_epoch


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` (progress 0) to `end` (progress 1): DINO's schedule of lr, decay and momentum."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


def warmup_cosine(peak: float, end: float, warmup_steps: int, clock: Clock, start: float = 0.0) -> float:
    """Linear from `start` (first step) to `peak` (last of the warm-up), then a cosine to one step short of `end`."""
    if clock.step < warmup_steps:
        return start + (peak - start) * clock.step / max(warmup_steps - 1, 1)
    return cosine(peak, end, (clock.step - warmup_steps) / max(clock.total_steps - warmup_steps, 1))


def linear_by_epoch(start: float, end: float, epochs: int, clock: Clock) -> float:
    """Value of `linspace(start, end, epochs)`, read once per epoch, then `end`: DINO's teacher temperature."""
    if clock.epoch >= epochs:
        return end
    return start + (end - start) * clock.epoch / max(epochs - 1, 1)


def multi_step(peak: float, factor: float, milestones: Sequence[int], step: int) -> float:
    """`peak` until the first milestone, multiplied by `factor` at each one (He et al. 2016)."""
    return peak * factor ** sum(step >= milestone for milestone in milestones)


def fit_warmup(warmup_epochs: float, epochs: float) -> float:
    """The warm-up as asked, or a tenth of the run where it would be longer than the run."""
    return warmup_epochs if warmup_epochs < epochs else 0.1 * epochs
