"""DINO from files to moved weights: nolabel's loop against the reference recipe, ratios within one run.

    python benchmarks/end_to_end.py PHOTOS                                    # ViT-S/16, 2 x 224 + 8 x 96, bf16
    python benchmarks/end_to_end.py PHOTOS --backbone vit_tiny_patch16_224
    python benchmarks/end_to_end.py PHOTOS --device cuda --batch 256 --workers 15 --steps 50

PHOTOS is a folder that `make_photos.py` has made. The reference is the step of `plain.py` and Pillow's views of
`speed.py` behind torch's DataLoader; files, sizes, starting weights and the parameters of the views are the same.
On a CPU a figure is CPU time of this process, so all work is done in it (no workers); on a GPU it is time on the wall,
after as many steps as the workers have prepared in advance. Median (lowest to highest) over rounds, taken in turn.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import plain
import speed
import torch
from step import batch_of, contenders, make
from torch.utils.data import DataLoader, Dataset

from nolabel.data.images import Images, read, scan
from nolabel.data.loader import PREFETCH, batches, samples
from nolabel.training.job import Job
from nolabel.training.step import on_device, training_step

STEPS = range(1_000_000)
Start = Callable[[], Iterator[object]]
"""Begins to read; each item is a step that was made."""


def ours(job: Job, workers: int) -> Start:
    def steps() -> Iterator[object]:
        for number, batch in enumerate(batches(job.stream, STEPS, workers, job.device.type == "cuda")):
            yield training_step(job, on_device(job, batch), job.clock(number))

    return steps


class Views(Dataset[list[torch.Tensor]]):
    """Pillow's views of an image."""

    def __init__(self, images: Images, job: Job) -> None:
        self.images, self.run = images, speed.reference(job.method.views())

    def __getitem__(self, key: tuple[int, int]) -> list[torch.Tensor]:
        return self.run(read(self.images, key[1]), key[1])  # type: ignore[return-value]


def theirs(job: Job, contender: plain.Contender, workers: int) -> Start:
    def steps() -> Iterator[object]:
        order = list(samples(job.stream, range(len(STEPS) // 1000), 0, 1))
        loader = DataLoader(
            Views(job.stream.images, job),
            batch_sampler=order,
            num_workers=workers,
            pin_memory=job.device.type == "cuda",
            prefetch_factor=PREFETCH if workers else None,
        )
        for batch in loader:
            yield contender.step([view.to(job.device, non_blocking=True) for view in batch])

    return steps


def taken(start: Start, o: argparse.Namespace) -> float:
    """Milliseconds a step."""
    clock = time.process_time if o.device == "cpu" else time.perf_counter
    with contextlib.closing(start()) as steps:  # type: ignore[type-var]
        for _ in range(PREFETCH * o.workers + 1 if o.workers else 0):
            next(steps)
        if o.device == "cuda":
            torch.cuda.synchronize()
        started = clock()
        for _ in range(o.steps):
            next(steps)
        if o.device == "cuda":
            torch.cuda.synchronize()
        return 1000 * (clock() - started) / o.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    sizes = {"batch": 4, "global_size": 224, "local_size": 96, "num_local": 8, "prototypes": 65536}
    for name, default in (sizes | {"rounds": 5, "steps": 1, "workers": 0, "seed": 0}).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bf16")
    for name in ("compile", "keep-less", "grad-checkpointing"):
        parser.add_argument(f"--{name}", action="store_true", help="nolabel's setting")
    o = parser.parse_args()
    torch.manual_seed(o.seed)
    print(vars(o), torch.__version__, torch.cuda.get_device_name() if o.device == "cuda" else "", flush=True)
    images = scan(o.data)
    starts: dict[str, Start] = {}
    for name, precision in (("reference, fp32", "fp32"), ("reference", o.precision)):
        job = make(o, precision=precision)
        job = replace(job, stream=job.stream._replace(images=images))
        found = contenders(job, with_lightly=False)["reference"]
        found.step(batch_of(job))  # warm
        starts[name] = theirs(job, found, o.workers)
    starts = {"nolabel": ours(job, o.workers), **starts}
    times: dict[str, list[float]] = {name: [] for name in starts}
    for number in range(o.rounds + 1):
        for name, start in starts.items():
            own = taken(start, o)
            if number:  # the first warms up
                times[name].append(own)
    print("| end to end | ms per step | img/s | nolabel is faster by |\n|---|---|---|---|")
    for name, own in times.items():
        ratios = sorted(b / a for a, b in zip(times["nolabel"], own, strict=True))
        middle = statistics.median(own)
        print(
            f"| {name} | {middle:.0f} ({min(own):.0f} to {max(own):.0f}) | {1000 * o.batch / middle:.1f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )


if __name__ == "__main__":
    main()
