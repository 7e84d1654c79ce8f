"""What the loop writes down between steps: metrics, steps that were skipped, files that cannot be read."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nolabel import distributed, run, saving
from nolabel.config import TrainConfig, known, processors
from nolabel.data.images import BadFile, too_many_bad
from nolabel.errors import DataError, NumericError
from nolabel.job import Job, Record, say
from nolabel.monitor import Monitor
from nolabel.monitor import judge as judge_health
from nolabel.stability import SMALLEST_SCALE, SPIKE_STEPS, SPIKE_WINDOW, Unstable, facts, spike, verdict

SLOW_SHARE = 0.3
"""The loader is the limit where more of the time than this goes by waiting for images."""
SLOW_LINES = 3
"""So many log lines in a row: the first one has the start of the workers in it."""


class Collapsed(NumericError):
    """The health monitor gave an alarm, and the run was to stop then."""


def judge(job: Job, steps: Sequence[tuple[int, Record]]) -> None:
    """Look at steps that nobody has looked at yet. Raises Unstable where too many were not finite."""
    if not steps:
        return
    ok = torch.stack([torch.as_tensor(values["ok"]) for _, values in steps]).tolist()
    for (step, values), fine in zip(steps, ok, strict=True):
        if fine:
            _note_spike(job, step, float(values["loss"]))
            continue
        job.bad_steps.append(step)
        bad = [n for n, p in job.method.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        message = facts(values, bad, step, job.config.precision)
        if distributed.is_main():
            saving.event(job, "skipped", step=step, reason=message)
        if verdict(job.bad_steps, step, job.rollbacks) != "go on":
            raise Unstable(step, message)
    if job.scaler.is_enabled() and job.scaler.get_scale() < SMALLEST_SCALE:
        raise Unstable(
            steps[-1][0],
            f"The loss scale of fp16 has fallen to {job.scaler.get_scale():.2g} at step {steps[-1][0]}: "
            "every scaled gradient is infinite.\nUse --precision bf16 or fp32, or a lower --optim.lr.",
        )


def _note_spike(job: Job, step: int, loss: float) -> None:
    """Say that the loss has jumped up and stays there, and keep the checkpoint before."""
    job.losses.append(loss)
    del job.losses[: -SPIKE_WINDOW - SPIKE_STEPS]
    found = spike(job.losses)
    if found is None:
        return
    job.losses.clear()  # what comes next is compared with the new level
    first = step + 1 - SPIKE_STEPS
    kept = saving.keep_before(job, first)
    line = f"The loss jumped from {found[0]:.4g} to {found[1]:.4g} at step {first}. "
    line += f"The state before is kept in {kept}" if kept else "There is no checkpoint from before"
    say(f"warning: {line}; if it does not come down, lower --optim.lr or --optim.clip-grad.")
    if distributed.is_main():
        saving.event(job, "spike", step=first, reason=line)


def log(job: Job, images: Monitor | None, window: Sequence[Record], done: int) -> dict[str, Any]:
    """Write the means over the good steps since the last log line to metrics.jsonl and give them back.

    Raises Collapsed where the health monitor gives an alarm and the settings say to stop.
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
    if images is not None:
        line = {"step": done, "epoch": done / job.steps_per_epoch, **record}
        health = judge_health(job, images, line)
        words = health.words if health.alarm else ""
        with saving.tolerant("metrics.jsonl or status.json"):
            run.append_jsonl(job.out / "metrics.jsonl", line)
            run.write_status(job.out, "running", done, health=health._asdict())
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


def note_loader(job: Job, record: Mapping[str, Any], done: int) -> None:
    """Say once, and write down, that the loader is the limit and what to change."""
    if len(job.slow_lines) == SLOW_LINES or "decode_ms" not in record:  # said; a window of an older version
        return
    if record["data_wait"] <= SLOW_SHARE:
        job.slow_lines.clear()
        return
    job.slow_lines.append(done)
    if len(job.slow_lines) == SLOW_LINES and distributed.is_main():
        line = advice(job.config, record, distributed.world_size(), processors(distributed.world_size(), job.device))
        say(f"warning: {line}")
        saving.event(job, "slow loader", step=done, reason=line)


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


def note_restarts(job: Job, notes: Sequence[str], done: int) -> None:
    """Say and write down what happened to the processes that prepare images."""
    for note in notes:
        print(f"warning: {note}", file=sys.stderr, flush=True)
        if distributed.is_main():
            saving.event(job, "restart", step=done, reason=note)


def note_bad_files(job: Job, bad: Sequence[Sequence[BadFile]], done: int) -> None:
    """Write down files that are bad and were not known yet. DataError when more than 5 % of the files seen are."""
    for files in bad:
        job.bad_slots.add(files[0].name)
        for file in files:
            if file.name not in job.bad:
                job.bad[file.name] = file
                rank = "" if distributed.is_main() else f".{distributed.rank()}"
                with saving.tolerant("bad_files.jsonl"):
                    run.append_jsonl(job.out / f"bad_files{rank}.jsonl", file._asdict())
    num_images = len(job.stream.images.names)
    share = num_images // distributed.world_size()
    seen = min(done * job.config.batch_size // distributed.world_size(), share)
    if too_many_bad(len(job.bad_slots), seen, share):
        raise DataError(
            f"{len(job.bad_slots)} of the first {seen} images cannot be read, more than 5 %: "
            f"see {job.out}/bad_files.jsonl.\n"
            "`nolabel check DATA` lists them all with reasons; repair or remove them and start again."
        )
