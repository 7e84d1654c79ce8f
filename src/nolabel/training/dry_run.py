"""Measure the cost of a run: a few real steps on the real data. Nothing is written."""

import resource
import time
from typing import Any, NamedTuple

import torch

from nolabel.config import TrainConfig, find_device, resolve, resolved
from nolabel.data.images import scan
from nolabel.data.missing import check_missing
from nolabel.progress import duration
from nolabel.runs.checkpoint import MIN_KEPT
from nolabel.training.job import build
from nolabel.training.step import on_device, training_step

WARMUP_STEPS, MEASURED_STEPS = 2, 3


class Estimate(NamedTuple):
    """The size of a run on this machine."""

    num_images: int
    total_steps: int
    steps_per_epoch: int
    backbone_parameters: int
    method_parameters: int
    """Parameters that are kept in memory: student, teacher, heads."""
    seconds_per_step: float
    memory_bytes: int
    """Peak memory so far: of the device, or of this process on the CPU."""
    checkpoint_bytes: int


def estimate(config: TrainConfig[Any]) -> Estimate:
    """Build the run, take a few steps and throw it away."""
    device = find_device(config.device)
    images = scan(config.data, config.subfolder, config.keep_masks)
    check_missing(images.names, images.skipped, config.data)
    config = resolve(config, len(images.names), 1, device)
    job = build(config, images, device)
    seconds = []
    started = time.monotonic()
    for step, batch in enumerate(job.batches(range(WARMUP_STEPS + MEASURED_STEPS), resolved(config.workers))):
        training_step(job, on_device(job, batch), job.clock(step))
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - started)
        started = time.monotonic()
    cuda = device.type == "cuda"
    memory = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tensors = [*job.method.state_dict().values(), *(v for s in job.optimizer.state.values() for v in s.values())]
    return Estimate(
        num_images=len(images.names),
        total_steps=job.total_steps,
        steps_per_epoch=job.steps_per_epoch,
        backbone_parameters=sum(p.numel() for p in job.method.backbone.parameters()),
        method_parameters=sum(p.numel() for p in job.method.parameters()),
        seconds_per_step=sorted(seconds[WARMUP_STEPS:])[MEASURED_STEPS // 2],
        memory_bytes=memory,
        checkpoint_bytes=sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor)),
    )


def format_estimate(config: TrainConfig[Any], e: Estimate) -> str:
    """Format the estimate for people."""
    kept = max(config.keep_checkpoints, MIN_KEPT) + 1
    rate, total = config.batch_size / e.seconds_per_step, e.total_steps * e.seconds_per_step
    million = 1e6
    lines = (
        f"images   {e.num_images:,}",
        f"steps    {e.total_steps:,} of {config.batch_size} images, {e.steps_per_epoch:,} per epoch",
        f"network  {config.backbone}, {e.backbone_parameters / million:.1f} M parameters to keep, "
        f"{e.method_parameters / million:.1f} M in training",
        f"memory   {e.memory_bytes / 2**30:.1f} GiB",
        f"disk     {kept * e.checkpoint_bytes / 2**30:.2f} GiB for {kept} checkpoints",
        f"time     {duration(total)} at {rate:.0f} images/s (median of {MEASURED_STEPS} steps measured here)",
    )
    return "\n".join(lines)
