"""The live line of a run on stderr, and messages from its main process."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nolabel import distributed
from nolabel.console import live, note
from nolabel.health.signals import SIGNALS

Report = Callable[[int, Mapping[str, Any]], None]


@contextlib.contextmanager
def progress(first_step: int, total_steps: int, show: bool = True) -> Iterator[Report]:
    """Give a function `report(step, metrics)` to call at log steps."""
    console = Console(file=live())  # type: ignore[arg-type]  # rich only writes and flushes
    if not show:
        yield lambda step, metrics: None
    elif console.is_terminal:
        columns = (
            BarColumn(24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("starting", total=total_steps, completed=first_step)
            yield lambda step, metrics: bar.update(task, completed=step, description=summary(metrics))
    else:
        yield _plain_lines(first_step, total_steps)


def summary(metrics: Mapping[str, Any]) -> str:
    """The numbers people watch, in one short line; empty where there are none."""
    parts = [
        signal.live.format(metrics[name] * signal.scale)
        for signal in SIGNALS
        if signal.live
        for name in signal.names
        if metrics.get(name) is not None
    ]
    if metrics.get("health"):
        parts.append(f"health: {metrics['health']}")
    return " | ".join(parts)


def _plain_lines(first_step: int, total_steps: int, interval: float = 10.0) -> Report:
    start = last = time.monotonic()

    def report(step: int, metrics: Mapping[str, Any]) -> None:
        nonlocal last
        now = time.monotonic()
        text = summary(metrics)
        if not text or (now - last < interval and step < total_steps and "knn" not in metrics):
            return
        last = now
        left = (now - start) / max(step - first_step, 1) * (total_steps - step)
        note(f"step {step}/{total_steps} | {text} | {duration(left)} left")

    return report


def duration(seconds: float) -> str:
    """`1:02:03` for people."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


def report_line(line: str) -> None:
    """Write a line to stderr, from the main process alone."""
    if distributed.is_main():
        note(line)
