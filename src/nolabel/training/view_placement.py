"""Choose by measurement, before the first step, where views are cut: in the loader's processes or on the device."""

import time
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from nolabel import distributed
from nolabel.data.loader import Stream, batches
from nolabel.views import render

NUM_IMAGES = 32
"""Images per process in each of two batches: one to warm up, one to measure."""


class Times(NamedTuple):
    """Milliseconds per image, without reading and decoding, which both placements need."""

    cut: float
    """Time of one process on the CPU to cut and change the views."""
    render: float
    """Time of the device to make the views of whole images, transport included."""


def choose(times: Times, workers: int) -> Literal["cpu", "device"]:
    """Choose the device where it takes less time than all workers together save by leaving the views to it."""
    return "device" if times.cut / max(1, workers) > times.render else "cpu"


def place(
    stream: Stream, device: torch.device, workers: int, mean: Sequence[float], std: Sequence[float]
) -> Literal["cpu", "device"]:
    """Resolve `--augment auto` for this run; all processes follow the first. DataError if no image can be read."""
    chosen = choose(measure(stream, device, mean, std), workers)
    return "device" if distributed.any_process(distributed.is_main() and chosen == "device", device) else "cpu"


def measure(stream: Stream, device: torch.device, mean: Sequence[float], std: Sequence[float]) -> Times:
    """Measure both placements on the first images of the run, in this process."""
    size = min(stream.batch_size, NUM_IMAGES * distributed.world_size())
    few = stream._replace(batch_size=size)
    _, cut = batches(few._replace(whole=False), range(2), 0)
    whole = list(batches(few._replace(whole=True), range(2), 0))
    for batch in whole:
        _wait(device)
        started = time.perf_counter()
        assert batch.sources is not None
        render(batch.sources, stream.views, device, mean, std)
        _wait(device)
        rendered = time.perf_counter() - started
    images = size // distributed.world_size()
    return Times(cut.crop_ms - whole[-1].crop_ms, 1000 * rendered / images)  # both with what drawing takes


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
