"""The log line: means over the steps since the last one."""

from collections.abc import Sequence
from typing import Any

import torch

from nolabel import distributed, files
from nolabel.errors import NumericError
from nolabel.training.events import optional_write
from nolabel.training.feeding import note_loader
from nolabel.training.job import Job, Record
from nolabel.training.monitor import Monitor, judge_health


class Collapsed(NumericError):
    """The health monitor gave an alarm, and the settings ask to stop then."""


def log(job: Job, watch: Monitor | None, window: Sequence[Record], done: int) -> dict[str, Any]:
    """Write the means over the good steps since the last log line to metrics.jsonl and return them.

    `watch` is the monitor of the main process, None in the others. `window` are the records of the steps.
    Raises Collapsed where the health monitor gives an alarm and the settings ask to stop.
    """
    names = list(window[0])
    table = torch.tensor([[float(record[name]) for name in names] for record in window], dtype=torch.float64)
    ok = table[:, names.index("ok")] > 0
    table = table[ok] if ok.any() else table
    means = distributed.all_mean(
        table.mean(0).to(torch.float32 if job.device.type == "mps" else torch.float64).to(job.device)
    )
    record: dict[str, Any] = dict(zip(names, means.tolist(), strict=True))
    seconds, waited = record.pop("seconds") or 1e-9, record.pop("waited") or 0.0
    del record["ok"]
    record |= {"skipped": len(window) - int(ok.sum())} if not ok.all() else {}
    record |= {"img_per_s": job.config.batch_size / seconds, "data_wait": waited / seconds}
    record |= {"step_ms": 1000 * (seconds - waited)}
    note_loader(job, record, done)
    record |= {"weight_norm": _weight_norm(job)}
    words = ""
    if watch is not None:
        line = {"step": done, "epoch": done / job.steps_per_epoch, **record}
        watch.history.append(line)
        with optional_write("metrics.jsonl or status.json"):
            files.append_jsonl(job.out / "metrics.jsonl", line)
        health = judge_health(job, watch)
        words = health.words if health.alarm else ""
        record |= {"health": health.kind}
    if job.config.stop_on_collapse and distributed.any_process(bool(words), job.device):
        raise Collapsed(
            f"{words or 'Process 0 has seen a collapse.'}\nStopped as asked; checkpoints/ holds the last states."
        )
    return record


@torch.no_grad()
def _weight_norm(job: Job) -> float:
    norms = torch._foreach_norm([p for p in job.method.parameters() if p.requires_grad])
    return float(torch.stack([n.float() for n in norms]).norm())
