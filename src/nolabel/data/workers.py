"""Processes that prepare batches. When one dies or hangs, all start again at the batch that was waited for.

A batch is a function of its step, so nothing is lost and no pixel changes. A file that kills its process twice is found
by reading the files of the batch one by one, each in a process of its own.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence, Set
from multiprocessing.process import BaseProcess
from typing import TypeVar

import torch

from nolabel.errors import DEAD_PROCESS, NolabelError

T = TypeVar("T")

MAX_RESTARTS = 3
"""Restarts in a row without a batch in between; a fourth death ends the run."""
HANG = 300.0
"""Seconds without a batch after which the processes count as hung."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - what Linux calls it; nothing of ours is written there by name
PREFETCH = 4
"""Batches that each process prepares in advance."""
PROBE = 60.0
"""Seconds that one file may take when the batch that kills is searched."""


class DeadWorker(NolabelError):
    """The processes that prepare images die or hang again and again at one batch."""

    code = DEAD_PROCESS


def fits_shared_memory(needed: int, folder: str = SHARED_MEMORY) -> str:
    """An empty string if so many bytes of batches can wait in shared memory; else a warning.

    torch sends tensors from process to process there, and a process that finds it full dies of a bus error: containers
    often have 64 MB of it.
    """
    if not os.path.isdir(folder):
        return ""
    free = shutil.disk_usage(folder).free
    if needed <= free:
        return ""
    return (
        f"{folder} has {free / 2**20:,.0f} MiB free, and the batches that wait take {needed / 2**20:,.0f} MiB: "
        "they are sent through pipes, which is slower. Docker: --shm-size; or fewer --workers."
    )


def restarted(
    start: Callable[[int, bool], Iterator[T]], found_dead: Callable[[int, int, str], None], number: int
) -> Iterator[T]:
    """The items of `start(0, False)`; after a death those of `start(n, ...)`, n the number of items given so far.

    `start` begins a `DataLoader` of `number` processes; `start(n, True)` gives item n alone from one process, so that
    another death is that of item n. Each death calls `found_dead(n, times, how)` before the restart; `times` are those
    at item n.
    """
    done = deaths = 0
    while True:
        others, alone = set(multiprocessing.active_children()), deaths > 0
        iterator: Iterator[T] | None = None
        workers, hung, how = list[BaseProcess](), threading.Event(), ""
        try:
            iterator = start(done, alone)
            _raise_only_here()
            workers = _children_since(others)
            while True:
                with _killed_after(HANG, workers, hung):
                    item = next(iterator)
                done, deaths = done + 1, 0
                yield item
        except StopIteration:
            if not alone:
                return
        except (RuntimeError, EOFError, OSError) as error:
            workers = workers or _children_since(others)
            missing = (1 if alone else number) - len(workers)
            how = _death(error, workers, missing, started=iterator is not None)
            if not how:
                raise
        finally:
            _end(workers if how else ())  # else torch waits 5 s for each
            del iterator
            _end(workers)  # one that is stopped or hangs would keep this process from leaving
        if how:
            deaths += 1
            found_dead(done, deaths, f"hung for {HANG:.0f} s" if hung.is_set() else f"died ({how})")


def _children_since(others: Set[BaseProcess]) -> list[BaseProcess]:
    return [p for p in multiprocessing.active_children() if p not in others]


def _death(error: Exception, workers: Sequence[BaseProcess], missing: int, started: bool) -> str:
    """Describe how one of the processes died; an empty string if the error is something else.

    `missing` are those that were dead before they could be listed: nobody knows any more how they ended.
    """
    if not isinstance(error, RuntimeError):  # what a dead process had sent cannot be fetched any more
        _wait_for_the_dead(workers)
    dead = [p for p in workers if not p.is_alive()]
    if dead:
        return describe(dead[0].exitcode)
    return "as it started" if missing and (started or "DataLoader worker" in str(error)) else ""


def survives(call: Callable[..., object], *arguments: object) -> str:
    """An empty string if a process that does nothing but `call` ends, else how it died."""
    process = multiprocessing.Process(target=_quietly, args=(call, *arguments), daemon=True)
    process.start()
    process.join(PROBE)
    if process.exitcode is None:
        process.kill()
        process.join()
        return f"hung for {PROBE:.0f} s"
    return describe(process.exitcode) if process.exitcode < 0 else ""


def describe(exitcode: int | None) -> str:
    """An exit code in words: the name of the signal, if it was one."""
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


def _end(workers: Sequence[BaseProcess]) -> None:
    for process in workers:
        process.kill()
    for process in workers:
        process.join(5)


def _wait_for_the_dead(workers: Sequence[BaseProcess]) -> None:
    """A dying process closes its connections a little before it counts as dead."""
    closed = multiprocessing.connection.wait([p.sentinel for p in workers], timeout=5)
    for process in workers:
        if process.sentinel in closed:
            process.join(5)


def _quietly(call: Callable[..., object], *arguments: object) -> None:
    torch.set_num_threads(1)  # a forked process has none of its parent's threads and would wait for them without end
    with contextlib.suppress(Exception):  # only death counts here
        call(*arguments)


@contextlib.contextmanager
def _killed_after(seconds: float, workers: Sequence[BaseProcess], hung: threading.Event) -> Iterator[None]:
    """Kill the workers if the block takes longer: the loader then sees that they are dead."""

    def kill() -> None:
        hung.set()
        _end(workers)

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _raise_only_here() -> None:
    """Take back torch's handler of SIGCHLD, which raises wherever the main thread is, even within an optimizer step.

    Without it the death is seen where the next batch is waited for, within 5 s.
    """
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGCHLD)
        if getattr(handler, "__module__", "").startswith("torch."):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
