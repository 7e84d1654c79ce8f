"""Between two log lines the host never waits for the device: what a step does would not make it wait on a GPU."""

import pytest
import torch
from sizes import SMALL
from tiny import job, step, views
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nolabel.methods import dino, msn
from nolabel.training.step import training_step

WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2")
"""They bring a number, or a shape that depends on numbers, to the host."""
FROM_THE_HOST = "aten::lift_fresh"
"""`torch.tensor(x, device=...)` and the like: a copy to the device, for which the host waits."""


class Waits(TorchDispatchMode):
    """Counts the operations inside, and names those that make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.number, self.found = 0, list[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.number += 1
        places = args[1] if func.name().startswith("aten::index") and isinstance(args[1], (list, tuple)) else ()
        by_mask = any(isinstance(x, Tensor) and x.dtype == torch.bool for x in places)
        if by_mask or func.name() in (*WAITING, FROM_THE_HOST):
            self.found.append("a choice by mask" if by_mask else func.name())
        return func(*args, **(kwargs or {}))


def waits(name: str) -> Waits:
    """Waits of one step of a small run; the first step, in which the optimizer makes its state, has gone before."""
    j = job(SMALL[name], "resnet" if name in ("densecl", "simclr") else "vit")
    step(j, 0)
    batch, clock = views(j), j.clock(1)
    with Waits() as seen:
        training_step(j, batch, clock)
    return seen


@pytest.mark.parametrize("name", SMALL)
def test_a_step_makes_the_host_wait_for_nothing(name: str) -> None:
    """MSN's mask alone comes from the host, some hundred bytes that are sent without waiting."""
    seen = waits(name)
    assert seen.number > 100
    assert seen.found == [FROM_THE_HOST] * (name == "msn")


def test_a_loss_that_is_read_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = dino.move_teacher
    monkeypatch.setattr(dino, "move_teacher", lambda *given: real(*given[:3], torch.tensor(given[3].item())))
    assert waits("dino").found == ["aten::_local_scalar_dense", FROM_THE_HOST]


def test_a_choice_by_mask_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = msn.information
    monkeypatch.setattr(msn, "information", lambda p: real(p[p[:, 0] >= 0]))
    assert "a choice by mask" in waits("msn").found
