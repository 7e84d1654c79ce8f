"""A run put together: settings, method, optimizer, stream of views."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nolabel import distributed
from nolabel.config import TrainConfig, check, check_pass, plain, resolved
from nolabel.config.load import method_name
from nolabel.data.bad_files import BadFile
from nolabel.data.depths import describe_values, look_at_values
from nolabel.data.images import Images, LabelledImages, describe_masks, fingerprint, scan_labelled, scanned_in
from nolabel.data.loader import Batch, Stream, batches, waiting_bytes
from nolabel.data.missing import describe_missing, describe_unused
from nolabel.data.workers import fits_shared_memory
from nolabel.methods import METHODS, Method
from nolabel.networks.arguments import parse_args
from nolabel.networks.backbones import Backbone, backbone
from nolabel.optim.optimizers import optimizer
from nolabel.optim.schedules import Clock
from nolabel.progress import report_line
from nolabel.training.memory import keep_freed_memory
from nolabel.training.view_placement import place
from nolabel.views import view_function

Record = dict[str, Tensor | float]
"""The values logged for one step: loss, metrics, schedules, timings."""


@dataclass
class History:
    """Everything a run remembers beside tensors. It changes as the run goes on; a checkpoint keeps most of it."""

    bad_files: dict[str, BadFile] = field(default_factory=dict)
    """Files that could not be read so far, by name."""
    bad_slots: set[str] = field(default_factory=set)
    """Bad files whose own turn came. Their share decides whether the data are too broken."""
    bad_steps: list[int] = field(default_factory=list)
    """Steps that were not finite, since the last roll-back."""
    rollbacks: int = 0
    offset: int = 0
    """Batches left out of the stream by roll-backs."""
    losses: list[float] = field(default_factory=list)
    """Losses of the last good steps, for `stability.find_spike`."""
    failed_saves: list[str] = field(default_factory=list)
    """Reasons why checkpoints could not be written, since the last that could."""
    slow_lines: list[int] = field(default_factory=list)
    """Log lines in a row at which the loader was the limit, by step, until that was reported."""


@dataclass(frozen=True)
class Job:
    """The parts of a run. They stay; what changes is in `history` and in method, optimizer and scaler."""

    config: TrainConfig[Any]
    written: TrainConfig[Any]
    """The settings as they are in config.yaml: `config` except for what depends on the number of processes."""
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
    """Images for k-NN while training."""
    history: History

    @property
    def out(self) -> Path:
        """The run folder."""
        return Path(self.config.out)

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the images, read once: the sizes of a million files take seconds to read."""
        return fingerprint(self.stream.images)

    def clock(self, step: int) -> Clock:
        """The clock of a step, for schedules and randomness."""
        return Clock(step, round(self.total_steps * self.config.stretch), self.steps_per_epoch, self.config.seed)

    def batches(self, steps: range, workers: int, pin: bool = False) -> Iterator[Batch]:
        """The batches of these steps, without those that a roll-back has left out."""
        return batches(self.stream._replace(offset=self.history.offset), steps, workers, pin)


def build(config: TrainConfig[Any], images: Images, device: torch.device) -> Job:
    """Put the parts together: method with fresh weights, optimizer, stream of views."""
    images = images._replace(limits=config.range)
    for line in describe_images(images):
        report_line(f"note: {line}")
    args = parse_args(config.backbone_args)

    def make_backbone(drop_path: float) -> Backbone:
        size, recompute, positions = config.method.image_size, config.grad_checkpointing, config.positions
        assert positions != "auto", "resolve comes first"
        return backbone(config.backbone, args, size, drop_path, recompute, positions=positions)

    torch.set_num_threads(resolved(config.threads))
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    method = METHODS[method_name(config)](config.method, make_backbone)
    _check_method(config, method)
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
    with scanned_in(config.range):
        labelled = scan_labelled(config.labels) if config.labels else None
    return Job(
        config=config,
        written=config,
        device=device,
        method=method,
        model=model,
        optimizer=optim,
        scaler=scaler,
        stream=stream,
        total_steps=total,
        steps_per_epoch=per_epoch,
        labelled=labelled,
        history=History(),
    )


def _check_method(config: TrainConfig[Any], method: Method) -> None:
    """Warn of settings that are risky for this method and backbone; UsageError for those that cannot work."""
    normalises = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in method.modules())
    couples = method.couples_batch or normalises
    if "." in config.backbone:
        name, _, tag = config.backbone.partition(".")
        report_line(f"note: {tag} names weights of {name}. They are not used: training starts from random weights.")
    method.backbone.check_sizes(view.size for view in method.views())
    warnings = check(config, method.views(), method.backbone.patch_size, couples) + method.check()
    for warning in warnings + check_pass(config, method.min_images, normalises):
        report_line(f"warning: {warning}")


def describe_images(images: Images) -> list[str]:
    """Lines on files that should be there, pictures of other suffixes, and values of more than 8 bits."""
    unused = describe_unused(images.source, images.root, images.skipped)
    lines = [*describe_missing(images.names, images.skipped), *describe_masks(images), *([unused] if unused else [])]
    return lines + (describe_values(look_at_values(images), images.limits) if distributed.is_main() else [])


def _set_up_networks(method: Method, config: TrainConfig[Any], device: torch.device) -> None:
    """Set how the backbones compute. This changes no weight and no name in the state dict."""
    for net in [m for m in method.modules() if isinstance(m, Backbone)]:
        if device.type == "cpu" and config.precision == "bf16":
            net.plain_attention(config.method.image_size)
        if config.compile:
            net.compile_blocks()
        if config.keep_less:
            net.keep_less()


def _stream(config: TrainConfig[Any], images: Images, method: Method, device: torch.device) -> Stream:
    """The stream of views. Warns where shared memory is too small for the batches that wait in it."""
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
        placed = place(stream, device, resolved(config.workers), config.mean, config.std)
        stream = stream._replace(whole=placed == "device")
    if not stream.whole:
        view_function(stream.engine)  # compile it before there are processes that need it
    beside = distributed.number_of("LOCAL_WORLD_SIZE", 1)  # processes of this machine
    full = fits_shared_memory(beside * waiting_bytes(stream, resolved(config.workers), distributed.world_size()))
    if full:
        report_line(f"warning: {full}")
    return stream._replace(piped=bool(full))


def settings(config: TrainConfig[Any]) -> dict[str, Any]:
    """The settings as a mapping, without `out`: a run may be moved."""
    return {"method_name": method_name(config)} | {k: v for k, v in plain(config).items() if k != "out"}
