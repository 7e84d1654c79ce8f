"""Which settings may change when a run is resumed."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from nolabel.config.files import differences
from nolabel.config.schema import TrainConfig
from nolabel.errors import UsageError

Class = Literal["safe", "allow", "refused"]

CLASSES: dict[str, Class] = {
    # What the numbers don't depend on, or what is checked in another way (the images, by their fingerprint).
    **dict.fromkeys(("data", "subfolder", "out", "labels", "device", "workers"), "safe"),
    **dict.fromkeys(("keep_less", "grad_checkpointing", "tracker"), "safe"),
    **dict.fromkeys(
        ("log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "epochs", "steps", "stop_on_collapse"),
        "safe",
    ),
    # What gives another run from here on.
    **dict.fromkeys(("stretch", "micro_batch", "precision", "threads", "compile"), "allow"),
    **dict.fromkeys(("full_decode", "augment", "view_engine"), "allow"),
    **dict.fromkeys(("lr", "start_lr", "min_lr", "warmup_epochs", "lr_by_epoch"), "allow"),
    **dict.fromkeys(("weight_decay", "weight_decay_end", "clip_grad", "clip", "sgd_momentum"), "allow"),
    # What the state does not fit, or what would make the past of the run untrue.
    **dict.fromkeys(("recipe", "backbone", "backbone_args", "batch_size", "seed", "mean", "std"), "refused"),
    **dict.fromkeys(("name", "decay_all"), "refused"),
}
"""Of the fields of TrainConfig and OptimConfig; methods have their own in `MethodConfig.changeable`."""

SCHEDULES = ("epochs", "steps", "stretch")


class Change(NamedTuple):
    """One setting that a resumed run is to have otherwise."""

    name: str
    before: Any
    after: Any


def changes(before: TrainConfig[Any], after: TrainConfig[Any]) -> list[Change]:
    """What differs, by dotted name."""
    old, new = differences(after, before), differences(before, after)
    return [Change(name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())]


def class_of(name: str, config: TrainConfig[Any]) -> Class:
    """The class of the setting of that dotted name."""
    group, _, field = name.rpartition(".")
    if group == "method":
        return "allow" if field in config.method.changeable else "refused"
    return CLASSES[field]


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
