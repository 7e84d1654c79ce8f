"""Check whether a run may go on: with these settings, and from which state."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nolabel import distributed
from nolabel.config import TrainConfig, check_changes, local_paths
from nolabel.config.load import from_mapping, with_old_defaults
from nolabel.errors import DataError, StorageError
from nolabel.progress import report_line
from nolabel.runs.checkpoint import has_traces, newest_state
from nolabel.runs.folder import Run


def last_state(folder: Path) -> dict[str, Any]:
    """The numbers of the newest checkpoint of a run; empty where there is none. Raises StorageError."""
    return newest_state(folder / "checkpoints") or {}


def processes_before(state: dict[str, Any]) -> int | None:
    """The number of processes that wrote the checkpoint of `state`; None where it has none."""
    number = state.get("world_size")
    return number if isinstance(number, int) and number > 0 else None


def agreed_changes(
    run: Run, before: TrainConfig[Any], after: TrainConfig[Any], state: dict[str, Any], allowed: bool
) -> list[str]:
    """A line for each setting that changes on this resume, by an option or by an edited config.yaml.

    The comparison is with the settings in the checkpoint, or with `before`, those of config.yaml, where it holds none.
    Changes that were allowed since the last checkpoint are not asked again. UsageError as `check_changes`.
    """
    stored = state.get("settings")
    if isinstance(stored, dict):
        where = f"{run.path}/checkpoints"
        before = local_paths(from_mapping(with_old_defaults(stored) | {"out": after.out}, where))
    return check_changes(before, after, allowed, _agreed(run.events()))


def _agreed(events: Sequence[dict[str, Any]]) -> list[str]:
    """Changes on resume since the last checkpoint, which does not hold them yet."""
    lines: list[str] = []
    for event in events:
        if event.get("event") == "checkpoint":
            lines.clear()
        elif event.get("event") == "start" and isinstance(event.get("changed_on_resume"), list):
            lines += map(str, event["changed_on_resume"])
    return lines


def begin_at_zero(run: Run, damaged: Sequence[str]) -> None:
    """Clear the logs of a run that has no checkpoint, where it is certain that it never had one.

    Raises DataError where all of them are damaged, StorageError where they are gone.
    """
    anew = f"To begin again: nolabel train --config {run.path}/config.yaml --out OTHER"
    if damaged:
        more = f"; {len(damaged) - 2} more" if len(damaged) > 2 else ""
        raise DataError(
            f"No checkpoint of {run.path} is good: {'; '.join(damaged[:2])}{more}.\n"
            f"Nothing was changed. Put a good copy back, then resume. {anew}"
        )
    if saved := _saved_before(run):
        raise StorageError(
            f"{run.path} {saved}, and {run.path}/checkpoints holds no checkpoint.\n"
            f"Nothing was changed. If it was moved, or its disk is not mounted, put it back, then resume.\n{anew}"
        )
    logs = [path for path in (run.path / "metrics.jsonl", *run.path.glob("bad_files*.jsonl")) if path.exists()]
    if logs:
        report_line(
            "note: the run was stopped before its first checkpoint: it begins at step 0, and its metrics with it"
        )
    for path in logs if distributed.is_main() else ():
        path.unlink()


def _saved_before(run: Run) -> str:
    """Evidence that the run has had a checkpoint, in words; empty where it is certain that it never had one."""
    events = run.events()
    saved = [e.get("step") for e in events if e.get("event") == "checkpoint"]
    if saved:
        return f"was saved at step {saved[-1]!r:.20}"
    if has_traces(run.path / "checkpoints") or (run.path / "weights").exists():
        return "was saved before"
    steps = [record["step"] for record in run.metrics()] + [run.status()["step"]]
    reached = max((step for step in steps if isinstance(step, int)), default=0)
    if reached <= 0 or any(e.get("event") == "start" for e in events):
        return ""
    return f"has been at step {reached}, its events.jsonl does not show whether it was saved"
