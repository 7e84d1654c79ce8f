"""The verdict on a run, and the series of its signals that the rules look at."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Record = Mapping[str, Any]
"""A line of metrics.jsonl."""


WINDOW = 100
"""Steps over which a signal of the outputs must stay bad."""
NO_ALARM = ("healthy", "warming up", "too short to judge", "dense head idle")


class Diagnosis(NamedTuple):
    """The verdict on a run."""

    kind: str
    """One of: healthy, warming up, too short to judge, learning nothing yet, uniform, constant, same output,
    dimensional, unused prototypes, no contrast, one location, place, dense head idle, dead data, exploding, not
    finite."""
    words: str
    """Description of the problem with numbers, and what to change; empty where all is well."""
    early: bool = False
    """True for a note that becomes an alarm if it is still so later in the run."""

    @property
    def alarm(self) -> bool:
        return self.kind not in NO_ALARM and not self.early


class Series(NamedTuple):
    """The lines of metrics.jsonl that rules look at, each part in ascending steps."""

    records: Sequence[Record]
    """All lines of the run."""
    window: Sequence[Record]
    """Log lines of the last `WINDOW` steps."""
    evaluations: Sequence[Record]
    """Evaluations since the end of the warm-up."""

    @property
    def now(self) -> int:
        """Steps done."""
        return int(self.records[-1]["step"])

    @property
    def untrained(self) -> Record | None:
        """The evaluation of the network before training, with finite features; None where it was not recorded."""
        first = (r for r in self.records if r["step"] == 0 and is_finite(r.get("effective_rank")))
        return next(first, None)


def values(records: Sequence[Record], name: str) -> list[Any]:
    """The numbers of `name` in the records that have one; metrics.jsonl has null for a number that was not finite."""
    return [r[name] for r in records if r.get(name) is not None]


def all_below(window: Sequence[Record], name: str, limit: float) -> bool:
    """Whether the signal was there and stayed below the limit in the whole window."""
    numbers = values(window, name)
    return len(numbers) > 0 and max(numbers) < limit


def mean(window: Sequence[Record], name: str) -> float:
    """The mean of the numbers under `name`; NaN for none."""
    numbers = values(window, name)
    return sum(numbers) / len(numbers) if numbers else math.nan


def is_finite(value: float | None) -> bool:
    """Whether a signal is a finite number. One that is not is NaN in the run itself and null in metrics.jsonl."""
    return value is not None and math.isfinite(value)


def entropy_name(window: Sequence[Record]) -> str:
    """The signal that holds the entropy of the outputs."""
    return "teacher_entropy" if "teacher_entropy" in window[-1] else "target_entropy"
