"""What a sweep of linear classifiers costs beside one setting: the classifiers alone, and the whole command.

    python benchmarks/sweep.py                 # classifiers alone, on random features
    python benchmarks/sweep.py RUN LABELLED    # the command, on kept features and from images

Process CPU time of one thread, medians of interleaved rounds. RUN is a ViT, so that the sweep is ten learning rates on
one and on four blocks.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from nolabel.evals.classification.linear import LRS
from nolabel.evals.classification.probes import HEADS, Heads, Plan, table_batches, train_heads
from nolabel.evals.shared.pieces import Layout

NUM_IMAGES, WIDTH, NUM_CLASSES = 9469, 384, 10
RATES = LRS[1:-1]
"""Ten, with two layouts twenty settings; the default has twelve."""
ONE, FOUR = Layout(1), Layout(4)


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds of `work`, here and in the processes that it started."""

    def used() -> float:
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

    start = used()
    work()
    return used() - start


def classifiers(features: Mapping[Layout, Tensor], lrs: tuple[float, ...], plan: Plan) -> float:
    """CPU ms per step."""
    labels = torch.arange(NUM_IMAGES) % NUM_CLASSES
    heads = {layout: Heads(plan.head, len(lrs), NUM_CLASSES, x.shape[1]) for layout, x in features.items()}
    return cpu(lambda: train_heads(heads, lrs, table_batches(features, labels, plan), plan)) / plan.steps * 1e3


def products(num_settings: int, batch_size: int, dtype: torch.dtype) -> float:
    """CPU ms of the products of a plain step alone, forward and backward, of that many settings of each layout."""
    pairs = [
        (
            torch.randn(num_settings * NUM_CLASSES, n * WIDTH, dtype=dtype),
            torch.randn(batch_size, n * WIDTH, dtype=dtype),
        )
        for n in ((1, 4) if num_settings > 1 else (4,))
    ]
    outs = [torch.randn(num_settings * NUM_CLASSES, batch_size, dtype=dtype) for _ in pairs]

    def step() -> None:
        for (weight, x), out in zip(pairs, outs, strict=True):
            weight @ x.T
            out @ x

    step()
    return cpu(lambda: [step() for _ in range(50)]) / 50 * 1e3


def print_classifiers(rounds: int) -> None:
    rng = torch.Generator().manual_seed(0)
    wide = torch.randn(NUM_IMAGES, 4 * WIDTH, generator=rng)
    both = {ONE: wide[:, 3 * WIDTH :].contiguous(), FOUR: wide}
    print("| head | images per step | products in | 20 settings | one | ratio |\n|---|---|---|---|---|---|")
    for head in (*HEADS, "products of plain alone"):
        for batch_size, steps in ((64, 100), (512, 30)):
            for bf16 in (False, True):
                found = []
                for _ in range(rounds):
                    if head in HEADS:
                        plan = Plan(head, steps, NUM_IMAGES // batch_size, batch_size, bf16=bf16)
                        found.append((classifiers(both, RATES, plan), classifiers({FOUR: wide}, (0.1,), plan)))
                    else:
                        dtype = torch.bfloat16 if bf16 else torch.float32
                        found.append((products(10, batch_size, dtype), products(1, batch_size, dtype)))
                many, one = (median(column) for column in zip(*found, strict=True))
                kind = "bf16" if bf16 else "fp32"
                print(f"| {head} | {batch_size} | {kind} | {many:.2f} | {one:.2f} | {many / one:.1f} |", flush=True)


def print_commands(run: str, data: str, rounds: int) -> None:
    single = ["--lrs", "0.1", "--blocks", "4"]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"NOLABEL_CACHE": folder}

        def command(*more: str) -> None:
            arguments = [sys.executable, "-m", "nolabel", "eval", "linear", run, data, "--no-floor", *more]
            out = str(Path(folder) / "linear.json")
            subprocess.run([*arguments, "--out", out], env=environment, check=True, capture_output=True)

        twenty = ["--lrs", *map(str, RATES)]
        command()  # keeps the features
        imports = [sys.executable, "-c", "import nolabel.evals.protocols"]
        cases = {
            "importing alone": lambda: subprocess.run(imports, check=True),
            "kept features, 20 settings": lambda: command(*twenty),
            "kept features, one": lambda: command(*single),
            "from images, 20 settings": lambda: command("--no-cache", *twenty),
            "from images, one": lambda: command("--no-cache", *single),
        }
        found: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(rounds):
            for name, work in cases.items():
                found[name].append(cpu(work))
    for name, seconds in found.items():
        print(f"| {name} | {median(seconds):.2f} s |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A sweep of linear classifiers beside one setting.")
    parser.add_argument("run", nargs="?")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    if options.run:
        print_commands(options.run, options.data, options.rounds)
    else:
        print_classifiers(options.rounds)
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
