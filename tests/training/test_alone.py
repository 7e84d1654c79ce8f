"""The state of a program (threads, random numbers, modes of torch) is the same after a call of nolabel."""

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import nolabel
from nolabel import api
from nolabel.errors import UsageError
from nolabel.training.alone import own_state
from nolabel.training.interrupts import Stopped


def test_threads_random_state_and_modes_are_given_back() -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    with torch.no_grad(), own_state():
        assert torch.is_grad_enabled()
        torch.set_num_threads(threads + 1)
        torch.manual_seed(1)
        torch.set_default_dtype(torch.float64)
    assert torch.get_num_threads() == threads and torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.rand(1), want)


def test_defaults_of_the_caller_do_not_reach_in() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), own_state():
            x = torch.zeros(1)
        assert x.dtype == torch.float32 and x.device.type == "cpu"
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_second_training_in_the_process_is_refused() -> None:
    caught: list[BaseException] = []

    def second() -> None:
        try:
            with own_state():
                pass
        except UsageError as error:
            caught.append(error)

    with own_state():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(caught) == 1 and "another thread" in str(caught[0])
    with own_state():
        pass


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)])
def test_an_interrupt_ends_a_sweep_too(number: int, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise Stopped(number, "runs/a")

    monkeypatch.setattr(api, "run_training", stopped)
    with pytest.raises(kind, match="nolabel resume runs/a"):
        nolabel.train("simclr-small", tmp_path, tmp_path / "run")
