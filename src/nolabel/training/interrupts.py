"""Signals become a flag: the loop stops at the next step boundary, saves and leaves."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from nolabel.errors import NolabelError


class Stopped(NolabelError):
    """A signal ended the run after a checkpoint; `nolabel resume` goes on."""

    def __init__(self, number: int, run: str) -> None:
        # 128 + SIGINT, else 128 + SIGTERM: SIGUSR1 is what batch systems send before SIGTERM.
        self.code = 130 if number == signal.SIGINT else 143
        super().__init__(
            f"Stopped by {signal.Signals(number).name} after a checkpoint. Go on with: nolabel resume {run}"
        )


@contextlib.contextmanager
def catch_signals() -> Iterator[Callable[[], int]]:
    """Gives a function that returns the number of the signal that came, or 0. A second signal acts at once."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    came = 0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = number
        for n in numbers:
            signal.signal(n, previous[n])

    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread alone
        yield lambda: 0
        return
    previous = {n: signal.getsignal(n) for n in numbers}
    for n in numbers:
        signal.signal(n, remember)
    try:
        yield lambda: came
    finally:
        for n in numbers:
            signal.signal(n, previous[n])
