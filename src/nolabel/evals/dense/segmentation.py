"""The segmentation protocol: mean IoU of frozen patches by k-NN and by a linear layer, and of a fine-tuned FCN."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from nolabel import console
from nolabel.errors import DataError, UsageError
from nolabel.evals.dense.fcn import Schedule, finetune, segment
from nolabel.evals.dense.iou import confusion_matrix, mean_iou, rounded
from nolabel.evals.dense.layouts import Masked, check_train_masks, masked_leaks, report_masks, scan_masked
from nolabel.evals.dense.patches import (
    Cells,
    Extractor,
    Head,
    colours,
    dilated,
    extractor,
    fit_knn,
    fit_linear,
    in_batches,
    scenes,
    shares,
    to_classes,
)
from nolabel.evals.protocol import EvalConfig, Folders, Measured, Protocol, check_at_least, time_record, untrained
from nolabel.evals.shared.trees import tree_fingerprint
from nolabel.progress import progress
from nolabel.views import normalize
from nolabel.weights.load import Loaded

TITLES = {"knn": "k-NN mIoU", "linear": "linear mIoU", "finetune": "fine-tuned mIoU"}
PLACES = (32, 32)
"""Grid of the floor that knows the place in the image and nothing else."""


@dataclass(frozen=True)
class SegmentationConfig(EvalConfig):
    """Settings of the protocol."""

    batch_size: int = 16
    """Images per forward pass of the frozen network."""
    ways: tuple[Literal["knn", "linear", "finetune"], ...] = ("knn", "linear")
    """Measurements: knn and linear read frozen patches, finetune trains the whole network."""
    short_side: int | None = None
    """Shorter side of the images in pixels; by default 512 for weights of 224 px, and in that proportion."""
    output_stride: int = 8
    """Pixels between the features of a ResNet: strides become dilations (8: R50-d8; 16 and 32 are quicker)."""
    classes: str | None = None
    """File with `id: name` lines; by default classes.json, .yaml or .txt of the data, or the ids in the masks."""
    void: int | None = None
    """One more id that counts for nothing, beside classes named void and 255."""
    k: int = 20
    """knn: neighbours that vote."""
    temperature: float = 0.07
    """knn: a neighbour votes with exp(cosine / temperature)."""
    bank_size: int = 10_000
    """knn: patches of train that are searched."""
    max_patches: int = 300_000
    """linear: patches of train that are learned from, and kept in memory."""
    epochs: int = 10
    """linear: passes over these patches."""
    lr: float = 0.01
    """linear: learning rate of AdamW, on standardised features."""
    head: Literal["auto", "fcn", "linear"] = "auto"
    """finetune: auto is fcn for a CNN and linear for a ViT."""
    schedule: Literal["scaled", "paper"] = "scaled"
    """finetune: 30 passes over the data, or DenseCL's 20,000 steps of 16 images (Cityscapes: 40,000 of 8)."""
    steps: int | None = None
    """finetune: steps of the scaled schedule, if not 30 passes over the data."""


class Frozen(NamedTuple):
    """Scores of frozen features by row of the table (`weights` or a floor) and by way (knn, linear)."""

    scores: dict[str, dict[str, Any]]
    num_patches: int
    unseen: list[str]
    """Classes without a pixel in train."""


def measure(loaded: Loaded, data: str | Path, config: SegmentationConfig, _folders: Folders) -> Measured:
    """Mean IoU in percent over the classes; every image is decoded once for the frozen network and its floor."""
    check_segmentation(config)
    masked = scan_masked(data, config.classes, config.void)
    test = reported_split(masked)
    report_masks(masked, test)
    times = [time.perf_counter()]
    ways = [way for way in config.ways if way != "finetune"]
    frozen = measure_frozen(loaded, masked, test, config, ways) if ways else Frozen({"weights": {}}, 0, [])
    times.append(time.perf_counter())
    metrics, settings = frozen.scores.pop("weights"), _settings(loaded, config)
    if ways:
        settings["num_patches"] = frozen.num_patches
    if "finetune" in config.ways:
        schedule, head = plan(loaded, masked, config)
        metrics["finetune"] = _finetune(loaded, masked, test, config, schedule, head)
        settings["finetune"] = {"head": head, **schedule._asdict()}
    times.append(time.perf_counter())
    if any(scores["accuracy"] is None for scores in metrics.values()):
        raise DataError(f"Every pixel of {test} is void: there is nothing to measure.")
    return Measured(
        metrics=metrics,
        data=_describe(masked, test),
        settings=settings,
        notes=[*masked.notes, *_unseen(frozen), *masked_leaks(masked, ("train", test))],
        floor=frozen.scores,
        times=time_record({"frozen": times[1] - times[0], "finetune": times[2] - times[1]}, config),
    )


def columns(metrics: Mapping[str, Any]) -> dict[str, float | str]:
    """Mean IoU by what reads the patches, for the table."""
    return {TITLES[way]: "none" if score["miou"] is None else score["miou"] for way, score in metrics.items()}


def measure_frozen(
    loaded: Loaded, masked: Masked, test: str, config: SegmentationConfig, ways: Sequence[str]
) -> Frozen:
    """One pass over train, one over test, for all rows of the table together: every image is decoded once."""
    start = dilated(loaded, config.output_stride)
    rows = {"weights": extractor(start, config.device, config.precision)}
    if config.floor:
        rows["colours"] = colours(start.backbone, config.device)
        rows["random_weights"] = extractor(untrained(start, config.seed), config.device, config.precision)
    cells, place, seen = _learn_from(rows, loaded, masked, config)
    if (seen > 0).sum() < 2:
        alone = [name for name, count in zip(masked.classes.names, seen.tolist(), strict=True) if count]
        raise DataError(
            f"The masks of train hold {', '.join(alone)} alone, of {len(seen)} classes: nothing to tell apart.\n"
            "Is the list of classes that of these masks? Their ids are the values of the pixels."
        )
    num_patches, dim = cells["weights"].features.shape
    _report(f"{num_patches} patches of {dim} features from {_count(masked, 'train')} images; {config.epochs} passes")
    heads = {name: {way: _fit(way, table, config) for way in ways} for name, table in cells.items()}
    num_classes = len(masked.classes.ids)
    tables = {name: {way: torch.zeros(num_classes, num_classes).long() for way in ways} for name in rows}
    by_place = torch.zeros(num_classes, num_classes).long()
    for batch in in_batches(_scenes(masked, test, loaded, config), config.batch_size):
        images = torch.stack([scene.image for scene in batch])
        for name, extract in rows.items():
            features, grid = extract(images)
            for way, head in heads[name].items():
                for one, scene in zip(features, batch, strict=True):
                    tables[name][way] += _confusion(head(one), grid, scene.truth)
        for scene in batch:
            by_place += _confusion(place, PLACES, scene.truth)
    names = masked.classes.names
    scores = {name: {way: rounded(mean_iou(c), names) for way, c in table.items()} for name, table in tables.items()}
    if config.floor:
        scores["place"] = dict.fromkeys(ways, rounded(mean_iou(by_place), names))
    return Frozen(scores, num_patches, [name for name, count in zip(names, seen.tolist(), strict=True) if not count])


def plan(loaded: Loaded, masked: Masked, config: SegmentationConfig) -> tuple[Schedule, str]:
    """Schedule and head of the fine-tuning."""
    is_vit = loaded.backbone.can_drop
    head = ("linear" if is_vit else "fcn") if config.head == "auto" else config.head
    lr = 1e-4 if is_vit else 0.01
    if config.schedule == "paper":
        if masked.layout == "Cityscapes":
            return Schedule(40_000, 8, lr, 769, 1024, align_corners=True, stride=513), head
        return Schedule(20_000, 16, lr, 512, 512), head
    short_side, step = _short_side(loaded, config), loaded.backbone.patch_size or 32
    batch_size = min(16, _count(masked, "train"))
    steps = config.steps or -(-30 * _count(masked, "train") // batch_size)
    return Schedule(steps, batch_size, lr, max(step, round(short_side / step) * step), short_side), head


def check_segmentation(config: SegmentationConfig) -> None:
    """UsageError for settings that cannot work."""
    if not config.ways or len(set(config.ways)) < len(config.ways):
        raise UsageError("ways names what is measured, each once: knn, linear, finetune.")
    check_at_least(config, 1, "short_side", "k", "bank_size", "max_patches", "epochs", "steps")
    for name in ("lr", "temperature"):
        if not getattr(config, name) > 0:
            raise UsageError(f"{name} must be above 0, not {getattr(config, name)}.")


def reported_split(masked: Masked) -> str:
    """The split that is reported: test, or val. Raises DataError where there is nothing to learn from or to test on."""
    tested = [split for split in ("test", "val") if split in masked.splits]
    if "train" not in masked.splits or not tested:
        raise DataError(
            f"The data holds {' and '.join(masked.splits) or 'no masks'} and not train with val or test.\n"
            "Expected folders train and val (or test) below the images and below the masks."
        )
    if len(masked.classes.ids) < 2:
        raise DataError(f"The masks hold {len(masked.classes.ids)} class beside void: expected two or more.")
    return tested[0]


def _learn_from(
    rows: Mapping[str, Extractor], loaded: Loaded, masked: Masked, config: SegmentationConfig
) -> tuple[dict[str, Cells], Tensor, Tensor]:
    """The patches of train for each row, in bfloat16; the classes' shares by place (N, K); the pixels of each (K,)."""
    generator = torch.Generator().manual_seed(config.seed)
    quota, num_classes = max(1, config.max_patches // _count(masked, "train")), len(masked.classes.ids)
    features: dict[str, list[Tensor]] = {name: [] for name in rows}
    targets: dict[str, list[Tensor]] = {name: [] for name in rows}
    place = torch.zeros(PLACES[0] * PLACES[1], num_classes)
    for batch in in_batches(_scenes(masked, "train", loaded, config), config.batch_size):
        place += sum(shares(scene.truth, PLACES, num_classes) for scene in batch)
        patches = {name: extract(torch.stack([s.image for s in batch])) for name, extract in rows.items()}
        for i, scene in enumerate(batch):
            share = shares(scene.truth, patches["weights"][1], num_classes)
            usable = share.sum(1).nonzero()[:, 0]
            chosen = usable[torch.randperm(len(usable), generator=generator)[:quota].sort().values]
            for name, (values, _) in patches.items():
                features[name].append(values[i, chosen.to(values.device)].bfloat16())
                targets[name].append(share[chosen].to(values.device))
    cells = {name: Cells(torch.cat(features[name]), torch.cat(targets[name])) for name in rows}
    if not len(cells["weights"].features):
        raise DataError("Every pixel of train is void: there is nothing to learn from.")
    return cells, place, place.sum(0)


def _fit(way: str, cells: Cells, config: SegmentationConfig) -> Head:
    if way == "knn":
        return fit_knn(cells, config.bank_size, config.k, config.temperature, config.seed)
    return fit_linear(cells, config.epochs, config.lr, config.seed)


def _finetune(
    loaded: Loaded, masked: Masked, test: str, config: SegmentationConfig, schedule: Schedule, head: str
) -> dict[str, Any]:
    start, num_classes = dilated(loaded, config.output_stride), len(masked.classes.ids)
    _report(
        f"fine-tuning with a {head} head: {schedule.steps} steps of {schedule.batch_size} crops of {schedule.crop} px"
    )
    with progress(0, schedule.steps) as report:
        net = finetune(start, masked, schedule, head, config, report)
    confusion = torch.zeros(num_classes, num_classes).long()
    multiple = loaded.backbone.patch_size
    for scene in scenes(masked, test, schedule.short_side, multiple, "bilinear", config.workers):
        x = normalize(scene.image[None].to(config.device), loaded.mean, loaded.std)
        size = (scene.truth.shape[0], scene.truth.shape[1])
        confusion += confusion_matrix(segment(net, x, size, schedule).cpu(), scene.truth, num_classes)
    return rounded(mean_iou(confusion), masked.classes.names)


def _confusion(scores: Tensor, grid: tuple[int, int], truth: Tensor) -> Tensor:
    size = (truth.shape[0], truth.shape[1])
    return confusion_matrix(to_classes(scores, grid, size).cpu(), truth, scores.shape[1])


def _scenes(masked: Masked, split: str, loaded: Loaded, config: SegmentationConfig) -> Any:
    multiple = loaded.backbone.patch_size
    return scenes(masked, split, _short_side(loaded, config), multiple, loaded.interpolation, config.workers)


def _short_side(loaded: Loaded, config: SegmentationConfig) -> int:
    return config.short_side or round((config.image_size or loaded.image_size) * 512 / 224)


def _count(masked: Masked, split: str) -> int:
    return len(masked.splits[split].pictures)


def _report(line: str) -> None:
    console.note(f"segmentation: {line}")


def _settings(loaded: Loaded, config: SegmentationConfig) -> dict[str, Any]:
    names = ("ways", "output_stride", "k", "temperature", "bank_size", "max_patches", "epochs", "lr")
    chosen = {name: getattr(config, name) for name in names}
    return {"short_side": _short_side(loaded, config)} | chosen


def _unseen(frozen: Frozen) -> list[str]:
    names = ", ".join(frozen.unseen[:8]) + " ..." * (len(frozen.unseen) > 8)
    return [f"without a pixel in train, so never found: {names}"] if names else []


def _describe(masked: Masked, test: str) -> dict[str, Any]:
    parts = {
        split: {
            "images": _count(masked, split),
            "fingerprint": tree_fingerprint(masked.tree, [*masked.splits[split].pictures, *masked.splits[split].masks]),
        }
        for split in ("train", test)
    }
    about = {"layout": masked.layout, "num_classes": len(masked.classes.ids), "classes": masked.classes.names}
    return about | {"reported_on": test, "splits": parts}


PROTOCOL = Protocol("segmentation", 1, "segmentation, %", SegmentationConfig, measure, columns, check_train_masks)
