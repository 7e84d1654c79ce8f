"""Trackers: copy the metrics of a run to another tool, on a thread that follows metrics.jsonl.

Training writes its file and knows no tracker: one that raises, hangs or is slow costs the run nothing.
"""

import contextlib
import importlib.util
import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nolabel import distributed
from nolabel.errors import UsageError, nearest
from nolabel.progress import report_line

POLL = 2.0
"""Seconds between two looks at the file."""


PATIENCE = 10.0
"""Seconds that a run waits at its end for a tracker to take the last lines."""


Write = Callable[[dict[str, float], int], object]
"""Function that takes numbers by name, and their step."""


class Place(NamedTuple):
    """Position up to which a file was read: its inode, which changes when it is replaced, and the bytes."""

    inode: int
    bytes: int


def check_tracker(name: str) -> None:
    """UsageError for a name that START does not have, and where the package of that name is missing."""
    if name not in ("none", *START):
        raise UsageError(
            f"There is no tracker {name!r}.{nearest(name, START)}\nChoose one of: {', '.join(['none', *START])}."
        )
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UsageError(
            f"--tracker {name} needs the package {name}, which is not installed.\n"
            f"Install it: pip install 'nolabel[{name}]'. RUN/report.html has the same curves without it."
        )


@contextlib.contextmanager
def tracked(name: str, out: Path) -> Iterator[None]:
    """Send the lines that the main process logs within the block to the tracker."""
    if name == "none" or not distributed.is_main():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(name, out, end_of(out / "metrics.jsonl"), ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(PATIENCE)
        if thread.is_alive():
            report_line(
                f"warning: {name} has not taken all metrics after {PATIENCE:.0f} s; {out}/metrics.jsonl has them"
            )


def end_of(path: Path) -> Place:
    """The present end of a file."""
    with contextlib.suppress(FileNotFoundError):
        facts = path.stat()
        return Place(facts.st_ino, facts.st_size)
    return Place(0, 0)


def _follow(name: str, out: Path, place: Place, ended: threading.Event) -> None:
    path, last, floor = out / "metrics.jsonl", -1, -1
    try:
        with START[name](out) as write:
            over = False
            while not over:
                over = ended.wait(POLL)
                now = end_of(path)
                if now.inode != place.inode:  # a roll-back cut it: steps that are made again are not passed on again
                    place, floor = Place(now.inode, 0), last
                records, place = _lines(path, place)
                for record in records:
                    if record["step"] > floor:
                        write(_numbers(record), record["step"])
                        last = max(last, record["step"])
    except Exception as error:  # no error of foreign code ends training
        report_line(f"warning: {name} failed ({type(error).__name__}: {error}); training goes on without it")


def _lines(path: Path, place: Place) -> tuple[list[dict[str, Any]], Place]:
    """The records of all whole lines after a place, and where they end."""
    if not path.is_file():
        return [], place
    with open(path, "rb") as file:
        file.seek(place.bytes)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    records = []
    for line in whole.splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records, Place(place.inode, place.bytes + len(whole))


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    numbers = {k: v for k, v in record.items() if k != "step" and isinstance(v, (int, float))}
    return {k: float(v) for k, v in numbers.items() if math.isfinite(v)}


@contextlib.contextmanager
def _tensorboard(out: Path) -> Iterator[Write]:
    """Event files in RUN/tensorboard."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(out / "tensorboard")) as writer:

        def write(values: dict[str, float], step: int) -> None:
            for key, value in values.items():
                writer.add_scalar(key, value, step)
            writer.flush()

        yield write


START: dict[str, Callable[[Path], contextlib.AbstractContextManager[Write]]] = {"tensorboard": _tensorboard}
"""Trackers by package name. None of them sends anything to its makers unasked (docs/reference/run-folder.md)."""
