"""The run folder: what lies in it and how it is read and written. Movable, readable without nolabel."""

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from nolabel.errors import UsageError


class Run:
    """A run folder, finished or not. Reading tolerates a torn last line."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "config.yaml").is_file():
            raise UsageError(
                f"{self.path} is no run: it holds no config.yaml.\n"
                "A run folder is what `nolabel train RECIPE DATA --out RUN` has made."
            )

    def config(self) -> dict[str, Any]:
        """The resolved settings, as they stand in config.yaml."""
        with open(self.path / "config.yaml", encoding="utf-8") as file:
            loaded: dict[str, Any] = yaml.safe_load(file)
        return loaded

    def status(self) -> dict[str, Any]:
        """State ("running", "stopped", "failed", "done"), step and reason."""
        path = self.path / "status.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"state": "created", "step": 0}

    def metrics(self) -> list[dict[str, Any]]:
        """One record a log step."""
        return read_jsonl(self.path / "metrics.jsonl")

    def events(self) -> list[dict[str, Any]]:
        """Start, checkpoints, evaluations, signals, end."""
        return read_jsonl(self.path / "events.jsonl")

    def bad_files(self) -> list[dict[str, Any]]:
        """Files that were skipped: name, reason, detail, size. Further processes write files of their own."""
        records = [r for path in sorted(self.path.glob("bad_files*.jsonl")) for r in read_jsonl(path)]
        return list({r["name"]: r for r in records}.values())

    def eval_results(self) -> dict[str, dict[str, Any]]:
        """Results of evaluations by file name without suffix."""
        files = sorted((self.path / "eval").glob("*.json"))
        return {f.stem: json.loads(f.read_text(encoding="utf-8")) for f in files if not f.stem.endswith(".time")}

    def backbone(self) -> Any:
        """The trained backbone of `RUN/weights`, an `nn.Module` giving Features."""
        from nolabel.weights import load_weights  # torch is slow to import; reading a run doesn't need it

        return load_weights(self.path).backbone


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a torn last line is left out, a missing file is empty."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line. NaN and infinity, which browsers refuse, become null."""
    line = json.dumps(_finite(record), ensure_ascii=True, allow_nan=False)
    with open(path, "a", encoding="ascii") as file:
        file.write(line + "\n")


def append_event(run: Path, event: str, **fields: Any) -> None:
    """Add a line to events.jsonl with the time in UTC."""
    append_jsonl(
        run / "events.jsonl",
        {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event} | fields,
    )


def cut_jsonl(path: Path, last_step: int) -> None:
    """Drop the records after `last_step`, and a torn last line: what a resumed run is about to write again."""
    if not path.is_file():
        return
    kept = [r for r in read_jsonl(path) if r.get("step", 0) <= last_step]
    write_text(path, "".join(json.dumps(r) + "\n" for r in kept))


def write_json(path: Path, value: Any) -> None:
    """Write JSON, replacing the file in one step."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, replacing it in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


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
        raise UsageError(f"{path} is in use by another nolabel process (pid {status.get('pid')}).") from error
    try:
        yield
    finally:
        lock.release()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
