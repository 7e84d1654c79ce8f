"""A run put together: settings, method, optimizer, stream of views."""

import ctypes
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nolabel import distributed
from nolabel.backbones import Backbone, backbone, parse_args
from nolabel.config import TrainConfig, check, known, to_yaml, update
from nolabel.data.images import BadFile, Images, LabelledImages, scan_labelled
from nolabel.data.loader import Stream, waiting_bytes
from nolabel.data.workers import fits_shared_memory
from nolabel.errors import UsageError
from nolabel.methods import METHODS, Method
from nolabel.optim import optimizer
from nolabel.placement import place
from nolabel.recipes import find
from nolabel.schedules import Clock
from nolabel.views import applier

Record = dict[str, Tensor | float]
"""What one step has to say: loss and metrics, scheduled values, seconds."""


class Job(NamedTuple):
    """Everything a run consists of; only `method`, `optimizer` and `scaler` change while it runs."""

    config: TrainConfig[Any]
    device: torch.device
    method: Method
    model: nn.Module
    """The method, wrapped for several processes."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    stream: Stream
    total_steps: int
    steps_per_epoch: int
    labelled: dict[str, LabelledImages] | None
    """What k-NN is measured on while training."""
    bad: dict[str, BadFile]
    """Files that could not be read so far, by name."""
    bad_slots: set[str]
    """Those of them whose own turn came: the share of these decides whether the data are too broken."""
    bad_steps: list[int]
    """Steps that were not finite, since the last roll-back."""
    rollbacks: int
    losses: list[float]
    """Of the last good steps, for `stability.spike`."""
    failed_saves: list[str]
    """Why checkpoints could not be written, since the last that could."""
    slow_lines: list[int]
    """Log lines in a row at which the loader was the limit, by step, until that was said."""
    fingerprints: list[str]
    """Of the images as the run found them, once somebody asked: the sizes of a million files take seconds to read."""
    out: Path

    def clock(self, step: int) -> Clock:
        return Clock(step, round(self.total_steps * self.config.stretch), self.steps_per_epoch, self.config.seed)


def build(config: TrainConfig[Any], images: Images, device: torch.device) -> Job:
    """Put the parts together: method with fresh weights, optimizer, stream of views."""
    args = parse_args(config.backbone_args)

    def make_backbone(drop_path: float) -> Backbone:
        return backbone(config.backbone, args, config.method.image_size, drop_path, config.grad_checkpointing)

    torch.set_num_threads(known(config.threads))
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    method = METHODS[method_name(config)](config.method, make_backbone)
    couples = method.couples_batch or any(
        isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in method.modules()
    )
    for warning in check(config, method.views(), method.backbone.patch_size, couples) + method.check():
        say(f"warning: {warning}")
    if method.sync_batchnorm:
        distributed.synchronize_batchnorm(method)
    method.to(device).train()
    _set_up_networks(method, config, device)
    model = distributed.data_parallel(method)
    stream = _stream(config, images, method, device)
    config = replace(config, augment="device" if stream.whole else "cpu")
    per_epoch = len(images.names) // config.batch_size
    total = config.steps or config.epochs * per_epoch
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    optim = optimizer(method, config.optim, method.free)
    labelled = scan_labelled(config.labels) if config.labels else None
    return Job(
        config=config,
        device=device,
        method=method,
        model=model,
        optimizer=optim,
        scaler=scaler,
        stream=stream,
        total_steps=total,
        steps_per_epoch=per_epoch,
        labelled=labelled,
        bad={},
        bad_slots=set(),
        bad_steps=[],
        rollbacks=0,
        losses=[],
        failed_saves=[],
        slow_lines=[],
        fingerprints=[],
        out=Path(config.out),
    )


def _set_up_networks(method: Method, config: TrainConfig[Any], device: torch.device) -> None:
    """How the backbones compute, which changes no weight and no name in the state dict."""
    for net in [m for m in method.modules() if isinstance(m, Backbone)]:
        if device.type == "cpu" and config.precision == "bf16":
            net.plain_attention(config.method.image_size)
        if config.compile:
            net.compile_blocks()
        if config.keep_less:
            net.keep_less()


def _stream(config: TrainConfig[Any], images: Images, method: Method, device: torch.device) -> Stream:
    """The stream of views; what is said where shared memory is too small for the batches that wait in it."""
    stream = Stream(
        images,
        method.views(),
        config.seed,
        config.batch_size,
        full_decode=config.full_decode,
        whole=config.augment == "device",
        engine="numba" if config.view_engine == "numba" else "torch",
    )
    if config.augment == "auto":
        placed = place(stream, device, known(config.workers), config.mean, config.std)
        stream = stream._replace(whole=placed == "device")
    if not stream.whole:
        applier(stream.engine)  # compiled before there are processes that need it
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes of this machine
    full = fits_shared_memory(beside * waiting_bytes(stream, known(config.workers), distributed.world_size()))
    if full:
        say(f"warning: {full}")
    return stream._replace(piped=bool(full))


def keep_freed_memory() -> None:
    """Let this process keep what its tensors free, where the C library is glibc.

    glibc maps each block of more than 32 MB anew, and gives back what is free at the end of its heap: then a step finds
    its memory empty, page by page, which took a fifth to a third of its time (benchmarks/RESULTS.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(ctypes.c_int(-4), ctypes.c_int(0))  # M_MMAP_MAX: nothing is mapped
        mallopt(ctypes.c_int(-1), ctypes.c_int(2**31 - 1))  # M_TRIM_THRESHOLD: nothing is given back


OLD_DEFAULTS = {"augment": "cpu", "view_engine": "torch"}
"""What settings were in runs whose config.yaml does not have them."""


def config_from(values: dict[str, Any], where: str) -> TrainConfig[Any]:
    """The settings in the mapping of a config.yaml. UsageError where they are none."""
    name = values.get("method_name")
    if name not in list(METHODS):  # a list compares; a dict would hash what a file may hold
        raise UsageError(f"{where} names no method: expected method_name to be one of {', '.join(METHODS)}.")
    rest = {k: v for k, v in values.items() if k != "method_name"}
    config: TrainConfig[Any] = update(TrainConfig(method=METHODS[name].Config()), rest)
    return config


def recipe_config(name: str) -> TrainConfig[Any]:
    """The settings of a recipe. UsageError with the nearest names for one that doesn't exist."""
    recipe = find(name)
    config = TrainConfig(method=METHODS[recipe.method].Config(), recipe=name)
    changed: TrainConfig[Any] = update(config, recipe.settings)
    return changed


def config_yaml(config: TrainConfig[Any]) -> str:
    """config.yaml: the name of the method and every setting."""
    return f"method_name: {method_name(config)}\n" + to_yaml(config)


def method_name(config: TrainConfig[Any]) -> str:
    """The name under which the method of these settings is known."""
    return next(name for name, method in METHODS.items() if method.Config is type(config.method))


def say(line: str) -> None:
    """A line on stderr, from the main process alone."""
    if distributed.is_main():
        print(line, file=sys.stderr, flush=True)
