"""The training loop. Read this file first.

One step, top to bottom: views of a batch of images -> loss -> gradient -> clip -> `before_step` -> optimizer ->
`after_step`. What a method is stands in `methods/base.py`; `methods/dino.py` is the example to read next.

Three properties come from the shape of the loop. Every schedule and all randomness are functions of the step, so a
resumed run repeats the uninterrupted one bit by bit. A step whose loss or gradient is not finite moves nothing that
remembers: no weight, no teacher, no center; `stability.py` says what follows. And nothing flows back: a method never
sees the loop.
"""

import contextlib
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nolabel import distributed, journal, run, saving
from nolabel import monitor as watch
from nolabel.config import (
    TrainConfig,
    check_changes,
    find_device,
    fit_processes,
    known,
    local_path,
    local_paths,
    read_yaml,
    resolve,
    shrunk,
    update,
)
from nolabel.data.images import scan
from nolabel.data.loader import Batch, batches
from nolabel.job import OLD_DEFAULTS, Job, Record, build, config_from, config_yaml, say
from nolabel.liveness import watched
from nolabel.methods import Method
from nolabel.optim import all_finite, clip_grad, set_schedules
from nolabel.progress import progress
from nolabel.schedules import Clock
from nolabel.signals import Stopped, caught
from nolabel.stability import Unstable, enough_memory, verdict
from nolabel.trackers import check_tracker, tracked
from nolabel.views import normalize, render
from nolabel.views.draw import generator

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CHECKPOINT_SECONDS = 600


def train(config: TrainConfig[Any], overwrite: bool = False) -> run.Run:
    """Train from step 0 into the new run folder `config.out`. Blocks; returns the finished run."""
    config = local_paths(config)
    check_tracker(config.tracker)
    device, out = find_device(config.device), Path(config.out)
    with distributed.process_group(device):
        images = scan(config.data, config.subfolder)
        asked, config = config, resolve(config, len(images.names), distributed.world_size(), device)
        job = build(config, images, device)
        saving.check_room(job)
        if distributed.is_main():
            run.create(out, overwrite)
            run.write_text(out / "config.yaml", config_yaml(job.config))
        for line in shrunk(asked, config):
            say(f"warning: {line}")
        with run.locked(out) if distributed.is_main() else contextlib.nullcontext(), saving.recorded(job, 0):
            _to_the_end(job, 0, [])
    return run.Run(out)


def resume(path: str | Path, changed: Mapping[str, Any] | None = None, allow_change: bool = False) -> run.Run:
    """Go on with the run at `path` from its newest checkpoint, or from step 0. A finished run is left as it is.

    `changed` are settings to change from here on, groups as mappings. Which may be, and which only with `allow_change`,
    stands in `config/changes.py`; UsageError for the others. A run that was finished goes on if it is now longer.
    """
    path = local_path(str(path))
    found = run.Run(path)
    if found.status()["state"] == "done" and not changed:
        return found
    where = found.path / "config.yaml"
    before = local_paths(config_from(OLD_DEFAULTS | read_yaml(where) | {"out": path}, str(where)))
    config = local_paths(update(before, dict(changed or {})))
    lines = check_changes(before, config, allow_change)
    check_tracker(config.tracker)
    device = find_device(config.device)
    with distributed.process_group(device):
        # A micro-batch that is asked for now is kept, also where it is that of before.
        processes = None if "micro_batch" in (changed or {}) else saving.processes_before(found.path)
        job = build(fit_processes(config, processes), scan(config.data, config.subfolder), device)
        with run.locked(found.path) if distributed.is_main() else contextlib.nullcontext():
            job, first_step, window = saving.restore(job, allow_change=allow_change)
            killed_at_the_end = first_step == job.total_steps and found.status()["state"] != "done"
            if first_step >= job.total_steps and not killed_at_the_end:
                return found
            if lines and distributed.is_main():
                run.write_text(where, config_yaml(config))
            with saving.recorded(job, first_step, lines):
                if killed_at_the_end:  # after the last checkpoint: the weights may be older than it
                    saving.checkpoint(job, first_step, window)
                else:
                    _to_the_end(job, first_step, window)
    return found


def replay(path: str | Path) -> Record:
    """Repeat the step for which the run at `path` was stopped as not finite, from RUN/capture; gives its values."""
    found = run.Run(path)
    config = config_from(OLD_DEFAULTS | found.config() | {"out": str(path)}, str(found.path / "config.yaml"))
    device = find_device(config.device)
    job = build(config, scan(config.data, config.subfolder), device)
    job, step, _ = saving.restore(job, "capture")
    batch = next(batches(job.stream, range(step, step + 1), 0))
    return training_step(job, on_device(job, batch), job.clock(step))


def _to_the_end(job: Job, first_step: int, window: list[Record]) -> None:
    """The loop, once more from the last checkpoint where `stability.verdict` asks for it."""
    with tracked(job.config.tracker, job.out):
        while True:
            try:
                return loop(job, first_step, window)
            except Unstable as error:
                if verdict(job.bad_steps, error.step, job.rollbacks) != "roll back" or not saving.has_checkpoint(job):
                    saving.capture(job, error.step)
                    raise
                job, first_step, window = saving.roll_back(job, error)


def loop(job: Job, first_step: int, window: list[Record]) -> None:
    """All steps from `first_step` on, with what is looked at and written between them."""
    config, main = job.config, distributed.is_main()
    steps = range(first_step, job.total_steps)
    with (
        watched(job.out, first_step) as pulse,
        progress(first_step, job.total_steps, main) as show,
        caught() as signal_number,
    ):
        pulse.beat(first_step, "evaluating")
        images = watch.monitor(job) if main else None
        if images and first_step == 0:
            watch.look(job, images, 0)
        stream = batches(job.stream, steps, known(config.workers), job.device.type == "cuda")
        saved, unread = time.monotonic(), list[tuple[int, Record]]()
        for step in steps:
            pulse.beat(step)
            started = time.monotonic()
            batch = next(stream)
            waited = time.monotonic() - started
            with enough_memory(config, step):
                values = training_step(job, on_device(job, batch), job.clock(step))
            loading = {"waited": waited, "decode_ms": batch.decode_ms, "crop_ms": batch.crop_ms}
            window.append({**values, "seconds": time.monotonic() - started, **loading})
            unread.append((step, values))

            done = step + 1
            last, log = done == job.total_steps, done % known(config.log_every) == 0
            due = last or done % known(config.checkpoint_every) == 0
            journal.note_bad_files(job, batch.bad, done)
            journal.note_restarts(job, batch.notes, done)
            # Reading `ok` on the host waits for the device: each step on a CPU, else where the host waits anyway.
            if job.device.type == "cpu" or log or due:
                journal.judge(job, unread)
                unread = []
                window[-1]["seconds"] = time.monotonic() - started  # with what the device took
            if log or last:
                show(done, journal.log(job, images, window, done))
                window = []
            if last or done % known(config.eval_every) == 0:
                pulse.beat(done, "evaluating")
                if images and (seen := watch.look(job, images, done)):
                    show(done, seen)
            # Processes agree on stopping at log steps; asking at every step would cost a synchronisation.
            number = signal_number() if log or not distributed.active() else 0
            stop = distributed.any_process(number != 0, job.device) if log else number != 0
            late = not distributed.active() and time.monotonic() - saved > CHECKPOINT_SECONDS
            if due or stop or late:
                pulse.beat(done, "saving")
                journal.judge(job, unread)  # no state is saved of which nobody knows whether it is good
                unread = []
                saving.checkpoint(job, done, window)
                saved = time.monotonic()
            if stop and not last:
                raise Stopped(number or signal.SIGTERM, config.out)


def training_step(job: Job, views: Sequence[Tensor], clock: Clock) -> Record:
    """One optimizer step on normalised views (B, 3, size, size), B the share of this process. Returns what to log.

    "ok" (0-d) is 0 when the loss (in fp16: the loss, else also a gradient) is not finite; nothing has moved then.
    """
    config, method, optim = job.config, job.method, job.optimizer
    torch.manual_seed(int(generator(config.seed, clock.step, distributed.rank()).integers(2**62)))
    scheduled = set_schedules(optim, config.optim, config.batch_size, clock)
    statistics = _running_statistics(method)
    before = [_joined(group) for group in statistics]
    optim.zero_grad(set_to_none=True)

    metrics = _forward_backward(job, views, clock)
    if job.scaler.is_enabled():
        job.scaler.unscale_(optim)
    grad_norm = clip_grad(method.named_parameters(), config.optim.clip_grad, config.optim.clip == "joint", method.free)
    ok = all_finite(metrics["loss"], grad_norm)
    method.before_step(clock)
    optim.found_inf = 1 - ok  # type: ignore[attr-defined]  # the fused optimizers skip the step on the device
    optim.step()
    for group, values in zip(statistics, before, strict=True):  # they have moved in the forward pass: put them back
        kept = torch.where(ok.bool(), _joined(group), values)
        torch._foreach_copy_(group, _apart(kept, group))
    method.after_step(clock, ok)
    if job.scaler.is_enabled():
        job.scaler.update()
        ok = all_finite(metrics["loss"])  # an infinite scaled gradient is fp16's ordinary way to find its scale
    return {"ok": ok, **metrics, "grad_norm": grad_norm, **scheduled, **method.settings(clock)}


def _running_statistics(method: Method) -> list[list[Tensor]]:
    """What a forward pass moves: the buffers of BatchNorm, by dtype. All else that remembers waits for `after_step`."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for norm in (m for m in method.modules() if hasattr(m, "running_mean")):
        for buffer in norm.buffers(recurse=False):
            groups.setdefault(buffer.dtype, []).append(buffer)
    return list(groups.values())


def _joined(tensors: list[Tensor]) -> Tensor:
    """A copy of all in one row: few large operations where one by one would be hundreds of small ones."""
    return torch.cat([t.flatten() for t in tensors])


def _apart(row: Tensor, like: list[Tensor]) -> list[Tensor]:
    """The inverse of `_joined`."""
    pieces = torch.split(row, [t.numel() for t in like])
    return [piece.view_as(t) for piece, t in zip(pieces, like, strict=True)]


def _forward_backward(job: Job, views: Sequence[Tensor], clock: Clock) -> dict[str, Tensor]:
    """Mean metrics and accumulated gradients over the micro-batches of the step."""
    pieces = [torch.split(v, known(job.config.micro_batch)) for v in views]
    number = len(pieces[0])
    dtype = DTYPES[job.config.precision]
    total: dict[str, Tensor] = {}
    for i in range(number):
        wait = isinstance(job.model, DistributedDataParallel) and i < number - 1
        with job.model.no_sync() if wait else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(job.device.type, dtype, enabled=dtype != torch.float32):
                metrics = job.model([p[i] for p in pieces], clock)
            job.scaler.scale(metrics["loss"] / number).backward()
        for name, value in metrics.items():
            total[name] = total.get(name, 0) + value.detach() / number
    return total


def on_device(job: Job, batch: Batch) -> list[Tensor]:
    """The normalised views (B, 3, size, size) of a batch on the device of the run."""
    mean, std = job.config.mean, job.config.std
    if batch.sources:
        return render(batch.sources, job.stream.views, job.device, mean, std)
    return [normalize(v.to(job.device, non_blocking=True), mean, std) for v in batch.views]
