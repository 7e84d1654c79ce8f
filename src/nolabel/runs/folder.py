"""The run folder: what lies in it and how it is read and written. Movable, readable without nolabel."""

import contextlib
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nolabel.errors import UsageError
from nolabel.files import append_jsonl, is_step, read_json, read_jsonl, read_yaml, write_json


class Run:
    """A run folder, finished or not. Lines and files of it that are torn or damaged are passed over."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "config.yaml").is_file():
            raise UsageError(
                f"{self.path} is no run: it holds no config.yaml.\n"
                "A run folder is what `nolabel train RECIPE DATA --out RUN` has made."
            )

    def config(self) -> dict[str, Any]:
        """The resolved settings, as they stand in config.yaml."""
        return read_yaml(self.path / "config.yaml")

    def status(self) -> dict[str, Any]:
        """State ("running", "stopped", "failed", "done"), step and reason."""
        return {"state": "created", "step": 0} | (read_json(self.path / "status.json") or {})

    def metrics(self) -> list[dict[str, Any]]:
        """One record a log step."""
        return [r for r in read_jsonl(self.path / "metrics.jsonl") if is_step(r.get("step"))]

    def events(self) -> list[dict[str, Any]]:
        """Start, checkpoints, evaluations, signals, end."""
        return read_jsonl(self.path / "events.jsonl")

    def bad_files(self) -> list[dict[str, Any]]:
        """Files that were skipped: name, reason, detail, size. Further processes write files of their own."""
        records = [r for path in sorted(self.path.glob("bad_files*.jsonl")) for r in read_jsonl(path)]
        return list({r["name"]: r for r in records if isinstance(r.get("name"), str)}.values())

    def eval_results(self) -> dict[str, dict[str, Any]]:
        """Results of evaluations by file name without suffix."""
        files = [f for f in sorted((self.path / "eval").glob("*.json")) if not f.stem.endswith(".time")]
        return {f.stem: found for f in files if (found := read_json(f)) is not None}

    def backbone(self) -> Any:
        """The trained backbone of `RUN/weights`, an `nn.Module` giving Features."""
        from nolabel.weights.load import load_weights  # torch is slow to import; reading a run doesn't need it

        return load_weights(self.path).backbone


def append_event(run: Path, event: str, **fields: Any) -> None:
    """Add a line to events.jsonl with the time in UTC."""
    append_jsonl(
        run / "events.jsonl",
        {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event} | fields,
    )


def write_status(
    run: Path,
    state: str,
    step: int,
    reason: str = "",
    exit_code: int | None = None,
    health: Mapping[str, str] | None = None,
) -> None:
    """Replace status.json; what is known of the run's health stays where nothing newer is given."""
    status = {"state": state, "step": step, "reason": reason, "pid": os.getpid(), "heartbeat": time.time()}
    status["host"] = platform.node()
    health = health or Run(run).status().get("health")
    status |= {} if exit_code is None else {"exit_code": exit_code}
    write_json(run / "status.json", status | ({} if health is None else {"health": health}))


def check_new(path: Path, overwrite: bool) -> None:
    """UsageError unless `path` is free for a new run: absent, empty, or a run that `overwrite` may replace."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    is_run = (path / "config.yaml").is_file()
    if not (is_run and overwrite):
        way = f"`nolabel resume {path}` goes on with it, " if is_run else ""
        last = "--overwrite replaces it." if is_run else "nolabel never replaces what is not a run."
        raise UsageError(f"{path} exists and is not empty: {way}another --out starts afresh, {last}")


def create(path: Path, overwrite: bool) -> None:
    """Make the run folder, empty. UsageError as `check_new`, or if another process holds it."""
    check_new(path, overwrite)
    if path.exists() and any(path.iterdir()):
        with locked(path):
            shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the run folder; UsageError if another process does."""
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        status = Run(path).status()
        who = f"pid {status.get('pid')} on {status.get('host')}"
        raise UsageError(f"{path} is in use by another nolabel process ({who}).") from error
    try:
        yield
    finally:
        lock.release()
