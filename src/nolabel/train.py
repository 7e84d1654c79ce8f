"""The training loop. Read this file first.

One step, top to bottom: views of a batch of images -> loss -> gradient -> clip -> `before_step` -> optimizer ->
`after_step`. What a method is stands in `methods/base.py`; `methods/dino.py` is the example to read next.

Three properties come from the shape of the loop. Every schedule and all randomness are functions of the step, so a
resumed run repeats the uninterrupted one bit by bit. A step whose loss or gradient is not finite moves nothing that
remembers: no weight, no teacher, no center. And nothing flows back: a method never sees the loop.
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

from nolabel import distributed, run, saving
from nolabel import monitor as watch
from nolabel.config import TrainConfig, find_device, known, read_yaml, resolve, shrunk
from nolabel.data.images import BadFile, scan, too_many_bad
from nolabel.data.loader import batches
from nolabel.errors import DataError, NumericError
from nolabel.job import Job, Record, build, config_from, config_yaml, say
from nolabel.optim import all_finite, clip_grad, set_schedules
from nolabel.progress import progress
from nolabel.report import report
from nolabel.schedules import Clock
from nolabel.signals import Stopped, caught
from nolabel.views import normalize
from nolabel.views.draw import generator

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CHECKPOINT_SECONDS = 600


def train(config: TrainConfig[Any], overwrite: bool = False) -> run.Run:
    """Train from step 0 into the new run folder `config.out`. Blocks; returns the finished run."""
    device, out = find_device(config.device), Path(config.out)
    with distributed.process_group(device):
        images = scan(config.data, config.subfolder)
        asked, config = config, resolve(config, len(images.names), distributed.world_size(), device)
        job = build(config, images, device)
        if distributed.is_main():
            run.create(out, overwrite)
            run.write_text(out / "config.yaml", config_yaml(config))
        for line in shrunk(asked, config):
            say(f"warning: {line}")
        with run.locked(out) if distributed.is_main() else contextlib.nullcontext(), saving.recorded(job, 0):
            loop(job, 0, [])
    return run.Run(out)


def resume(path: str | Path) -> run.Run:
    """Go on with the run at `path` from its newest checkpoint, or from step 0. A finished run is left as it is."""
    found = run.Run(path)
    if found.status()["state"] == "done":
        return found
    values = read_yaml(found.path / "config.yaml") | {"out": str(path)}
    config = config_from(values, str(found.path / "config.yaml"))
    device = find_device(config.device)
    with distributed.process_group(device):
        job = build(config, scan(config.data, config.subfolder), device)
        with run.locked(found.path) if distributed.is_main() else contextlib.nullcontext():
            first_step, window = saving.restore(job)
            with saving.recorded(job, first_step):
                loop(job, first_step, window)
    return found


def loop(job: Job, first_step: int, window: list[Record]) -> None:
    """All steps from `first_step` on, with what is looked at and written between them."""
    config, main = job.config, distributed.is_main()
    watched = watch.monitor(job) if main else None
    if watched and first_step == 0:
        _look(job, watched, 0)
    steps = range(first_step, job.total_steps)
    stream = batches(job.stream, steps, known(config.workers), job.device.type == "cuda")
    saved = time.monotonic()
    with progress(first_step, job.total_steps, main) as show, caught() as signal_number:
        for step in steps:
            started = time.monotonic()
            batch = next(stream)
            waited = time.monotonic() - started
            views = [normalize(v.to(job.device, non_blocking=True), config.mean, config.std) for v in batch.views]
            values = training_step(job, views, job.clock(step))
            window.append({**values, "seconds": time.monotonic() - started, "waited": waited})

            done = step + 1
            last, log = done == job.total_steps, done % known(config.log_every) == 0
            _note_bad_files(job, batch.bad, done)
            if last or log:
                show(done, _log(job, window, done))
                window = []
            if watched and (last or done % known(config.eval_every) == 0) and (seen := _look(job, watched, done)):
                show(done, seen)
            # Processes agree on stopping at log steps; asking at every step would cost a synchronisation.
            number = signal_number() if log or not distributed.active() else 0
            stop = distributed.any_process(number != 0, job.device) if log else number != 0
            late = not distributed.active() and time.monotonic() - saved > CHECKPOINT_SECONDS
            if last or stop or late or done % known(config.checkpoint_every) == 0:
                saving.checkpoint(job, done, window)
                saved = time.monotonic()
            if stop and not last:
                raise Stopped(number or signal.SIGTERM, config.out)


def training_step(job: Job, views: Sequence[Tensor], clock: Clock) -> Record:
    """One optimizer step on normalised views (B, 3, size, size), B the share of this process. Returns what to log.

    Raises NumericError when the loss (in fp16: the loss, else also a gradient) is not finite; nothing has moved then.
    """
    config, method, optim = job.config, job.method, job.optimizer
    torch.manual_seed(int(generator(config.seed, clock.step, distributed.rank()).integers(2**62)))
    scheduled = set_schedules(optim, config.optim, config.batch_size, clock)
    statistics = [(b, b.clone()) for b in method.buffers()]
    optim.zero_grad(set_to_none=True)

    metrics = _forward_backward(job, views, clock)
    if job.scaler.is_enabled():
        job.scaler.unscale_(optim)
    grad_norm = clip_grad(method.named_parameters(), config.optim.clip_grad, config.optim.clip == "joint", method.free)
    ok = all_finite(metrics["loss"], grad_norm)
    method.before_step(clock)
    optim.found_inf = 1 - ok  # type: ignore[attr-defined]  # the fused optimizers skip the step on the device
    optim.step()
    for buffer, before in statistics:  # BatchNorm statistics have moved in the forward pass: put them back
        buffer.copy_(torch.where(ok.bool(), buffer, before))
    method.after_step(clock, ok)
    if job.scaler.is_enabled():
        job.scaler.update()
        ok = all_finite(metrics["loss"])  # an infinite scaled gradient is fp16's ordinary way to find its scale
    if not ok:
        raise NumericError(_facts(job, metrics, grad_norm, clock, scheduled))
    return {**metrics, "grad_norm": grad_norm, **scheduled, **method.settings(clock)}


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


def _facts(job: Job, metrics: Mapping[str, Tensor], norm: Tensor, clock: Clock, scheduled: Mapping[str, float]) -> str:
    bad = [n for n, p in job.method.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    where = f"gradients of {len(bad)} tensors, first {bad[0]}" if bad else "no gradient"
    return (
        f"The loss or a gradient is not finite at step {clock.step}: loss {metrics['loss'].item():.4g}, gradient norm "
        f"{norm.item():.4g}, learning rate {scheduled['lr']:.3g}, {job.config.precision}; not finite: {where}.\n"
        "Nothing has moved in this step; the last checkpoint is good. "
        "Try a lower --optim.lr, --precision fp32, or --optim.clip-grad 0.3."
    )


def _log(job: Job, window: Sequence[Record], done: int) -> dict[str, float | None]:
    """Write the means since the last log line to metrics.jsonl and give them back."""
    names = list(window[0])
    table = torch.tensor([[float(record[name]) for name in names] for record in window], dtype=torch.float64)
    means = distributed.all_mean(
        table.mean(0).to(torch.float32 if job.device.type == "mps" else torch.float64).to(job.device)
    )
    record: dict[str, float | None] = dict(zip(names, means.tolist(), strict=True))
    seconds, waited = record.pop("seconds") or 1e-9, record.pop("waited") or 0.0
    record |= {"img_per_s": job.config.batch_size / seconds, "data_wait": waited / seconds}
    if distributed.is_main():
        epoch = done / job.steps_per_epoch
        run.append_jsonl(job.out / "metrics.jsonl", {"step": done, "epoch": epoch, **record})
        run.write_status(job.out, "running", done)
    return record


def _look(job: Job, watched: watch.Monitor, done: int) -> dict[str, float | None]:
    """k-NN and a picture of the network as it is now."""
    net = job.method.backbone
    watch.picture(watched, net, job.out / "eval" / "attention" / f"step-{done:08d}.webp")
    record: dict[str, float | None] = {}
    if watched.labelled is not None:
        accuracy = watch.accuracy(watched, net)
        record = {"knn": accuracy}
        if done == 0:
            record |= {"knn_untrained": accuracy, "knn_raw": watched.labelled.raw}
        run.append_jsonl(job.out / "metrics.jsonl", {"step": done, "epoch": done / job.steps_per_epoch, **record})
        run.append_event(job.out, "eval", step=done, **record)
    report(run.Run(job.out))
    return record


def _note_bad_files(job: Job, bad: Sequence[Sequence[BadFile]], done: int) -> None:
    """Write down files that are bad and were not known yet. DataError when more than 5 % of the files seen are."""
    for files in bad:
        job.bad_slots.add(files[0].name)
        for file in files:
            if file.name not in job.bad:
                job.bad[file.name] = file
                rank = "" if distributed.is_main() else f".{distributed.rank()}"
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
