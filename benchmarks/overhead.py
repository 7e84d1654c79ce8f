"""What the health monitor costs: CPU time of its parts against that of the training steps, in one and the same run.

    python benchmarks/overhead.py DATA FOLDER [--steps 30]

Every part is timed by the processor time of this process where it runs, so what else the machine does hardly counts.
From the parts follows the share of a run of any length: a look at each evaluation, a judgement at each log line.
"""

import argparse
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import nolabel
from nolabel.config.resolve import BETWEEN_LOOKS
from nolabel.training import loop, metrics_log, monitor

NARROW = {"backbone_args": ["layers=[1,1,1,1]", "channels=[32,64,128,256]", "output_stride=8"]}
DINO = {"global_size": 32, "local_size": 16, "num_local": 2, "num_prototypes": 512, "hidden_dim": 256}
MSN = {"random_size": 32, "focal_size": 16, "num_focal": 2, "num_prototypes": 128, "hidden_dim": 256}
DENSE = {"size": 32, "queue_size": 1024, "hidden_dim": 256}
RECIPES: dict[str, dict[str, Any]] = {
    "simclr-small": {"method": {"size": 32}, **NARROW},
    "dino-small": {"method": DINO, **NARROW},
    "densecl-small": {"method": DENSE, **NARROW},
    "msn-small": {"method": MSN, "backbone_args": ["patch_size=4", "embed_dim=96", "depth=4", "num_heads=3"]},
}
LENGTHS = (300, 1_000, 4_000, 20_000, 100_000)
Times = dict[str, list[float]]


def timed(times: Times, where: Any, name: str) -> None:
    """Note the milliseconds of each call."""
    real = getattr(where, name)

    def call(*arguments: Any, **named: Any) -> Any:
        started = time.process_time()
        found = real(*arguments, **named)
        times[name].append(1000 * (time.process_time() - started))
        return found

    setattr(where, name, call)


def measured(recipe: str, data: str, out: Path, steps: int) -> tuple[Times, int]:
    """Milliseconds by part, and the number of images that a look embeds."""
    times: Times = defaultdict(list)
    kept: list[tuple[Any, str, Callable[..., Any]]] = []
    parts = [(loop, "training_step"), (monitor, "_features"), (monitor, "_picture"), (monitor, "report")]
    parts += [
        (monitor, "evaluate_now"),
        (metrics_log, "judge_health"),
        (metrics_log, "_weight_norm"),
        (monitor, "open_monitor"),
    ]
    sizes: list[int] = []
    for where, name in parts:
        kept.append((where, name, getattr(where, name)))
        timed(times, where, name)
    features = monitor._features

    def counted(images: Any, net: Any) -> Any:
        sizes.append(len(images.sample))
        return features(images, net)

    monitor._features = counted
    fixed: dict[str, Any] = {
        "batch_size": 64,
        "precision": "fp32",
        "workers": 0,
        "threads": 1,
        "log_every": 5,
        "eval_every": 10,
    }
    try:
        shutil.rmtree(out, ignore_errors=True)
        nolabel.train(recipe, data, out, steps=steps, checkpoint_every=10_000, **fixed, **RECIPES[recipe])
    finally:
        for where, name, real in kept:
            setattr(where, name, real)
    return times, sizes[-1]


def share(parts: dict[str, float], steps: int, size: int) -> tuple[float, int]:
    """Percent of steps and looks together that the monitor takes of so many steps, and the images of a look there."""
    eval_every = max(1, steps // 20, min(steps // 2, BETWEEN_LOOKS // 64))
    log_every = max(1, min(50, steps // 200))
    images = int(min(max(0.005 * 4 * 64 * eval_every, monitor.MIN_SAMPLE), monitor.MAX_SAMPLE))
    looks, lines = 1 + math.ceil(steps / eval_every), steps // log_every
    look = parts["_picture"] + parts["report"] + parts["_features"] * images / size
    cost = looks * look + lines * (parts["judge_health"] + parts["_weight_norm"])
    return 100 * cost / (steps * parts["training_step"] + cost), images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    options = parser.parse_args()
    for recipe in options.recipes.split(","):
        times, size = measured(recipe, options.data, options.folder / recipe, options.steps)
        parts = {name: median(values) for name, values in times.items()}
        print(f"{recipe}: {options.steps} steps, a look at {size} images; CPU ms, medians", flush=True)
        names = ("training_step", "evaluate_now", "_features", "_picture", "report", "judge_health", "_weight_norm")
        print("  " + ", ".join(f"{name.strip('_')} {parts[name]:.2f}" for name in names))
        for steps in LENGTHS:
            percent, images = share(parts, steps, size)
            print(f"  {steps:>7} steps: {percent:.2f} % ({images} images a look)", flush=True)


if __name__ == "__main__":
    main()
