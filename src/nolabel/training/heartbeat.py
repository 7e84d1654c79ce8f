"""Heartbeats: end a job of several processes when one of them is dead or hangs, and report which.

A collective operation waits for ever, or for half an hour, for a process that no longer answers. So each process
writes a heartbeat to the run folder and looks at those of the others. Times are measured by each reader's own clock
between changes of a file, so the clocks of machines need not agree.
"""

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nolabel import console, distributed
from nolabel.errors import DEAD_PROCESS
from nolabel.files import replacing
from nolabel.runs.folder import write_status

BEAT = 2.0
"""Seconds between two heartbeats."""


SILENCE = 45.0
"""Seconds without a heartbeat after which a process counts as dead; torchrun needs up to 30 to end the others."""


STANDSTILL = 75.0
"""Seconds without a finished step after which the job counts as hung, or ten times the longest step if longer."""


PAUSE = 3600.0
"""Seconds without progress after which the job counts as hung while a process evaluates or saves."""


class Pulse:
    """Progress of the main thread of this process; the heartbeat's thread reads it."""

    def __init__(self, step: int) -> None:
        self.step, self.doing, self.count, self.longest = step, "training", 0, 0.0
        self.since = time.monotonic()

    def beat(self, step: int, doing: str = "training") -> None:
        """Note what comes next; the main thread calls it at every step and around slow work."""
        now = time.monotonic()
        if self.doing == "training" and self.count > 1:  # the first step compiles and warms up
            self.longest = max(self.longest, now - self.since)
        self.step, self.doing, self.count, self.since = step, doing, self.count + 1, now


class _Seen(NamedTuple):
    text: str
    beat_at: float
    moved_at: float


@contextlib.contextmanager
def watch_processes(folder: Path, first_step: int) -> Iterator[Pulse]:
    """Watch the processes of the job for the length of the block; without a process group do nothing.

    A dead or hung process ends this one with exit code 75 even while its main thread waits; status.json has the reason.
    """
    pulse, stop = Pulse(first_step), threading.Event()
    if not distributed.active():
        yield pulse
        return
    beats = folder / ".alive"
    if distributed.is_main():
        shutil.rmtree(beats, ignore_errors=True)  # left by an earlier run of this folder
        beats.mkdir(parents=True)
    distributed.barrier()
    rank, world_size = distributed.rank(), distributed.world_size()
    thread = threading.Thread(target=_watch, args=(folder, pulse, rank, world_size, stop), daemon=True)
    thread.start()
    try:
        yield pulse
    finally:
        stop.set()
        thread.join()


def _watch(folder: Path, pulse: Pulse, rank: int, world_size: int, stop: threading.Event) -> None:
    seen = dict.fromkeys(range(world_size), _Seen("", time.monotonic(), time.monotonic()))
    while True:
        _write(folder / ".alive" / str(rank), pulse)
        seen = {r: _look(folder / ".alive" / str(r), old) for r, old in seen.items()}
        if stop.wait(BEAT):  # this process has ended, well or badly: the others notice in their own collectives
            _write(folder / ".alive" / str(rank), pulse, ended=True)
            return
        if problem := _problem(seen, pulse):
            _leave(folder, problem, pulse.step)


def _write(path: Path, pulse: Pulse, ended: bool = False) -> None:
    doing = "ended" if ended else pulse.doing
    with contextlib.suppress(OSError):  # a full disk is no dead process: the old beat then looks old to the others
        beat = [pulse.step, doing, pulse.count, pulse.longest, time.monotonic()]
        with replacing(path) as file:
            file.write(json.dumps(beat).encode("ascii"))


def _look(path: Path, old: _Seen) -> _Seen:
    now = time.monotonic()
    try:
        text = path.read_text(encoding="ascii")
        parsed = json.loads(text)
    except (OSError, ValueError):
        return old
    if text == old.text:
        return old
    moved = not old.text or json.loads(old.text)[:3] != parsed[:3]
    return _Seen(text, now, now if moved else old.moved_at)


def _problem(seen: dict[int, _Seen], pulse: Pulse) -> str | None:
    """Describe what is wrong with the job; None where nothing is."""
    now = time.monotonic()
    beats: dict[int, list[Any]] = {
        r: json.loads(s.text) if s.text else [pulse.step, "starting", 0, 0.0] for r, s in seen.items()
    }
    running = [r for r, beat in beats.items() if beat[1] != "ended"]
    for r in running:
        if now - seen[r].beat_at > SILENCE:
            return f"Process {r} gives no sign of life since step {beats[r][0]} ({beats[r][1]}): it is dead or stopped."
    limit = max(STANDSTILL, 10 * max(beat[3] for beat in beats.values()))
    if any(beats[r][1] != "training" for r in running):
        limit = PAUSE
    if running and all(now - seen[r].moved_at > limit for r in running):
        where = ", ".join(f"process {r}: step {beats[r][0]} ({beats[r][1]})" for r in running)
        return f"No process has finished a step for {limit:.0f} s, so one of them hangs. Last seen: {where}."
    return None


def _leave(folder: Path, problem: str, step: int) -> None:
    with contextlib.suppress(OSError):
        write_status(folder, "failed", step, problem, DEAD_PROCESS)
    console.note(f"nolabel: {problem}\n`nolabel resume {folder}` goes on from the last checkpoint.")
    os._exit(DEAD_PROCESS)
