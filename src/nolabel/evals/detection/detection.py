"""The detection protocol: a detector trained from the weights, its average precision (Wang et al. 2021)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nolabel import console
from nolabel.errors import DataError, StorageError, UsageError
from nolabel.evals.detection.average_precision import average_precision, check_library
from nolabel.evals.detection.box_layouts import draw_share, find_boxes, scan_boxed, split_file
from nolabel.evals.detection.boxes import Boxed, all_outlined, check_picture, describe_boxed
from nolabel.evals.detection.networks import Kind, Sizes, check_resnet
from nolabel.evals.detection.sheet import write_sheet
from nolabel.evals.detection.training import Schedule, Task, detect, train_detector
from nolabel.evals.protocol import EvalConfig, Folders, Measured, Protocol, check_at_least
from nolabel.evals.shared.leaks import leak_notes
from nolabel.evals.shared.reading import report_values
from nolabel.evals.shared.trees import tree_fingerprint
from nolabel.files import write_text
from nolabel.progress import progress
from nolabel.weights.load import Loaded

PAPER: dict[str, tuple[Schedule, Sizes]] = {
    "c4": (Schedule(24_000, (18_000, 22_000), 100, 16, 0.02), Sizes(tuple(range(480, 801, 32)), 800, 1333)),
    "fpn": (Schedule(90_000, (60_000, 80_000), 1000, 16, 0.02), Sizes(tuple(range(640, 801, 32)), 800, 1333)),
}


@dataclass(frozen=True)
class DetectionConfig(EvalConfig):
    """Settings of the protocol."""

    detector: Literal["auto", "c4", "fpn"] = "auto"
    """c4: Faster R-CNN on C4 (VOC); fpn: Mask R-CNN on an FPN (COCO), or Faster R-CNN where nothing has a mask.
    auto: c4 for VOC's layout, else fpn."""
    schedule: Literal["scaled", "paper"] = "scaled"
    """scaled: 24 passes over the data; paper: 24,000 steps (c4) or 90,000 (fpn) of 16 images."""
    steps: int | None = None
    """Instead of the schedule's; what it does on the way keeps its share."""
    train_batch_size: int | None = None
    """Images per step, instead of the schedule's; the learning rate is scaled with it."""
    lr: float = 0.02
    """Learning rate for 16 images per step."""
    short_side: int | None = None
    """Shorter side of test images in pixels; by default 800 for weights of 224 px, and in that proportion."""
    fraction: float = 1.0
    """Share of train that is learned from; 0.1 is the semi-supervised protocol. It is written beside the result."""
    split_seed: int = 0
    """Seed of the share's images; the share is the same for every `seed`, so that runs can be averaged."""
    labels_folder: str | None = None
    """Folder of YOLO's text files beside images/, such as polygons; by default the one with the most of them."""


def measure(loaded: Loaded, data: str | Path, config: DetectionConfig, folders: Folders) -> Measured:
    """AP, AP50 and AP75 in percent of boxes and of masks; files: a picture of the boxes found, the share of train.

    Raises UsageError for networks that are no ResNet and a missing extra, NumericError when training diverges.
    """
    check_detection(config)
    check_resnet(loaded.backbone)
    check_library()
    boxed = scan_boxed(data, config.labels_folder)
    console.note(f"detection: {describe_boxed(boxed)}")
    for note in boxed.notes:
        console.note(f"detection: {note}")
    task, split = make_task(loaded, boxed, config)
    report_values(boxed.tree.images, [boxed.tree.top + one.picture for one in task.train])
    for one in (*task.train, *task.test):  # a training of hours would end at the first that does not fit
        check_picture(boxed, one)
    if folders.files is not None and config.fraction < 1:
        _write_split(folders.files, boxed, config)
    return Measured(
        metrics=train_and_test(loaded, task, config, folders.files),
        data=_describe_data(task, split),
        settings=_describe(task, config),
        notes=[*_notes(task, config), *_leaks(task, split)],
        floor=lambda random: {"random_weights": train_and_test(random, task, config)},
    )


def columns(metrics: Mapping[str, Any]) -> dict[str, float | str]:
    """AP of boxes and of masks, for the table."""
    names = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
    return {
        f"{kind} {title}": "none" if score[key] is None else score[key]
        for kind, score in metrics.items()
        for key, title in names.items()
    }


def train_and_test(loaded: Loaded, task: Task, config: DetectionConfig, folder: Path | None = None) -> dict[str, Any]:
    """Train from `loaded`, and test; with `folder` a picture of the boxes found is written there."""
    schedule, sizes = task.schedule, task.sizes
    console.note(
        f"detection {loaded.name}: {task.kind}, {len(task.train)} images, {schedule.steps} steps of "
        f"{schedule.batch_size}, learning rate {schedule.lr:g}, shorter side {min(sizes.train)} to {sizes.test} px",
    )
    with progress(0, schedule.steps) as report:
        model = train_detector(loaded, task, config, report)
    found, truth, shapes = detect(model, task, config)
    names = task.boxed.classes
    if folder is not None:
        write_sheet(folder / "found.png", task.boxed, task.test, found)
    scores = {}
    for name, masks in (("box", False), ("mask", True)):
        if not masks or task.masks:
            score = average_precision(truth, found, shapes, len(names), masks)
            scores[name] = score | {"by_class": dict(zip(names, score["by_class"], strict=True))}
    return scores


def make_task(loaded: Loaded, boxed: Boxed, config: DetectionConfig) -> tuple[Task, str]:
    """The training with its data, and the split that is reported. Raises DataError where images for one are missing."""
    split = next((name for name in ("test", "val") if boxed.splits.get(name)), None)
    if split is None or not boxed.splits.get("train"):
        raise DataError(
            f"The data holds {' and '.join(boxed.splits) or 'no annotated images'} and not train with val or test."
        )
    kind: Kind = config.detector if config.detector != "auto" else ("c4" if boxed.layout == "PASCAL VOC" else "fpn")
    rows = draw_share(len(boxed.splits["train"]), config.fraction, config.split_seed)
    train = [one for one in (boxed.splits["train"][row] for row in rows) if (~one.objects.ignored).any()]
    if not train:
        raise DataError("No image of train has an object: there is nothing to learn from.")
    test = boxed.splits[split]
    if not any((~one.objects.ignored).any() for one in test):
        raise DataError(f"No image of {split} has an object: there is nothing to find.")
    masks = kind == "fpn" and all_outlined(train) and all_outlined(test)
    sizes = make_sizes(loaded, kind, config)
    return Task(boxed, train, test, kind, masks, sizes, make_schedule(kind, len(train), config)), split


def make_schedule(kind: Kind, num_images: int, config: DetectionConfig) -> Schedule:
    """The schedule for N training images; docs/evals/detection.md has the rule."""
    paper = PAPER[kind][0]
    batch_size, steps = paper.batch_size, paper.steps
    if config.schedule == "scaled":  # about 64 steps an epoch: AP needs steps
        batch_size = min(batch_size, max(2, 2 ** int(math.log2(max(num_images // 64, 1)))))
        batch_size = min(config.train_batch_size or batch_size, num_images)
        steps = -(-24 * num_images // batch_size)
    else:
        batch_size = config.train_batch_size or batch_size
    steps = config.steps or steps
    share = steps / paper.steps
    return Schedule(
        steps=steps,
        milestones=tuple(round(m * share) for m in paper.milestones),
        warmup=min(paper.warmup, steps // 10),
        batch_size=batch_size,
        lr=config.lr * batch_size / 16,
    )


def make_sizes(loaded: Loaded, kind: Kind, config: DetectionConfig) -> Sizes:
    """The paper's sizes of images for weights of 224 px, in proportion for others."""
    paper = PAPER[kind][1]
    test = config.short_side or round((config.image_size or loaded.image_size) * paper.test / 224)
    scale = test / paper.test
    return Sizes(tuple(max(1, round(s * scale)) for s in paper.train), test, round(paper.longest * scale))


def check_detection(config: DetectionConfig) -> None:
    """UsageError for settings that cannot work."""
    if not 0 < config.fraction <= 1:
        raise UsageError(f"fraction is a share of train, above 0 and up to 1, not {config.fraction}.")
    if not 0 < config.lr < math.inf:
        raise UsageError(f"lr must be above 0, not {config.lr}.")
    check_at_least(config, 1, "steps", "train_batch_size", "short_side")


def _write_split(folder: Path, boxed: Boxed, config: DetectionConfig) -> None:
    rows = draw_share(len(boxed.splits["train"]), config.fraction, config.split_seed)
    name, text = split_file(boxed, rows, config.fraction)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, text)
    except OSError as error:
        raise StorageError(f"{folder / name} cannot be written ({error.strerror}). Choose another --out.") from error
    console.note(f"detection: {len(rows)} images of train, listed in {folder / name}")


def _describe(task: Task, config: DetectionConfig) -> dict[str, Any]:
    plan: dict[str, Any] = {"detector": task.kind, "masks": task.masks, "fraction": config.fraction}
    plan |= {"split_seed": config.split_seed} if config.fraction < 1 else {}
    return plan | {"sizes": task.sizes._asdict(), "schedule": config.schedule} | task.schedule._asdict()


def _describe_data(task: Task, split: str) -> dict[str, Any]:
    parts = {
        name: {
            "images": len(examples),
            "objects": sum(int((~one.objects.ignored).sum()) for one in examples),
            "fingerprint": tree_fingerprint(task.boxed.tree, [one.picture for one in examples]),
        }
        for name, examples in (("train", task.train), (split, task.test))
    }
    boxed = task.boxed
    about = {"layout": boxed.layout, "num_classes": len(boxed.classes), "classes": boxed.classes}
    return about | {"reported_on": split, "splits": parts}


def _notes(task: Task, config: DetectionConfig) -> list[str]:
    notes = list(task.boxed.notes)
    if task.kind == "fpn" and not task.masks:
        notes.append("no outlines of the objects: Faster R-CNN without masks")
    learned = set(torch.cat([one.objects.labels[~one.objects.ignored] for one in task.train]).tolist())
    unseen = [name for i, name in enumerate(task.boxed.classes) if i not in learned]
    if unseen:
        notes.append(f"without an object in train: {', '.join(unseen[:8])}{' ...' * (len(unseen) > 8)}")
    return notes


def _leaks(task: Task, split: str) -> list[str]:
    """Notes on pictures of the tested split that are in train, byte for byte."""
    tree = task.boxed.tree
    parts = {
        name: tuple(tree.top + one.picture for one in some)
        for name, some in (("train", task.train), (split, task.test))
    }
    return leak_notes({name: tree.images._replace(names=names) for name, names in parts.items()})


PROTOCOL = Protocol("detection", 1, "detection, %", DetectionConfig, measure, columns, find_boxes, unasked=False)
