"""Notes on the loader: too slow, restarted, files that cannot be read."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nolabel import console, distributed
from nolabel.config import TrainConfig, processors, resolved
from nolabel.data.bad_files import BadFile, too_many_bad
from nolabel.data.loader import Batch
from nolabel.errors import DataError
from nolabel.files import append_jsonl
from nolabel.progress import report_line
from nolabel.training.events import optional_write, record_event
from nolabel.training.job import Job

SLOW_SHARE = 0.3
"""Share of the time spent waiting for images above which the loader is the limit."""


SLOW_LINES = 3
"""Slow log lines in a row before the warning; the first line of a run includes the start of the workers."""


def note_loader(job: Job, record: Mapping[str, Any], done: int) -> None:
    """Warn once, and record, that the loader is the limit and what to change."""
    if (
        len(job.history.slow_lines) == SLOW_LINES or "decode_ms" not in record
    ):  # warned already; a window of an older version
        return
    if record["data_wait"] <= SLOW_SHARE:
        job.history.slow_lines.clear()
        return
    job.history.slow_lines.append(done)
    if len(job.history.slow_lines) == SLOW_LINES and distributed.is_main():
        line = advice(job.config, record, distributed.world_size(), processors(distributed.world_size(), job.device))
        report_line(f"warning: {line}")
        record_event(job, "slow loader", step=done, reason=line)


def advice(config: TrainConfig[Any], record: Mapping[str, Any], world_size: int, cpus: int) -> str:
    """Words on what to change where the loader is the limit; `cpus` is the number of processors per process."""
    workers, decode, crop = resolved(config.workers), record["decode_ms"], record["crop_ms"]
    # This number of workers prepares a batch while a step runs.
    enough = math.ceil(config.batch_size / world_size * (decode + crop) / max(record["step_ms"], 1e-3))
    if workers < cpus:
        change = f"use --workers {min(max(enough, workers + 1), cpus)} instead of {workers}"
    elif decode > crop:
        change = f"{workers} workers fill the processors, so store smaller photos"
    else:
        change = f"{workers} workers fill the processors, so cut fewer or smaller views"
    return (
        f"The loader is the limit, {record['data_wait']:.0%} of the time goes by waiting for images "
        f"({decode:.1f} ms to read and decode one, {crop:.1f} ms for its views): {change}"
    )


def note_batch(job: Job, batch: Batch, done: int) -> None:
    """Record the files of a batch that cannot be read, and restarts of the processes that prepare images."""
    note_bad_files(job, batch.bad, done)
    note_restarts(job, batch.notes, done)


def note_restarts(job: Job, notes: Sequence[str], done: int) -> None:
    """Report and record what happened to the processes that prepare images."""
    for note in notes:
        console.note(f"warning: {note}")
        if distributed.is_main():
            record_event(job, "restart", step=done, reason=note)


def note_bad_files(job: Job, bad: Sequence[Sequence[BadFile]], done: int) -> None:
    """Record bad files that are new. DataError when more than 5 % of the files seen so far are bad."""
    for files in bad:
        job.history.bad_slots.add(files[0].name)
        for file in files:
            if file.name not in job.history.bad_files:
                job.history.bad_files[file.name] = file
                rank = "" if distributed.is_main() else f".{distributed.rank()}"
                with optional_write("bad_files.jsonl"):
                    append_jsonl(job.out / f"bad_files{rank}.jsonl", file._asdict())
    num_images = len(job.stream.images.names)
    share = num_images // distributed.world_size()
    seen = min(done * job.config.batch_size // distributed.world_size(), share)
    if too_many_bad(len(job.history.bad_slots), seen, share):
        raise DataError(
            f"{len(job.history.bad_slots)} of the first {seen} images cannot be read, more than 5 %: "
            f"see {job.out}/bad_files.jsonl.\n"
            "`nolabel check DATA` lists them all with reasons; repair or remove them and start again."
        )
