"""Where views are cut, by the processes that read images or on the device: measured before the first step."""

import time
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from nolabel import distributed
from nolabel.data.loader import Stream, batches
from nolabel.views import render

NUM_IMAGES = 32
"""Images a process of each of the two batches: one to warm up, one to measure."""


class Times(NamedTuple):
    """Milliseconds an image, all of them without reading and decoding, which both placements need."""

    cut: float
    """Of one process on the CPU, to cut and change the views."""
    render: float
    """Of the device, to make the views of whole images, their transport included."""


def choose(times: Times, workers: int) -> Literal["cpu", "device"]:
    """The device where it takes less time than all workers together save by leaving the views to it."""
    return "device" if times.cut / max(1, workers) > times.render else "cpu"


def place(
    stream: Stream, device: torch.device, workers: int, mean: Sequence[float], std: Sequence[float]
) -> Literal["cpu", "device"]:
    """What `--augment auto` is for this run; all processes agree with the first. DataError if no image can be read."""
    found = choose(measure(stream, device, mean, std), workers)
    return "device" if distributed.any_process(distributed.is_main() and found == "device", device) else "cpu"


def measure(stream: Stream, device: torch.device, mean: Sequence[float], std: Sequence[float]) -> Times:
    """Of the first images of the run, in this process."""
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
