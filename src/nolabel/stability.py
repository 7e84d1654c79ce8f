"""What follows from steps that are not finite: skip them, roll back, stop.

Such a step moves nothing (`train.training_step` sees to that on the device), so skipping is going on. A few are the
ordinary luck of mixed precision and odd images; many mean that the weights themselves have become useless.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from nolabel.errors import NumericError

MAX_IN_A_ROW = 3
MAX_RECENT = 10
RECENT = 1000
"""Steps over which `MAX_RECENT` is counted."""
MAX_ROLLBACKS = 1
SMALLEST_SCALE = 2.0**-14
"""An fp16 loss scale below this is no longer looking for its place."""

Verdict = Literal["go on", "roll back", "stop"]


class Unstable(NumericError):
    """Too many steps were not finite; `step` is the last of them."""

    def __init__(self, step: int, message: str) -> None:
        self.step = step
        super().__init__(message)


def verdict(bad_steps: Sequence[int], step: int, rollbacks: int) -> Verdict:
    """What to do after `step`, the last of `bad_steps` (ascending step numbers since the last roll-back)."""
    recent = [s for s in bad_steps if s > step - RECENT]
    in_a_row = 0
    while in_a_row < len(recent) and recent[-1 - in_a_row] == step - in_a_row:
        in_a_row += 1
    if in_a_row <= MAX_IN_A_ROW and len(recent) <= MAX_RECENT:
        return "go on"
    return "roll back" if rollbacks < MAX_ROLLBACKS else "stop"


def facts(values: dict[str, Tensor | float], not_finite: Sequence[str], step: int, precision: str) -> str:
    """What is known of a step that was not finite, and what to try: `values` is the record of the step."""
    tensors = f"gradients of {len(not_finite)} tensors, first {not_finite[0]}" if not_finite else "no gradient"
    return (
        f"The loss or a gradient is not finite at step {step}: loss {float(values['loss']):.4g}, gradient norm "
        f"{float(values['grad_norm']):.4g}, learning rate {float(values['lr']):.3g}, {precision}; "
        f"not finite: {tensors}.\n"
        "Nothing has moved in this step; the last checkpoint is good. "
        "Try a lower --optim.lr, --precision fp32, or --optim.clip-grad 0.3."
    )
