"""The run folder: what lies in it and how it is read and written. Movable, readable without nolabel."""

import contextlib
import json
import math
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
from nolabel.strict_yaml import read_yaml


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
        return [r for r in read_jsonl(self.path / "metrics.jsonl") if _is_step(r.get("step"))]

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
        from nolabel.weights import load_weights  # torch is slow to import; reading a run doesn't need it

        return load_weights(self.path).backbone


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a torn last line is left out, a missing file is empty."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):
        record = _mapping(line)
        if record is not None:
            records.append(record)
    return records


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None where it is missing, damaged, or holds something else."""
    return _mapping(path.read_bytes()) if path.is_file() else None


def _mapping(data: bytes) -> dict[str, Any] | None:
    """The mapping in some JSON; None for anything else."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**53


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line. NaN and infinity, which browsers refuse, become null."""
    line = json.dumps(_finite(record), ensure_ascii=True, allow_nan=False).encode("ascii")
    with open(path, "ab+") as file:
        if end := file.tell():  # a kill may have torn the last line: it takes no other with it
            file.seek(end - 1)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line + b"\n")


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
    kept = [r for r in read_jsonl(path) if _is_step(r.get("step")) and r["step"] <= last_step]
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


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
