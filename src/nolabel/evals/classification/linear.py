"""The linear protocol: classifiers on frozen features, a sweep of settings in one pass (Caron et al. 2021)."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from nolabel import console
from nolabel.data.images import LabelledImages
from nolabel.errors import StorageError, UsageError, nearest
from nolabel.evals.classification.augmented import augmented_batches, train_view
from nolabel.evals.classification.probes import HEADS, Head, Plan
from nolabel.evals.classification.sweep import Best, Probe, Samples, sweep
from nolabel.evals.protocol import EvalConfig, Folders, Measured, Protocol, check_at_least
from nolabel.evals.shared.cache import features
from nolabel.evals.shared.features import FeatureTable, raw_pixels
from nolabel.evals.shared.labelled import Roles
from nolabel.evals.shared.pieces import Layout, Piece, depth, pieces_of
from nolabel.evals.shared.reading import data_notes
from nolabel.evals.shared.results import write_tensors
from nolabel.evals.shared.tables import Tables, check_splits, check_tables, describe_data, pick, roles_with_test, usable
from nolabel.networks.backbones import Backbone
from nolabel.optim.schedules import fit_warmup
from nolabel.weights.load import Loaded

LRS = (5e-5, 2e-4, 0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 50.0, 200.0, 1000.0)
"""Raw pixels and long features are best near the lower end, trained networks in the middle, untrained ones, whose
features hardly differ, near the upper end."""


PAPER: dict[str, tuple[int, int, int]] = {  # epochs, batch, epochs of warm-up
    "plain": (100, 1024, 0),  # Caron et al. 2021
    "batchnorm": (90, 16384, 10),  # He et al. 2022
    "layernorm_l2": (100, 16384, 0),  # Assran et al. 2022
}


@dataclass(frozen=True)
class LinearConfig(EvalConfig):
    """Settings of the protocol: what is swept, and how a classifier is trained."""

    head: Head = "plain"
    """plain: Linear (DINO); batchnorm: BatchNorm without affine, Linear, LARS (MAE); layernorm_l2: LayerNorm, unit
    length, Linear, on features before the final norm (MSN)."""
    lrs: tuple[float, ...] = ()
    """Learning rates for 256 images per step; empty: twelve from 0.00005 to 1000."""
    blocks: tuple[int, ...] = (1, 4)
    """Numbers of last blocks whose class tokens are joined; other networks than plain ViTs have one."""
    mean_patches: Literal["no", "yes", "both"] = "no"
    """Join the mean of the last block's patches, too."""
    interleaved: bool = False
    """Layout of DINO's published heads: class token and mean patch element by element."""
    schedule: Literal["auto", "paper"] = "auto"
    """auto: scaled to the number of images. paper: epochs and batch of the head's paper."""
    epochs: int | None = None
    """Epochs, instead of the schedule's."""
    head_batch_size: int | None = None
    """Images per step of the classifiers, instead of the schedule's."""
    augment: bool = False
    """A new random crop and flip of every image in every epoch, as in the papers; else features of centre crops."""


def measure(loaded: Loaded, data: str | Path, config: LinearConfig, folders: Folders) -> Measured:
    """Top-1 and top-5 in percent of the best linear classifier; files: that classifier."""
    _check(config)
    parts = roles_with_test(data)
    layouts, notes = _layouts(loaded.backbone, config)
    probe, tables = _probe(loaded, parts, layouts, config, folders.cache)
    make_plan, lrs = partial(_plan, config), config.lrs or LRS
    plan = make_plan(len(tables.train.ids))
    _announce(plan, len(layouts) * len(lrs))
    best = sweep(probe, tuple(layouts), lrs, make_plan)
    metrics = _metrics(best)
    return Measured(
        metrics=metrics | {"sweep": best.tried},
        data=describe_data(parts, tables),
        settings=_describe(config, layouts, lrs, plan),
        notes=[*notes, *_notes(lrs, {"the network": metrics}), *data_notes(parts)],
        floor=partial(_floor, parts, config, layouts, folders.cache),
        floor_notes=partial(_notes, lrs),
        write_files=partial(_save_head, best, parts.train.classes),
    )


def columns(metrics: Mapping[str, Any]) -> dict[str, float | str]:
    """Accuracy and the setting that gave it, for the table."""
    blocks = f"{metrics['blocks']}" + ("+p" if metrics["mean_patches"] else "")
    return {"top-1": metrics["top1"], "top-5": metrics["top5"], "lr": f"{metrics['lr']:g}", "blocks": blocks}


def _check(config: LinearConfig) -> None:
    if config.head not in HEADS:
        raise UsageError(
            f"There is no head {config.head!r}.{nearest(config.head, HEADS)} Use one of {', '.join(HEADS)}."
        )
    if not all(0 < lr < math.inf for lr in config.lrs):
        raise UsageError(f"Learning rates must be above 0, not {', '.join(f'{lr:g}' for lr in config.lrs)}.")
    if not config.blocks or min(config.blocks) < 1:
        raise UsageError("blocks must be numbers from 1 up.")
    check_at_least(config, 1, "epochs", "head_batch_size")
    if config.interleaved and (config.blocks != (1,) or config.mean_patches != "yes"):
        raise UsageError("The interleaved layout is one block with the mean patch: --blocks 1 --mean-patches yes.")


def _layouts(net: Backbone, config: LinearConfig) -> tuple[dict[Layout, list[Piece]], list[str]]:
    """The layouts that the sweep tries, and notes on those that the network cannot give."""
    num_blocks, notes = depth(net), []
    blocks = sorted({min(n, num_blocks) for n in config.blocks})
    if max(config.blocks) > num_blocks and config.blocks != LinearConfig.blocks:
        notes.append(f"blocks above {num_blocks}: {net.name} has features of {num_blocks}")
    means = {"no": [False], "yes": [True], "both": [False, True]}[config.mean_patches]
    if not net.can_drop and any(means):
        means = [False]
        notes.append(f"no mean patches beside what {net.name} pools: it is no plain ViT")
    before_norm = config.head == "layernorm_l2" and net.can_drop
    layouts = [Layout(n, mean) for n in blocks for mean in means]
    return {layout: pieces_of(net, layout, before_norm) for layout in layouts}, notes


def _plan(config: LinearConfig, num_images: int) -> Plan:
    """The schedule for N training images; docs/evals/linear.md has the rule."""
    epochs, batch_size, warmup = PAPER[config.head]
    paper = config.schedule == "paper"
    if not paper:  # at least sixteen steps per epoch: the papers' batches are a thousandth of their data
        batch_size = min(1024, max(8, 2 ** int(math.log2(max(num_images // 16, 1)))))
    batch_size = min(config.head_batch_size or batch_size, num_images)
    per_epoch = num_images // batch_size
    if config.epochs is not None:
        steps = config.epochs * per_epoch
    elif paper:
        steps = epochs * per_epoch
    elif config.augment:
        steps = min(100, max(10, 200_000 // num_images)) * per_epoch
    else:
        most = max(12_500 // per_epoch, 1)
        steps = min(max(100, math.ceil(1000 / per_epoch)), most) * per_epoch
    warmup_steps = round(fit_warmup(warmup, steps / per_epoch) * per_epoch)
    by_epoch, bf16 = paper and config.head == "plain", config.precision == "bf16"
    return Plan(config.head, steps, per_epoch, batch_size, warmup_steps, by_epoch, config.seed, bf16)


def _announce(plan: Plan, num_settings: int) -> None:
    epochs = plan.steps / plan.steps_per_epoch
    console.note(
        f"linear: {epochs:g} epochs of {plan.steps_per_epoch} steps, {plan.batch_size} images per step, "
        f"{num_settings} settings side by side",
    )


def _probe(
    loaded: Loaded, parts: Roles, layouts: Mapping[Layout, list[Piece]], config: LinearConfig, folder: Path | None
) -> tuple[Probe, Tables]:
    pieces = tuple(dict.fromkeys(piece for wanted in layouts.values() for piece in wanted))

    def samples(part: LabelledImages) -> Samples:
        table = features(loaded, part, pieces, config, folder)
        joined = {
            n: table.table(wanted, config.interleaved).features.to(config.device) for n, wanted in layouts.items()
        }
        return Samples(joined, table.labels.to(config.device), table.ids)

    train, val, test = (part and samples(part) for part in parts[:3])
    assert train is not None and test is not None
    first = next(iter(layouts))
    tables = Tables(*(s and FeatureTable(s.features[first], s.labels.cpu(), s.ids) for s in (train, val, test)))  # type: ignore[arg-type]
    check_tables(parts, tables)
    batches = (
        partial(_augmented, loaded, usable(parts.train, tables.train), layouts, config) if config.augment else None
    )
    return Probe(train, val, test, len(parts.train.classes), batches), tables


def _augmented(
    loaded: Loaded,
    labelled: LabelledImages,
    layouts: Mapping[Layout, list[Piece]],
    config: LinearConfig,
    rows: Tensor,
    wanted: Sequence[Layout],
    plan: Plan,
) -> Iterator[tuple[dict[Layout, Tensor], Tensor]]:
    """Batches of random crops of the given rows of `labelled`, whose images can all be read."""
    some = pick(labelled, rows.tolist())
    view = train_view(config.image_size or loaded.image_size, "bicubic" if config.head == "batchnorm" else "bilinear")
    used = {layout: layouts[layout] for layout in wanted}
    return augmented_batches(loaded, some, view, used, config.interleaved, config, plan)


def _floor(
    parts: Roles, config: LinearConfig, layouts: Mapping[Layout, list[Piece]], folder: Path | None, random: Loaded
) -> dict[str, Any]:
    """The same sweep on raw pixels and on the untrained network."""
    lrs, plan = config.lrs or LRS, partial(_plan, config)
    tables = [part and raw_pixels(part, workers=config.workers) for part in parts[:3]]
    assert tables[0] is not None
    mean = tables[0].features.mean(0)

    def samples(table: FeatureTable) -> Samples:
        x = F.normalize(table.features - mean) * math.sqrt(len(mean))  # as long as features after a LayerNorm
        return Samples({Layout(): x.to(config.device)}, table.labels.to(config.device), table.ids)

    train, val, test = (table and samples(table) for table in tables)
    assert train is not None and test is not None
    pixels = sweep(Probe(train, val, test, len(parts.train.classes)), (Layout(),), lrs, plan)
    probe, _ = _probe(random, parts, layouts, config, folder)
    best = sweep(probe, tuple(layouts), lrs, plan)
    return {"raw_pixels": _metrics(pixels), "random_weights": _metrics(best)}


def _metrics(best: Best) -> dict[str, Any]:
    return {
        "top1": best.top1,
        "top5": best.top5,
        "lr": best.lr,
        "blocks": best.layout.blocks,
        "mean_patches": best.layout.mean_patches,
        "chosen_on": best.chosen_on,
        "retrained": best.retrained,
    }


def _describe(
    config: LinearConfig, layouts: Mapping[Layout, list[Piece]], lrs: Sequence[float], plan: Plan
) -> dict[str, Any]:
    return {
        "head": config.head,
        "features": "before the final norm" if any(p.kind == "raw" for ps in layouts.values() for p in ps) else "final",
        "layouts": [layout._asdict() for layout in layouts],
        "interleaved": config.interleaved,
        "lrs": lrs,
        "schedule": config.schedule,
        "augment": config.augment,
        "epochs": plan.steps / plan.steps_per_epoch,
        "steps": plan.steps,
        "head_batch_size": plan.batch_size,
    }


def _notes(lrs: Sequence[float], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A note for each row whose best rate is at an end of the sweep: it may not be the best there is."""
    ends = {min(lrs): "lowest", max(lrs): "highest"} if len(lrs) > 1 else {}
    at_ends = {name.replace("_", " "): values["lr"] for name, values in rows.items() if values["lr"] in ends}
    return [
        f"{name}: the best learning rate, {lr:g}, is the {ends[lr]} of the sweep: try --lrs beyond it"
        for name, lr in at_ends.items()
    ]


def _save_head(best: Best, classes: Sequence[str], folder: Path) -> None:
    """Write the classifier: `weight` (C, D), `bias` (C,), the tensors of its norm; metadata: head, layout, classes."""
    path = folder / "head.safetensors"
    tensors = {name: p.detach().squeeze(0).contiguous().cpu() for name, p in best.head.named_parameters()}
    tensors |= {name: b.cpu() for name, b in best.head.named_buffers() if b.dim()}
    facts = {name: str(value) for name, value in best.layout._asdict().items()}
    try:
        write_tensors(path, tensors, {"head": best.head.kind, **facts, "classes": json.dumps(list(classes))})
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}). Choose another --out.") from error


PROTOCOL = Protocol("linear", 2, "linear accuracy, %", LinearConfig, measure, columns, check_splits)
