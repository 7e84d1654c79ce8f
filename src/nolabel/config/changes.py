"""Which settings may change when a run is resumed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from nolabel.config.describe import mark_of
from nolabel.config.schema import TrainConfig
from nolabel.config.text import differences
from nolabel.errors import UsageError
from nolabel.settings import Change

SCHEDULES = ("epochs", "steps", "stretch")


class Difference(NamedTuple):
    """One setting that a resumed run is to have otherwise."""

    name: str
    before: Any
    after: Any


def changes(before: TrainConfig[Any], after: TrainConfig[Any]) -> list[Difference]:
    """What differs, by dotted name."""
    old, new = differences(after, before), differences(before, after)
    return [Difference(name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())]


def class_of(name: str, config: TrainConfig[Any]) -> Change:
    """Whether the setting of that dotted name may change on resume."""
    group, _, field = name.rpartition(".")
    return mark_of(getattr(config, group) if group else config, field).change


def check_changes(before: TrainConfig[Any], after: TrainConfig[Any], allowed: bool) -> list[str]:
    """A line for each change. UsageError for one that is refused, or that is not safe and not `allowed`."""
    found = changes(before, after)
    lines = [f"{c.name}: {c.before} -> {c.after}" for c in found]
    by_class = {kind: [c.name for c in found if class_of(c.name, before) == kind] for kind in ("allow", "refused")}
    if by_class["refused"]:
        raise UsageError(
            f"A run cannot be resumed with another {_list(by_class['refused'])}: the saved state does not fit it.\n"
            f"Start a new run: nolabel train --config {before.out}/config.yaml --out OTHER ..."
        )
    if by_class["allow"] and not allowed:
        raise UsageError(
            f"Another {_list(by_class['allow'])} gives another run from here on.\n"
            f"{'; '.join(lines[:4])}\nAdd --allow-change if that is what you want; events.jsonl will say so."
        )
    if any(c.name in SCHEDULES for c in found):
        lines.append("The schedules follow the new length from here on: learning rate and momentum jump to it.")
    return lines


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
