"""Notes on the loader: too slow, restarted, files that cannot be read."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nolabel import console, distributed
from nolabel.config import TrainConfig, known, processors
from nolabel.data.bad_files import BadFile
from nolabel.data.images import too_many_bad
from nolabel.data.loader import Batch
from nolabel.errors import DataError
from nolabel.files import append_jsonl
from nolabel.progress import say
from nolabel.training.events import optional_write, record_event
from nolabel.training.job import Job

SLOW_SHARE = 0.3
"""The loader is the limit where more of the time than this goes by waiting for images."""


SLOW_LINES = 3
"""So many log lines in a row: the first one has the start of the workers in it."""


def note_loader(job: Job, record: Mapping[str, Any], done: int) -> None:
    """Say once, and write down, that the loader is the limit and what to change."""
    if len(job.history.slow_lines) == SLOW_LINES or "decode_ms" not in record:  # said; a window of an older version
        return
    if record["data_wait"] <= SLOW_SHARE:
        job.history.slow_lines.clear()
        return
    job.history.slow_lines.append(done)
    if len(job.history.slow_lines) == SLOW_LINES and distributed.is_main():
        line = advice(job.config, record, distributed.world_size(), processors(distributed.world_size(), job.device))
        say(f"warning: {line}")
        record_event(job, "slow loader", step=done, reason=line)


def advice(config: TrainConfig[Any], record: Mapping[str, Any], world_size: int, cpus: int) -> str:
    """What to change where the loader is the limit; `cpus` are those of one process."""
    workers, decode, crop = known(config.workers), record["decode_ms"], record["crop_ms"]
    # So many prepare a batch while a step runs.
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
    """Say and write down what happened to the processes that prepare images."""
    for note in notes:
        console.note(f"warning: {note}")
        if distributed.is_main():
            record_event(job, "restart", step=done, reason=note)


def note_bad_files(job: Job, bad: Sequence[Sequence[BadFile]], done: int) -> None:
    """Write down files that are bad and were not known yet. DataError when more than 5 % of the files seen are."""
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
