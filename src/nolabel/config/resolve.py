"""Resolve `auto`, and refuse settings that cannot work, before the first step."""

import math
import os
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal

import torch

from nolabel import distributed
from nolabel.config.schema import TrainConfig
from nolabel.data.levels import check_range
from nolabel.errors import DataError, UsageError
from nolabel.optim.schedules import fit_warmup
from nolabel.views import View, fastest

LOWEST = {
    **dict.fromkeys(("batch_size", "epochs", "steps", "micro_batch", "threads", "keep_checkpoints"), 1),
    **dict.fromkeys(("log_every", "eval_every", "checkpoint_every"), 1),
    **dict.fromkeys(("workers", "seed"), 0),
}

LARGEST, LARGEST_SIDE, LARGEST_SIGMA = 2**62, 16_384, 1_000
"""Largest whole number of a setting, side of a crop in pixels, and standard deviation of a blur in pixels."""

BETWEEN_LOOKS = 12_800
"""Least number of images between two evaluations: one of 256 images with its pictures costs about 1 % of that."""


def find_device(name: str) -> torch.device:
    """The device of this process. UsageError if it is asked for and absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"There is no device {name!r}: use auto, cpu, cuda, cuda:N or mps.") from error
    if device.type not in ("cpu", "cuda", "mps") or (device.type != "cuda" and device.index):
        raise UsageError(f"There is no device {name!r} for nolabel: use auto, cpu, cuda, cuda:N or mps.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda was asked for, and torch finds no CUDA device here: use --device cpu or auto.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps was asked for, and torch finds no Apple GPU here: use --device cpu or auto.")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", distributed.number_of("LOCAL_RANK", 0))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"There is no {device}: torch finds {torch.cuda.device_count()} CUDA devices here, counted from cuda:0."
        )
    return device


def resolve(config: TrainConfig[Any], num_images: int, world_size: int, device: torch.device) -> TrainConfig[Any]:
    """The settings without `auto`. DataError or UsageError where images, batch and processes don't fit together."""
    _check_batch(config, num_images, world_size)
    per_epoch = num_images // config.batch_size
    total = config.steps or config.epochs * per_epoch
    on_cpu, local = device.type == "cpu", processors(world_size, device)
    workers = max(1, local // 2) if on_cpu else max(1, local - 1)
    share = config.batch_size // world_size
    auto: dict[str, Any] = {
        "device": device.type if device.type == "cuda" else str(device),
        "precision": _precision(device),
        "micro_batch": share,
        "positions": config.method.positions,
        "workers": workers,
        # On a CPU the same cores would make the views, and slower; other devices are untested. view_placement measures.
        "augment": "auto" if device.type == "cuda" else "cpu",
        "view_engine": fastest(),
        # Threads beyond the free processors wait for each other.
        "threads": max(1, local - workers) if on_cpu else 1,
        "log_every": max(1, min(50, total // 200)),
        "eval_every": max(1, total // 20, min(total // 2, -(-BETWEEN_LOOKS // config.batch_size))),
        "checkpoint_every": max(1, min(per_epoch, total)),
    }
    chosen = {name: value for name, value in auto.items() if getattr(config, name) == "auto"}
    method = config.method.resolve(num_images, config.batch_size, total)
    warmup = fit_warmup(config.optim.warmup_epochs, total / per_epoch)
    return replace(config, method=method, optim=replace(config.optim, warmup_epochs=warmup), **chosen)


def processors(world_size: int, device: torch.device) -> int:
    """The number of processors per process of the run."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // (world_size if device.type == "cpu" else _local_world()))


def split_over_processes(config: TrainConfig[Any], before: int | None) -> TrainConfig[Any]:
    """The settings of a resumed run, for the present number of processes. UsageError where the batch can't be split.

    The global batch, its order and its views stay. A micro-batch that was the share of each of the processes `before`,
    or does not fit, becomes the share of one now: in smaller pieces BatchNorm would see fewer images than before.
    """
    size, processes = config.batch_size, distributed.world_size()
    _check_split(size, processes)
    share = size // processes
    whole = before is not None and config.micro_batch == size // before
    fits = config.micro_batch != "auto" and share % config.micro_batch == 0 and not whole
    return config if fits else replace(config, micro_batch=share)


def resolved(value: int | Literal["auto"]) -> int:
    """The value of a setting after `resolve`, which replaces every `auto`."""
    assert value != "auto", "resolve comes first"
    return value


def check(config: TrainConfig[Any], views: Sequence[View], patch_size: int | None, couples_batch: bool) -> list[str]:
    """Refuse contradictions and crops that don't fit the patches; return warnings for settings that surprise people."""
    for view in views:
        _check_view(view)
        if patch_size is not None and view.size % patch_size:
            low, high = view.size // patch_size * patch_size, -(-view.size // patch_size) * patch_size
            near = f"{low} or {high}" if low else str(high)
            raise UsageError(
                f"Crops of {view.size} px don't divide into patches of {patch_size} px ({config.backbone}).\n"
                f"Use crops of {near} px, or another patch size: --backbone-args patch_size=N."
            )
    if config.keep_less and (config.compile or config.grad_checkpointing):
        other = "--compile" if config.compile else "--grad-checkpointing"
        raise UsageError(f"{other} chooses by itself what is kept for the backward pass: leave out --keep-less.")
    warnings = []
    share = config.batch_size // distributed.world_size()
    if couples_batch and config.micro_batch != "auto" and config.micro_batch < share:
        warnings.append(
            "The loss or BatchNorm compares the images of a batch: with --micro-batch it sees fewer at once."
        )
    return warnings


def check_pass(config: TrainConfig[Any], least: int, normalises: bool) -> list[str]:
    """Refuse forward passes of fewer than `least` images, which the loss has to compare; `normalises`: by BatchNorm.

    Counted over all processes: they compare their images, and BatchNorm sees them joined.
    """
    share = resolved(config.micro_batch)
    images = share * distributed.world_size()
    if images < least:
        option = "batch-size" if share * distributed.world_size() == config.batch_size else "micro-batch"
        raise UsageError(
            f"--{option} {share} gives the loss {images} image at a time, and it compares images with each other:\n"
            f"it would be constant, and no weight would move. Use --{option} {least} or more, the larger the better."
        )
    if normalises and images == 1:
        return [
            "BatchNorm sees one image at a time and normalises each by itself: the statistics that evaluations use "
            "will not fit. Use --batch-size and --micro-batch of 2 or more, or a network without BatchNorm."
        ]
    return []


def _check_numbers(config: Any, prefix: str = "") -> None:
    """UsageError for a number that is not finite, or that no machine can hold as a size."""
    for field in fields(config):
        value, name = getattr(config, field.name), f"--{prefix}{field.name.replace('_', '-')}"
        if is_dataclass(value):
            _check_numbers(value, f"{field.name}.")
        for x in value if isinstance(value, tuple) else (value,):
            if isinstance(x, float) and not math.isfinite(x):
                raise UsageError(f"{name} is {x}: expected a finite number.")
            if isinstance(x, int) and abs(x) > LARGEST:
                raise UsageError(f"{name} is {x}: expected a number up to {LARGEST:,}.")


def _check_view(view: View) -> None:
    """UsageError for a view that cannot be drawn."""
    if not 1 <= view.size <= LARGEST_SIDE:
        raise UsageError(f"A crop of {view.size} px is no image: use 1 to {LARGEST_SIDE} px.")
    if not 0 < view.scale[0] <= view.scale[1] <= 1:
        raise UsageError(
            f"A crop takes {view.scale} of an image's area: expected two shares, above 0 to 1, smaller first."
        )
    chances = (view.flip, view.jitter_p, view.grayscale, view.blur, view.solarize)
    if not all(0 <= p <= 1 for p in chances):
        raise UsageError(f"A view has the probabilities {chances}: expected numbers from 0 to 1.")
    if not (all(0 <= x <= 1 for x in view.jitter[:3]) and 0 <= view.jitter[3] <= 0.5):
        raise UsageError(f"The jitter {view.jitter} is too strong or negative: 0 to 1 each, and 0 to 0.5 for hue.")
    if not 0 < view.blur_sigma[0] <= view.blur_sigma[1] <= LARGEST_SIGMA:
        raise UsageError(f"The blur {view.blur_sigma} is no range of pixels: expected above 0, smaller first.")


def _check_batch(config: TrainConfig[Any], num_images: int, world_size: int) -> None:
    _check_numbers(config)
    for name, low in LOWEST.items():
        value = getattr(config, name)
        if isinstance(value, int) and value < low:
            raise UsageError(f"--{name.replace('_', '-')} {value} is too small: it is {low} or more.")
    if not config.stretch >= 1:
        raise UsageError(f"--stretch {config.stretch:g} would end the schedules before the run: it is 1 or more.")
    if not (all(0 <= x <= 1 for x in config.mean) and all(0 < x <= 1 for x in config.std)):
        raise UsageError(
            f"--mean {config.mean} and --std {config.std} are for images in 0..1: 0 to 1, and above 0 to 1."
        )
    check_range(config.range)
    size = config.batch_size
    if num_images < size:
        raise DataError(
            f"{config.data} holds {num_images} images, fewer than one batch of {size}.\n"
            f"{_smaller_batch(num_images, world_size)}more images."
        )
    _check_split(size, world_size)
    share = size // world_size
    if config.micro_batch != "auto" and share % config.micro_batch:
        raise UsageError(
            f"--micro-batch {config.micro_batch} does not divide the {share} images of a process and step."
        )


def _smaller_batch(num_images: int, world_size: int) -> str:
    """The largest batch that fits, in words; empty where none does."""
    most = num_images // world_size * world_size
    return f"Use --batch-size {most} or less, or " if most else "Use "


def _check_split(size: int, world_size: int) -> None:
    if size % world_size:
        raise UsageError(
            f"--batch-size {size} does not split over {world_size} processes: use a multiple of {world_size}."
        )


def _local_world() -> int:
    return max(1, distributed.number_of("LOCAL_WORLD_SIZE", 1))


def _precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    return "fp32"
