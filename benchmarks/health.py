"""How often is the health monitor right? Runs that collapse on purpose, runs that are well, and what it says.

    python benchmarks/health.py run FOLDER [--cifar10 DIR] [--only PART]   # goes on where it was stopped
    python benchmarks/health.py table FOLDER...                           # judges finished runs, trains nothing

A verdict is a function of the recorded series, so `table` judges any run folder anew from its metrics.jsonl: rules can
be changed without training again. Healthy is a run that ends at least 5 points of 20-NN above its untrained network.
"""

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import nolabel
from nolabel.data.demo import world as world_module
from nolabel.errors import NumericError
from nolabel.health.diagnosis import diagnose
from nolabel.health.facts import RunFacts, collect_facts
from nolabel.health.verdict import Diagnosis
from nolabel.methods import METHODS

GAIN = 5.0
"""Points of 20-NN above the untrained network from which a run counts as healthy."""
SIZE, NUM_IMAGES = 32, 4000
NARROW = {
    "backbone_args": ["layers=[1,1,1,1]", "channels=[32,64,128,256]", "output_stride=8"],
    "precision": "fp32",
    "workers": 1,
    "threads": 1,
    "log_every": 10,
}
DINO = {"global_size": 32, "local_size": 16, "num_local": 2, "num_prototypes": 512, "hidden_dim": 256, "momentum": 0.99}
MSN = {"random_size": 32, "focal_size": 16, "num_focal": 2, "num_prototypes": 128, "hidden_dim": 256, "momentum": 0.99}
VIT = ["patch_size=4", "embed_dim=96", "depth=4", "num_heads=3"]
DENSE = {"size": 32, "queue_size": 1024, "hidden_dim": 256, "momentum": 0.99}


class Planned(NamedTuple):
    """One run, and the kinds of alarm that name it rightly; none for a run that should be well."""

    recipe: str
    right: tuple[str, ...]
    method: dict[str, Any]
    steps: int = 320
    batch_size: int = 32
    lr: float = 0.008
    data: str = "world"
    seed: int = 0


STALLED = ("learning nothing yet",)
PLANTED = {
    "dino-no-centering": Planned("dino-small", ("constant", "same output"), DINO | {"center_momentum": 1.0}),
    "dino-no-sharpening": Planned("dino-small", ("uniform",), DINO | {"teacher_temp": 1.0, "warmup_teacher_temp": 1.0}),
    "dino-student-copied": Planned(
        "dino-small",
        ("uniform", "same output", "constant", "dimensional"),
        DINO | {"momentum": 0.0, "momentum_end": 0.0},
    ),
    "dino-temperature-too-high": Planned(
        "dino-small", ("uniform",), DINO | {"teacher_temp": 0.2, "warmup_teacher_temp": 0.2}
    ),
    "dino-lr-x100": Planned("dino-small", ("exploding", "uniform", "constant", "same output"), DINO, lr=0.8),
    "dino-dead-data": Planned("dino-small", ("dead data",), DINO, steps=60, data="dead"),
    "msn-no-memax": Planned(
        "msn-small",
        ("unused prototypes", "constant", "same output"),
        MSN | {"memax_weight": 0.0, "sinkhorn_rounds": 0},
        lr=0.004,
    ),
    "densecl-all-dense": Planned("densecl-small", ("place", "one location"), DENSE | {"dense_weight": 1.0}, lr=0.3),
    "dino-lr-0": Planned("dino-small", STALLED, DINO, lr=0.0),
    "dino-noise": Planned("dino-small", STALLED, DINO, data="noise"),
    "msn-lr-0": Planned("msn-small", STALLED, MSN, lr=0.0),
    "densecl-lr-0": Planned("densecl-small", STALLED, DENSE, lr=0.0),
    "mocov2-lr-0": Planned("mocov2-small", STALLED, DENSE, lr=0.0),
    "simclr-lr-0": Planned("simclr-small", STALLED, {"size": 32}, lr=0.0),
    "simclr-lr-x100": Planned("simclr-small", ("exploding", "constant", "dimensional"), {"size": 32}, lr=0.8),
}


def healthy(cifar10: bool) -> Iterator[tuple[str, Planned]]:
    """Runs that should be well, the quickest learners first."""
    for seed in range(4):
        for data in ("world", "cifar10") if cifar10 else ("world",):
            for batch in (32, 64):
                yield (
                    f"simclr-{data}-b{batch}-s{seed}",
                    Planned("simclr-small", (), {"size": 32}, 500, batch, 0.008, data, seed),
                )
            for recipe in ("mocov2-small", "densecl-small"):
                yield f"{recipe}-{data}-s{seed}", Planned(recipe, (), DENSE, 800, 32, 0.3, data, seed)
            yield f"dino-{data}-s{seed}", Planned("dino-small", (), DINO, 1500, 32, 0.008, data, seed)
            yield f"msn-{data}-s{seed}", Planned("msn-small", (), MSN, 2500, 32, 0.004, data, seed)


def prepare(folder: Path) -> None:
    """The demo world, a folder of one picture many times over, and one of noise."""
    if not (folder / "world" / "val").exists():
        shutil.rmtree(folder / "world", ignore_errors=True)
        world_module.write(folder / "world", NUM_IMAGES, NUM_IMAGES // 4, SIZE, 0)
    dead = folder / "dead" / "train"
    if not dead.exists():
        dead.mkdir(parents=True)
        picture = next((folder / "world" / "train").rglob("*.png"))
        for i in range(1024):
            shutil.copy(picture, dead / f"{i:05d}.png")
    noise = folder / "noise" / "train"
    if not noise.exists():
        noise.mkdir(parents=True)
        choice = np.random.default_rng(0)
        for i in range(1024):
            Image.fromarray(choice.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(noise / f"{i:05d}.png")


def train(folder: Path, name: str, plan: Planned, cifar10: Path | None) -> None:
    """Train one run, or go on with it, or leave it as it is where it is finished."""
    out = folder / name
    if (out / "config.yaml").exists():
        nolabel.resume(out)
        return
    data = cifar10 if plan.data == "cifar10" and cifar10 else folder / plan.data
    images = data / "train"
    per_epoch = max(sum(1 for _ in images.rglob("*.*")) // plan.batch_size, 1)
    special: dict[str, Any] = (
        {"labels": str(data), "eval_every": plan.steps // 2} if not plan.right else {"eval_every": 100}
    )
    if plan.recipe == "msn-small":
        special["backbone_args"] = VIT
    nolabel.train(
        plan.recipe,
        images,
        out,
        steps=plan.steps,
        batch_size=plan.batch_size,
        seed=plan.seed,
        method=plan.method,
        optim={"lr": plan.lr, "warmup_epochs": 30 / per_epoch, "lr_by_epoch": False},
        **(NARROW | special),
    )


def judged(path: Path) -> tuple[list[dict[str, Any]], RunFacts]:
    """The recorded series of a finished run, and what the run is: all that a verdict depends on."""
    found = nolabel.Run(path)
    config, metrics = found.config(), found.metrics()
    shape = json.loads((path / "weights" / "config.json").read_text())
    lines = [r for r in metrics if "loss" in r]
    per_epoch = lines[-1]["step"] / lines[-1]["epoch"]
    warmup, last = config["optim"]["warmup_epochs"], lines[-1]["step"]
    advice = METHODS[config["method_name"]].Config.advice
    lr = config["optim"]["lr"]
    return metrics, collect_facts(config["method"], advice, shape["num_features"], warmup, per_epoch, last, lr)


def first_alarm(metrics: list[dict[str, Any]], run: RunFacts) -> tuple[int, Diagnosis]:
    """Step and words of the first alarm, judged line by line as the monitor does; the last step where there is none."""
    found, step = Diagnosis("healthy", ""), 0
    for i, record in enumerate(metrics):
        if "loss" not in record and i < len(metrics) - 1:
            continue
        step, found = record["step"], diagnose(metrics[: i + 1], run)
        if found.alarm:
            break
    return step, found


def gain(metrics: list[dict[str, Any]]) -> float | None:
    """Points of 20-NN that a run ended above its untrained network; None for one without labels."""
    seen = [r["knn"] for r in metrics if "knn" in r]
    return seen[-1] - seen[0] if len(seen) > 1 else None


def table(folders: list[Path]) -> None:
    """The diagnosis of each run, then the confusion table."""
    counts: Counter[tuple[str, str]] = Counter()
    for path in sorted(p.parent for folder in folders for p in folder.glob("**/metrics.jsonl")):
        if nolabel.Run(path).status()["state"] not in ("done", "failed") or not (path / "weights").exists():
            continue
        metrics, run = judged(path)
        step, found = first_alarm(metrics, run)
        points, plan = gain(metrics), PLANTED.get(path.name)
        if plan:
            truth = f"planted: {path.name}"
            verdict = "named" if found.kind in plan.right else ("other alarm" if found.alarm else "missed")
        elif points is None:
            continue
        else:
            truth = "healthy" if points >= GAIN else "learned little"
            verdict = "alarm" if found.alarm else "no alarm"
        counts[truth, verdict] += 1
        after = step - run.warmup_steps
        number = "" if points is None else f"{points:+.1f}"
        print(f"{path.name:<32}{number:>7}  {found.kind:<20}step {step} ({after} after warm-up)  {verdict}")
    print()
    for (truth, verdict), number_of_runs in sorted(counts.items()):
        print(f"{truth:<40}{verdict:<14}{number_of_runs}")


def main() -> None:
    """Train, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("run", "table"))
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--cifar10", type=Path, help="a folder with train/ and test/ of class folders")
    parser.add_argument("--only", default="", help="runs whose name begins so")
    options = parser.parse_args()
    if options.do == "table":
        table(options.folder)
        return
    folder = options.folder[0]
    prepare(folder)
    for name, plan in [*PLANTED.items(), *healthy(options.cifar10 is not None)]:
        if not name.startswith(options.only):
            continue
        try:
            train(folder, name, plan, options.cifar10)
        except NumericError as error:  # a run that ends as a numeric failure is an outcome, too
            print(f"{name}: {error}", flush=True)


if __name__ == "__main__":
    main()
