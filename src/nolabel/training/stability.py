"""Policy for steps that are not finite (skip, roll back, stop), and detection of loss spikes.

A step that is not finite moves nothing (`step.training_step` sees to that on the device), so to skip it is to go on. A
few such steps are normal with mixed precision and odd images; many mean that the weights themselves are useless.
"""

from collections.abc import Sequence
from statistics import median
from typing import Literal

from torch import Tensor

from nolabel.errors import NumericError

MAX_IN_A_ROW = 3


MAX_RECENT = 10


RECENT = 1000
"""Steps over which `MAX_RECENT` is counted."""


MAX_ROLLBACKS = 1


SMALLEST_SCALE = 2.0**-14
"""Smallest fp16 loss scale; below it the search for a scale that fits has failed."""


SPIKE_STEPS, SPIKE_WINDOW = 5, 100


SPIKE_SIGMAS, SPIKE_FLOOR = 8.0, 0.01
"""Standard deviations above the median, and the least standard deviation as a share of the median."""


Verdict = Literal["go on", "roll back", "stop"]


class Unstable(NumericError):
    """Too many steps were not finite; `step` is the last of them. `roll_back`: whether going back once may help."""

    def __init__(self, step: int, message: str, roll_back: bool = False) -> None:
        self.step, self.roll_back = step, roll_back
        super().__init__(message)


def decide(bad_steps: Sequence[int], step: int, rollbacks: int) -> Verdict:
    """Decide after `step`, the last of `bad_steps` (ascending step numbers since the last roll-back)."""
    recent = [s for s in bad_steps if s > step - RECENT]
    in_a_row = 0
    while in_a_row < len(recent) and recent[-1 - in_a_row] == step - in_a_row:
        in_a_row += 1
    if in_a_row <= MAX_IN_A_ROW and len(recent) <= MAX_RECENT:
        return "go on"
    return "roll back" if rollbacks < MAX_ROLLBACKS else "stop"


def describe_bad_step(values: dict[str, Tensor | float], not_finite: Sequence[str], step: int, precision: str) -> str:
    """Describe a step that was not finite, and what to try; `values` is the record of the step."""
    tensors = f"gradients of {len(not_finite)} tensors, first {not_finite[0]}" if not_finite else "no gradient"
    return (
        f"The loss or a gradient is not finite at step {step}: loss {float(values['loss']):.4g}, gradient norm "
        f"{float(values['grad_norm']):.4g}, learning rate {float(values['lr']):.3g}, {precision}; "
        f"not finite: {tensors}.\n"
        "Nothing has moved in this step; the last checkpoint is good. "
        "Try a lower --optim.lr, --precision fp32, or --optim.clip-grad 0.3."
    )


def find_spike(losses: Sequence[float]) -> tuple[float, float] | None:
    """The loss before and now, where the last 5 of `losses` are all far above the up to 100 before them (at least 50).

    Far above: by 8 standard deviations, estimated from the median absolute deviation, which outliers hardly move.
    """
    before, last = losses[-SPIKE_WINDOW - SPIKE_STEPS : -SPIKE_STEPS], losses[-SPIKE_STEPS:]
    if len(before) < SPIKE_WINDOW // 2:
        return None
    middle = median(before)
    sigma = max(1.4826 * median(abs(x - middle) for x in before), SPIKE_FLOOR * abs(middle))
    return (middle, median(last)) if min(last) > middle + SPIKE_SIGMAS * sigma else None
