"""Settings that may change when a run is resumed."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from nolabel.config.describe import mark_of
from nolabel.config.schema import TrainConfig
from nolabel.config.text import differences
from nolabel.errors import UsageError
from nolabel.settings import Change

SCHEDULES = ("epochs", "steps", "stretch")


class Difference(NamedTuple):
    """One setting that changes when a run is resumed."""

    name: str
    before: Any
    after: Any


def changes(before: TrainConfig[Any], after: TrainConfig[Any]) -> list[Difference]:
    """The settings that differ, by dotted name."""
    old, new = differences(after, before), differences(before, after)
    return [Difference(name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())]


def class_of(name: str, config: TrainConfig[Any]) -> Change:
    """Whether the setting of that dotted name may change on resume."""
    group, _, field = name.rpartition(".")
    return mark_of(getattr(config, group) if group else config, field).change


def check_changes(
    before: TrainConfig[Any], after: TrainConfig[Any], allowed: bool, agreed: Collection[str] = ()
) -> list[str]:
    """A line for each change except those in `agreed`, the lines of earlier resumes.

    UsageError for a change that is refused, or that is not safe and not `allowed`.
    """
    lines_to_names = {f"{c.name}: {c.before} -> {c.after}": c.name for c in changes(before, after)}
    by_class: dict[Change, list[str]] = {"safe": [], "allow": [], "refused": []}
    for line, name in lines_to_names.items():
        by_class[class_of(name, before)] += [line] if line not in agreed else []
    if type(before.method) is not type(after.method):
        by_class["refused"] = [f"method_name: {type(before.method).__name__} -> {type(after.method).__name__}"]
    if refused := by_class["refused"]:
        raise UsageError(
            f"A run cannot be resumed with another {_names(refused)}: the saved state does not fit it.\n"
            f"{_few(refused)}\nLeave that as it was, in config.yaml too, or start a new run: nolabel train --config "
            f"{before.out}/config.yaml --out OTHER ...\n"
            "If the newest checkpoint is that of another run, move it away: resume then uses the one before."
        )
    if by_class["allow"] and not allowed:
        raise UsageError(
            f"Another {_names(by_class['allow'])} gives another run from here on.\n"
            f"{_few(by_class['allow'])}\nAdd --allow-change if that is what you want; events.jsonl will record it."
        )
    lines = [line for line in lines_to_names if line not in agreed]
    if any(lines_to_names[line] in SCHEDULES for line in lines):
        lines.append("The schedules follow the new length from here on: learning rate and momentum jump to it.")
    return lines


def _few(lines: Sequence[str]) -> str:
    return "; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" if len(lines) > 4 else "")


def _names(lines: Sequence[str]) -> str:
    names = [line.partition(":")[0] for line in lines]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
