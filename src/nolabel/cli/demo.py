"""The demo: the whole tour on a made-up world, in minutes on a CPU."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nolabel import console, marks
from nolabel.api import evaluate
from nolabel.cli.arguments import parse
from nolabel.cli.train import closing_words
from nolabel.config import TrainConfig, update
from nolabel.config.load import load_recipe
from nolabel.data.demo import world
from nolabel.errors import UsageError
from nolabel.evals.protocol import format_result
from nolabel.evals.protocols import PROTOCOLS
from nolabel.plots import attention_sheet, pca_sheet, prepare
from nolabel.progress import duration
from nolabel.recipes.demo import NETWORK, SETTINGS, SIZE
from nolabel.runs.folder import Run, check_new
from nolabel.training.dry_run import estimate
from nolabel.training.start import train
from nolabel.weights.load import load_weights


@dataclass(frozen=True)
class DemoOptions:
    """Take the whole tour on pictures of a small made-up world: train, measure, look, hand over the weights."""

    out: Path = Path("nolabel-demo")
    """Run folder; the pictures are beside it in OUT-world."""
    recipe: Literal["simclr-small", "dino-small"] = "simclr-small"
    """Recipe to train with. SimCLR learns in minutes; DINO needs thousands of steps: give it more --minutes."""
    minutes: float = 3.0
    """Training time on this machine, measured before the start."""
    seed: int = 0
    overwrite: bool = False
    """Replace an earlier demo at OUT."""


def run_demo(args: list[str]) -> None:
    o = parse(DemoOptions, args, "nolabel demo")
    demo(o.out, o.recipe, o.minutes, o.seed, o.overwrite)


WORLD_NAMES = re.compile(rf"\.nolabel-demo|(train|val)/(({'|'.join(world.CLASSES)})/(\d{{5}}\.png)?)?")
"""Names of files in a world. A folder that holds others is not replaced."""
NUM_TRAIN, NUM_VAL, PICTURE = 6000, 1500, 96


def demo(out: Path, recipe: str, minutes: float, seed: int, overwrite: bool) -> None:
    """Make the world, train for `minutes`, measure, draw, and report where everything is."""
    if minutes <= 0:
        raise UsageError("--minutes is more than 0: four are enough for SimCLR, an hour for DINO.")
    started = time.monotonic()
    check_new(out, overwrite)
    folder = _world(Path(os.path.abspath(out) + "-world"), seed)
    config = _config(out, folder, recipe, seed)
    steps = max(1, round(60 * minutes / estimate(config).seconds_per_step))
    console.note(f"Training {recipe} without labels for {minutes:g} minutes: {steps:,} steps ...")
    run = train(update(config, {"steps": steps}), overwrite)
    console.note("Measuring ...")
    result = evaluate("knn", run, folder, workers=1)
    _pictures(run, seed)
    console.result(format_result(result, PROTOCOLS["knn"]))
    took = duration(time.monotonic() - started)
    console.result(f"\nThe tour took {took}. Look at {run.path}/report.html and {run.path}/pictures.\n")
    console.result(closing_words(run))


def _world(folder: Path, seed: int) -> Path:
    """Make the folder of pictures; one of an earlier demo is used again if it is the same, else replaced."""
    made, name = folder / ".nolabel-demo", f"{NUM_TRAIN} {NUM_VAL} {SIZE} {seed}"
    if made.is_file() and made.read_text(encoding="utf-8") == name:
        return folder
    if made.is_file():
        content = marks.content(folder, WORLD_NAMES)
        marks.check_strange(folder, content)
        marks.remove(folder, content.own)
    console.note(f"Making a world of {NUM_TRAIN + NUM_VAL:,} pictures in {folder}: {', '.join(world.CLASSES)} ...")
    world.write(folder, NUM_TRAIN, NUM_VAL, SIZE, seed)
    made.write_text(name, encoding="utf-8")
    return folder


def _config(out: Path, folder: Path, recipe: str, seed: int) -> TrainConfig[Any]:
    places = {"data": str(folder / "train"), "labels": str(folder), "out": str(out), "seed": seed}
    config: TrainConfig[Any] = update(load_recipe(recipe), NETWORK | SETTINGS[recipe] | places)
    return config


def _pictures(run: Run, seed: int) -> None:
    """Draw attention and features in colours, for a new picture of each class at a larger size."""
    loaded = load_weights(run.path)
    net, folder = loaded.backbone, run.path / "pictures"
    folder.mkdir(exist_ok=True)
    drawn = [
        torch.from_numpy(world.render(i, 10**6 * (seed + 1) + i, PICTURE)[0]).permute(2, 0, 1)
        for i in range(len(world.CLASSES))
    ]
    ready = [prepare(image, PICTURE, net.patch_size, loaded.mean, loaded.std) for image in drawn]
    pca_sheet(net, ready, loaded.mean, loaded.std, world.CLASSES).save(folder / "pca.png")
    for name, image in zip(world.CLASSES, ready, strict=True):
        attention_sheet(net, image, loaded.mean, loaded.std, name).save(folder / f"attention-{name}.png")
