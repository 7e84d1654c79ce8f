"""The momentum teacher: a slow copy of the student, moved in one place."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def auto_momentum(total_steps: int) -> float:
    """Momentum at the start of a run of `total_steps`, from 0.99 to 0.9995: the teacher remembers 1/60 of the run.

    Our choice for short runs (docs/methods/dino.md); the values of the papers are for hundreds of thousands of steps.
    """
    return 1 - min(max(60 / total_steps, 0.0005), 0.01)


@torch.no_grad()
def move_teacher(teacher: Iterable[nn.Parameter], student: Iterable[nn.Parameter], momentum: float, ok: Tensor) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, where `ok` (0-d, 0 or 1); otherwise nothing moves.

    Parameters only: BatchNorm statistics are the teacher's own (methods of the DINO family).
    """
    teachers: list[Tensor] = list(teacher)
    students: list[Tensor] = list(student)
    # A 0-d weight on the device: no host synchronisation, and weight 0 leaves every bit of the teacher as it is.
    weight = (1 - momentum) * ok.float()
    torch._foreach_lerp_(teachers, students, [weight] * len(teachers))
