"""One optimizer step: views, loss, gradient, clip, `before_step`, optimizer, `after_step`."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nolabel import distributed
from nolabel.config import resolved
from nolabel.data.loader import Batch
from nolabel.errors import UsageError
from nolabel.methods import Method
from nolabel.networks.precision import autocast
from nolabel.optim.optimizers import all_finite, clip_grad, set_schedules
from nolabel.optim.schedules import Clock
from nolabel.randomness import generator
from nolabel.training.job import Job, Record
from nolabel.views import normalize, render


def training_step(job: Job, views: Sequence[Tensor], clock: Clock) -> Record:
    """One optimizer step on normalised views (B, 3, size, size), B the share of this process. Returns what to log.

    "ok" (0-d) is 0 where the loss or a gradient is not finite; nothing has moved then. In fp16 an infinite gradient
    moves nothing either, but "ok" stays 1: the scaler finds its scale in this way.
    """
    config, method, optim = job.config, job.method, job.optimizer
    torch.manual_seed(int(generator("step", config.seed, clock.step, distributed.rank()).integers(2**62)))
    scheduled = set_schedules(optim, config.optim, config.batch_size, clock)
    statistics = _running_statistics(method)  # of BatchNorm, with their values before the step
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
    for group, values in zip(statistics, before, strict=True):  # moved by the forward pass
        kept = torch.where(ok.bool(), _joined(group), values)  # those from before where the step is not ok
        torch._foreach_copy_(group, _apart(kept, group))
    method.after_step(clock, ok)
    if job.scaler.is_enabled():
        job.scaler.update()
        ok = all_finite(metrics["loss"])  # an infinite scaled gradient is fp16's ordinary way to find its scale
    return {"ok": ok, **metrics, "grad_norm": grad_norm, **scheduled, **method.settings(clock)}


def _running_statistics(method: Method) -> list[list[Tensor]]:
    """The buffers of BatchNorm, by dtype. A forward pass moves them; all else that remembers moves in `after_step`."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for norm in (m for m in method.modules() if hasattr(m, "running_mean")):
        for buffer in norm.buffers(recurse=False):
            groups.setdefault(buffer.dtype, []).append(buffer)
    return list(groups.values())


def _joined(tensors: list[Tensor]) -> Tensor:
    """A copy of all tensors in one row, so that a few large operations replace hundreds of small ones."""
    return torch.cat([t.flatten() for t in tensors])


def _apart(row: Tensor, like: list[Tensor]) -> list[Tensor]:
    """The inverse of `_joined`: tensors of the shapes of `like`."""
    pieces = torch.split(row, [t.numel() for t in like])
    return [piece.view_as(t) for piece, t in zip(pieces, like, strict=True)]


def _forward_backward(job: Job, views: Sequence[Tensor], clock: Clock) -> dict[str, Tensor]:
    """Mean metrics and accumulated gradients over the micro-batches of the step."""
    pieces = [torch.split(v, resolved(job.config.micro_batch)) for v in views]
    number = len(pieces[0])
    precision = job.config.precision
    assert precision != "auto", "resolve comes first"
    total: dict[str, Tensor] = {}
    for i in range(number):
        more = i < number - 1  # processes average their gradients once per step, at the last micro-batch
        with distributed.gradients_stay(job.model) if more else contextlib.nullcontext():
            with autocast(job.device, precision):
                metrics = _forward(job, [p[i] for p in pieces], clock)
            job.scaler.scale(metrics["loss"] / number).backward()
        for name, value in metrics.items():
            total[name] = total.get(name, 0) + value.detach() / number
    return total


def _forward(job: Job, views: list[Tensor], clock: Clock) -> Mapping[str, Any]:
    """The loss and metrics. UsageError where BatchNorm has one value to normalise."""
    try:
        metrics: Mapping[str, Any] = job.model(views, clock)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            f"BatchNorm has one value per channel with {len(views[0])} image per forward pass of a process.\n"
            "Use --batch-size and --micro-batch of 2 or more, or larger views where a map shrinks to one place."
        ) from error
    return metrics


def on_device(job: Job, batch: Batch) -> list[Tensor]:
    """The normalised views (B, 3, size, size) of a batch on the device of the run."""
    mean, std = job.config.mean, job.config.std
    if batch.sources:  # whole images, whose views are cut on the device
        return render(batch.sources, job.stream.views, job.device, mean, std)
    return [normalize(v.to(job.device, non_blocking=True), mean, std) for v in batch.views]
