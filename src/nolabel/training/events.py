"""Events and status of a run in its folder: how it began, what happened, how it ended."""

import contextlib
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import timm
import torch

from nolabel import distributed
from nolabel.config import differences
from nolabel.config.load import load_recipe
from nolabel.errors import NolabelError, StorageError
from nolabel.progress import report_line
from nolabel.report import report
from nolabel.runs import folder
from nolabel.training.interrupts import Stopped
from nolabel.training.job import Job
from nolabel.version import __version__


def record_event(job: Job, name: str, **fields: Any) -> None:
    """Append to events.jsonl. If that fails, warn and keep training."""
    with optional_write("events.jsonl"):
        folder.append_event(job.out, name, **fields)


@contextlib.contextmanager
def optional_write(what: str) -> Iterator[None]:
    """Turn a failed write of an optional file into a warning."""
    try:
        yield
    except (OSError, StorageError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        report_line(f"warning: {what} could not be written ({why}); training goes on")


@contextlib.contextmanager
def recording(job: Job, first_step: int, changes: Sequence[str] = ()) -> Iterator[None]:
    """Record in events.jsonl and status.json how the block, the loop, began and how it ended, also after an error.

    `changes` are the lines of `check_changes`, for a resumed run with other settings.
    """
    if not distributed.is_main():
        yield
        return
    config = job.config
    places: dict[str, Any] = {
        "data": config.data,
        "subfolder": config.subfolder,
        "out": config.out,
        "labels": config.labels,
    }
    start: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "changed": differences(config, replace(load_recipe(config.recipe), **places)) if config.recipe else {},
        "versions": versions(),
        "host": platform.node(),
        "system": _system(job),
    }
    for line in changes:
        report_line(f"changed: {line}")
    start |= {"changed_on_resume": list(changes)} if changes else {}
    folder.append_event(job.out, "start", step=first_step, **start)
    folder.write_status(job.out, "running", first_step)
    try:
        yield
    except BaseException as error:
        state = "stopped" if isinstance(error, (Stopped, KeyboardInterrupt)) else "failed"
        code = error.code if isinstance(error, NolabelError) else 1
        step = folder.Run(job.out).status()["step"]
        with contextlib.suppress(OSError, StorageError):  # a full disk must not hide the error itself
            folder.append_event(job.out, state, step=step, reason=str(error))
            folder.write_status(job.out, state, step, str(error), code)
            report(folder.Run(job.out))
        raise
    folder.append_event(job.out, "done", step=job.total_steps)
    folder.write_status(job.out, "done", job.total_steps, exit_code=0)
    with optional_write("report.html"):
        report(folder.Run(job.out))


def _system(job: Job) -> dict[str, str | int]:
    device = torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else platform.processor() or "cpu"
    return {"platform": platform.platform(), "device": device, "threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    return {
        "nolabel": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }
