"""The run folder: its files, and how they are read and written. It can be moved, and read without nolabel."""

import contextlib
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nolabel import marks
from nolabel.errors import StorageError, UsageError
from nolabel.files import append_jsonl, check_no_links, is_step, read_json, read_jsonl, read_yaml, write_json

WRITTEN = (
    *("config.yaml", "status.json", "metrics.jsonl", "events.jsonl", "bad_files*.jsonl", "report.html"),
    *("weights", "checkpoints", "capture", "eval", "pictures", "tensorboard", ".lock", ".alive", marks.MARK),
)
"""Patterns of the names that nolabel writes in a run folder."""


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
        """The resolved settings, as they are in config.yaml."""
        return read_yaml(self.path / "config.yaml")

    def status(self) -> dict[str, Any]:
        """State ("running", "stopped", "failed", "done"), step and reason."""
        return {"state": "created", "step": 0} | (read_json(self.path / "status.json") or {})

    def metrics(self) -> list[dict[str, Any]]:
        """One record per log step: numbers by their names, None where one was not finite. Other values are left out."""
        lines = read_jsonl(self.path / "metrics.jsonl")
        return [{k: v for k, v in r.items() if _is_metric(v)} for r in lines if is_step(r.get("step"))]

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
        return {f.stem: result for f in files if (result := read_json(f)) is not None}

    def backbone(self) -> Any:
        """The trained backbone of `RUN/weights`, an `nn.Module` giving Features."""
        from nolabel.weights.load import load_weights  # torch is slow to import; reading a run doesn't need it

        return load_weights(self.path).backbone


def _is_metric(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**53
    return value is None or isinstance(value, float)


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
    """Replace status.json; the last health of the run stays where no newer one is given."""
    status = {"state": state, "step": step, "reason": reason, "pid": os.getpid(), "heartbeat": time.time()}
    status["host"] = platform.node()
    health = health or Run(run).status().get("health")
    status |= {} if exit_code is None else {"exit_code": exit_code}
    write_json(run / "status.json", status | ({} if health is None else {"health": health}))


def check_apart(out: Path, inputs: Mapping[str, str | None]) -> None:
    """Raise UsageError where one of `inputs` (label to path) is `out` or inside it, also through a link."""
    for what, path in inputs.items():
        if path and _is_inside(path, out):
            raise UsageError(
                f"{what} {path} is in --out {out}, which will hold the new run alone.\nChoose another --out."
            )


def _is_inside(path: str, folder: Path) -> bool:
    try:
        identity = os.stat(folder)
    except OSError:  # it is not there yet
        return False
    real = Path(os.path.realpath(path))
    for place in (real, *real.parents):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(place), identity):
                return True
    return False


def check_new(path: Path, overwrite: bool) -> None:
    """Raise UsageError unless `path` is free for a new run: absent, empty, or a run that `overwrite` may replace.

    A run may be replaced where it holds nothing that nolabel has not written.
    """
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise UsageError(f"{path} exists and is no folder: choose another --out.")
    with storage(path):
        content = marks.content(path, marks.RUN_NAMES)
    if not content.strange and all(map(_BEGUN.fullmatch, content.own)):
        return
    is_run = marks.is_run(path)
    if not (is_run and overwrite):
        way = f"`nolabel resume {path}` goes on with it, " if is_run else ""
        last = "--overwrite replaces it." if is_run else "nolabel never replaces what is not a run."
        raise UsageError(f"{path} exists and is not empty: {way}another --out starts afresh, {last}")
    marks.check_strange(path, content)


_BEGUN = re.compile(rf"{re.escape(marks.MARK)}|\.lock|\.config\.yaml\..*")  # killed before it had settings


@contextlib.contextmanager
def claimed(path: Path, overwrite: bool) -> Iterator[None]:
    """Make the run folder, empty but for its mark, and hold it.

    Raises UsageError as `check_new` and `locked` do, StorageError.
    """
    check_new(path, overwrite)
    with storage(path):
        path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        check_new(path, overwrite)  # another process may have begun a run here
        with storage(path):
            own = marks.content(path, marks.RUN_NAMES).own
            mark(path)
            marks.remove(path, [name for name in own if name not in (marks.MARK, ".lock")])
        yield


def mark(path: Path) -> None:
    """Mark the folder as a run. Raises OSError."""
    marks.put_mark(path, marks.MARK)


@contextlib.contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn an OSError while reading or writing a run into a StorageError."""
    try:
        yield
    except OSError as error:
        raise _storage_error(path, error) from error


def _storage_error(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{error.filename or path} cannot be read or written ({error.strerror or error}).\n"
        "Repair the disk or the permissions, then give the same command again."
    )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the run folder. UsageError if another process does, StorageError where a link would lead out of it."""
    check_no_links(path, WRITTEN)
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        status = read_json(path / "status.json") or {}
        who = f"pid {status.get('pid')} on {status.get('host')}"
        raise UsageError(f"{path} is in use by another nolabel process ({who}).") from error
    except OSError as error:
        raise _storage_error(path, error) from error
    try:
        yield
    finally:
        lock.release()
