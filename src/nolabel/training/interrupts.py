"""Signals of the system become a flag: the loop stops after the present step, saves and leaves."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from nolabel.errors import NolabelError


def _there(*names: str) -> tuple[signal.Signals, ...]:
    """Signals of these names that this system has."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


ASKING = _there("SIGINT", "SIGTERM", "SIGUSR1")
"""Signals that people and batch systems send; a second one acts at once."""


REPEATED = _there("SIGHUP", "SIGXCPU")
"""Signals that the system itself repeats: when a terminal closes, and each second beyond the limit of CPU time."""


class Stopped(NolabelError):
    """A signal ended the run after a checkpoint; `nolabel resume` goes on."""

    def __init__(self, number: int, run: str) -> None:
        name = signal.Signals(number).name
        self.code = 128 + (signal.SIGTERM if name == "SIGUSR1" else number)  # batch systems send SIGTERM after SIGUSR1
        super().__init__(f"Stopped by {name} after a checkpoint. Go on with: nolabel resume {run}")


@contextlib.contextmanager
def catch_signals() -> Iterator[Callable[[], int]]:
    """Give a function that returns the number of the first signal that came, or 0.

    A second one acts at once, but for those that the system repeats. SIGHUP stays ignored where `nohup` has it so.
    """
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread alone
        yield lambda: 0
        return
    previous = {n: signal.getsignal(n) for n in (*ASKING, *REPEATED)}
    numbers = [n for n, old in previous.items() if old is not None and (n in ASKING or old != signal.SIG_IGN)]
    came = 0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = came or number
        for n in numbers:
            if n not in REPEATED:
                signal.signal(n, previous[n])

    for n in numbers:
        signal.signal(n, remember)
    try:
        yield lambda: came
    finally:
        for n in numbers:
            signal.signal(n, previous[n])
