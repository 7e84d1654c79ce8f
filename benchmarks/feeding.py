"""Threads or processes to prepare images: what an image costs until it is with the step, and what holds Python's lock.

    python benchmarks/feeding.py [--rounds 5] [--workers 1 2] [--batches 24]

Batches of 32 views of photos of 500x375 pixels (2 x 224 + 8 x 96), or of the whole photos with their parameters as for
`--augment device`. "in place" prepares them where they are needed; "processes" is what training does; "threads" is a
pool that prepares batches ahead. The ways take turns; figures are medians (lowest to highest) over the rounds. CPU is
that of all processes, without their start: the time of `--batches` batches less that of one for each worker. Memory is
the largest sum of proportional set sizes (PSS) during a round beside that of "in place".

"With the lock" is a thread's CPU time outside of the calls that release Python's lock (reading, decoding, resizing,
compiled operations, copies of pixels). It bounds threads: 1 / share cores at most, and the training step needs it, too.
"""

import argparse
import os
import resource
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import simplejpeg
import torch
from make_photos import jpeg, photo
from speed import FASTEST, dino
from torch.nn import functional as F

from nolabel.data import loader
from nolabel.data.images import scan
from nolabel.data.loader import Batch, Stream, batches, samples
from nolabel.data.workers import PREFETCH
from nolabel.views import cpu_numba

Way = Callable[[Stream, int, int], Iterator[Batch]]
"""Stream, number of batches, workers -> the batches."""


def in_place(stream: Stream, number: int, _: int) -> Iterator[Batch]:
    return batches(stream, range(number), 0)


def processes(stream: Stream, number: int, workers: int) -> Iterator[Batch]:
    return batches(stream, range(number), workers)


def threads(stream: Stream, number: int, workers: int) -> Iterator[Batch]:
    """As many batches ahead as with processes."""

    def prepare(slots: list[tuple[int, int]]) -> Any:
        return loader._collate(stream.whole, False, [loader._first_good(stream, *slot, {}) for slot in slots])

    with ThreadPoolExecutor(workers) as pool:
        ahead = deque[Any]()
        for slots in samples(stream, range(number), 0, 1):
            ahead.append(pool.submit(prepare, slots))
            if len(ahead) > workers * PREFETCH:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


class Cost(NamedTuple):
    cpu: float
    wall: float
    memory: float


def cpu() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def pss() -> float:
    """MB of this process and its children."""
    total = 0
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for process in ("self", *children):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1000


def run(way: Way, stream: Stream, number: int, workers: int) -> Cost:
    started, used, most = time.perf_counter(), cpu(), 0.0
    for k, batch in enumerate(way(stream, number, workers)):
        del batch
        if k == number // 2:
            most = pss()
    return Cost(cpu() - used, time.perf_counter() - started, most)


def an_image(way: Way, stream: Stream, number: int, workers: int) -> Cost:
    """Without what starting takes."""
    few = max(1, workers)
    one, all_ = run(way, stream, few, workers), run(way, stream, number, workers)
    images = (number - few) * stream.batch_size
    return Cost((all_.cpu - one.cpu) / images, (all_.wall - one.wall) / images, all_.memory)


class Unlocked:
    """Adds up the thread's CPU time in calls that release the lock."""

    def __init__(self) -> None:
        self.seconds, self.own = 0.0, threading.get_ident()

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.thread_time() - started

        return call


def locked_share(stream: Stream, number: int) -> tuple[float, float]:
    """(Milliseconds an image with the lock, their share)."""
    clock = Unlocked()
    places = [(simplejpeg, "decode_jpeg"), (F, "interpolate"), (cpu_numba, "_apply"), (loader, "read")]
    places += [(torch, "cat"), (torch, "stack"), (torch.Tensor, "contiguous")]
    before = [getattr(place, name) for place, name in places]
    for place, name in places:
        setattr(place, name, clock.timed(getattr(place, name)))
    try:
        next(in_place(stream, 1, 0))
        clock.seconds, started = 0.0, time.thread_time()
        for _ in in_place(stream, number, 0):
            pass
        total = time.thread_time() - started
    finally:
        for (place, name), original in zip(places, before, strict=True):
            setattr(place, name, original)
    locked = total - clock.seconds
    return 1000 * locked / (number * stream.batch_size), locked / total


def spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = [jpeg(photo(375, 500, seed), 95_000) for seed in range(16)]
        for i in range(32 * (options.batches + 1)):
            (Path(folder) / f"{i:06}.jpg").write_bytes(files[i % len(files)])
        for whole in (True, False):
            stream = Stream(scan(folder), dino(224, 96, 8), 0, 32, whole=whole, engine=FASTEST)
            compare(stream, options)


def compare(stream: Stream, options: argparse.Namespace) -> None:
    ways: dict[str, tuple[Way, int]] = {"in place": (in_place, 0)}
    for workers in options.workers:
        ways |= {f"{workers} processes": (processes, workers), f"{workers} threads": (threads, workers)}
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    next(in_place(stream, 1, 0))
    for _ in range(options.rounds):
        for name, (way, workers) in ways.items():
            costs[name].append(an_image(way, stream, options.batches, workers))
    shares = [locked_share(stream, 4) for _ in range(options.rounds)]
    print(f"\n{'whole images' if stream.whole else f'views, {stream.engine}'}: with the lock ", end="")
    print(f"{spread([ms for ms, _ in shares])} ms per image, {spread([100 * share for _, share in shares], 0)} %\n")
    print("| way | CPU ms per image | images per second | beside in place | memory, MB more |\n|---|---|---|---|---|")
    for name, own in costs.items():
        pairs = list(zip(own, costs["in place"], strict=True))
        faster = spread([there.wall / here.wall for here, there in pairs])
        more = spread([here.memory - there.memory for here, there in pairs], 0)
        rate = spread([1 / one.wall for one in own], 0)
        print(f"| {name} | {spread([1000 * one.cpu for one in own])} | {rate} | {faster} | {more} |", flush=True)


if __name__ == "__main__":
    main()
