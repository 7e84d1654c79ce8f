"""The copy-detection protocol: find the original of a changed copy among distractors (INRIA Copydays)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from nolabel.data.images import Images, fingerprint, scan
from nolabel.data.names import printable
from nolabel.errors import DataError, StorageError, UsageError
from nolabel.evals.protocol import EvalConfig, Folders, Measured, Protocol, check_at_least, no_files
from nolabel.evals.retrieval.attacks import ATTACKS, attack, check_attacks
from nolabel.evals.retrieval.copydays import CopySet, copy_set, evenly
from nolabel.evals.retrieval.descriptors import (
    RAW_FLOORS,
    CopyDescriptor,
    Descriptor,
    described_images,
    network,
    prepared,
)
from nolabel.evals.retrieval.ranking import mean_ap_of_first
from nolabel.evals.retrieval.whitening import learn_whitening, whiten
from nolabel.evals.shared.features import squash
from nolabel.evals.shared.leaks import find_leak
from nolabel.evals.shared.reading import report_images, report_reading
from nolabel.evals.shared.results import data_name
from nolabel.files import replacing
from nolabel.weights.load import Loaded

TOP = 20
"""Answers that are judged (Caron et al. 2021)."""


@dataclass(frozen=True)
class CopiesConfig(EvalConfig):
    """Settings of the protocol; those of the paper, for weights trained at 224 px."""

    image_size: int | None = None
    """Side of the square that an image is squashed to, in pixels; by default 10/7 of that of the weights."""
    distractors: str | None = None
    """A folder, zip or list of other images for the database (the paper: 10,000 of YFCC100M)."""
    max_distractors: int = 10_000
    """Distractors taken, evenly over their order."""
    whiten: str | None = None
    """A folder, zip or list of further images to learn a whitening on (the paper: 20,000 of YFCC100M)."""
    max_whiten: int = 20_000
    """Images for the whitening, evenly over their order."""
    whiten_centered: bool = False
    """Learn the whitening from centred features; the paper's code does not centre them."""
    attacks: tuple[str, ...] = ATTACKS
    """Copies to make where the data has none."""
    max_originals: int = 500
    """Images that copies are made of, evenly over their order."""


class Sources(NamedTuple):
    """All images of one evaluation."""

    copies: CopySet
    distractors: Images | None
    whitening: Images | None
    folder: Path | None
    """Folder of kept descriptors."""


def measure(loaded: Loaded, data: str | Path, config: CopiesConfig, folders: Folders) -> Measured:
    """mAP in percent over the first 20 answers, by kind of copy; files: a sheet of the copies made on the spot."""
    _check(data, config)
    given = _sources(data, config, folders.cache)
    unused = _report(given)
    metrics, counts = _search(given, _network(loaded, config), config, given.whitening)
    originals = given.copies.originals
    return Measured(
        metrics=metrics,
        data={**counts, "fingerprint": fingerprint(originals)},
        settings=_settings(loaded, config, given),
        notes=[*_notes(given, counts, 2 * loaded.backbone.num_features), *unused],
        floor=partial(_floor, given, config),
        write_files=no_files if given.copies.blocks else partial(_write_sheet, originals, config),
    )


def columns(metrics: Mapping[str, Any]) -> dict[str, float | str]:
    """mAP by kind of copy, for the table; kinds of several levels are averaged."""
    return dict(metrics["mean_map"])


def descriptor_size(loaded: Loaded) -> int:
    """10/7 of the crops that the weights were trained on (320 px at 224), to the nearest multiple of the patch size."""
    patch = loaded.backbone.patch_size or 1
    return max(1, round(10 * loaded.image_size / 7 / patch)) * patch


def _check(data: str | Path, config: CopiesConfig) -> None:
    check_attacks(config.attacks)
    check_at_least(config, 1, "max_distractors", "max_whiten", "max_originals")
    if config.distractors and Path(config.distractors).resolve() == Path(data).resolve():
        raise UsageError("The distractors are the data itself: every original would be found twice.")


def _report(given: Sources) -> list[str]:
    """Print the images that are searched. Gives notes on those left out, and on originals among the distractors."""
    blocks = {name: (len(block.originals), "") for name, block in given.copies.blocks.items()}
    notes = report_images(len(given.copies.originals.names), given.copies.originals, "originals")
    if blocks:
        report_reading(blocks)
    if given.distractors is not None:
        notes += report_images(len(given.distractors.names), given.distractors, "distractors")
        leak = find_leak(given.distractors, given.copies.originals)
        if leak.equal:
            notes.append(f"{leak.equal} of {leak.looked_at} originals are among the distractors, too, byte for byte")
    return notes


def _sources(data: str | Path, config: CopiesConfig, folder: Path | None) -> Sources:
    distractors = evenly(scan(config.distractors), config.max_distractors) if config.distractors else None
    whitening = evenly(scan(config.whiten), config.max_whiten) if config.whiten else None
    return Sources(copy_set(data, config.max_originals), distractors, whitening, folder)


def _network(loaded: Loaded, config: CopiesConfig) -> Descriptor:
    size = config.image_size or descriptor_size(loaded)
    return network(CopyDescriptor(loaded.backbone), "copies", partial(squash, size=size), loaded, config)


def _floor(given: Sources, config: CopiesConfig, random: Loaded) -> dict[str, Any]:
    rows = {name: _search(given, descriptor, config, None)[0] for name, descriptor in RAW_FLOORS.items()}
    return rows | {"random_weights": _search(given, _network(random, config), config, given.whitening)[0]}


def _search(
    given: Sources, descriptor: Descriptor, config: CopiesConfig, other: Images | None
) -> tuple[dict[str, Any], dict[str, int]]:
    """The metrics and the numbers of images; descriptors are whitened where there are `other` images to learn on."""
    table = partial(_table, descriptor=descriptor, config=config, folder=given.folder)
    queries, database = _queries(given.copies, config, table)
    num_originals = len(database)
    if given.distractors is not None:
        database = torch.cat([database, table(given.distractors)[0][:, 0]])
    change: Callable[[Tensor], Tensor] = _same
    if other is not None:
        learned = learn_whitening(table(other)[0][:, 0], config.whiten_centered)
        change = partial(whiten, whitening=learned)
    elif descriptor.center:
        change = partial(torch.sub, other=database.mean(0, dtype=torch.float64).float())
    database = change(database)
    scores = {
        name: mean_ap_of_first(change(features), database, positives, TOP, config.device)
        for name, (features, positives) in queries.items()
    }
    counts = {
        "num_originals": num_originals,
        "num_copies": sum(len(positives) for _, positives in queries.values()),
        "num_distractors": len(database) - num_originals,
    }
    return _percent(scores), counts


def _queries(
    copies: CopySet, config: CopiesConfig, table: Callable[..., tuple[Tensor, tuple[str, ...]]]
) -> tuple[dict[str, tuple[Tensor, tuple[int, ...]]], Tensor]:
    """By kind of copy the descriptors (Q, D) and the index of each one's original; descriptors (N, D) of these."""
    if not copies.blocks:
        made, _ = table(copies.originals, config.attacks)
        own = tuple(range(len(made)))
        return {name: (made[:, i + 1], own) for i, name in enumerate(config.attacks)}, made[:, 0]
    database, names = table(copies.originals)
    _check_whole(copies.originals, names)
    queries = {"original": (database[:, 0], tuple(range(len(database))))}
    for name, block in copies.blocks.items():
        features, names = table(block.images)
        _check_whole(block.images, names)
        queries[name] = (features[:, 0], block.originals)
    return queries, database[:, 0]


def _table(
    images: Images, attacks: tuple[str, ...] = (), *, descriptor: Descriptor, config: CopiesConfig, folder: Path | None
) -> tuple[Tensor, tuple[str, ...]]:
    """Descriptors (N, 1 + A, D) of the images that can be read and of their A attacked copies, and N names."""
    transform = partial(_with_copies, names=images.names, prepare=descriptor.prepare, attacks=attacks, seed=config.seed)
    parts = ["whole", *([name, config.seed] for name in attacks)]
    return described_images(images, descriptor, transform, parts, config, folder)


def _with_copies(
    image: Tensor,
    index: int,
    names: Sequence[str],
    prepare: Callable[[Tensor], Tensor],
    attacks: tuple[str, ...],
    seed: int,
) -> Tensor:
    changed = (attack(image, name, names[index], seed) for name in attacks)
    return torch.stack([prepare(image), *(prepare(copy) for copy in changed)])


def _check_whole(images: Images, names: Sequence[str]) -> None:
    lost = sorted(set(images.names) - set(names))
    if lost:
        raise DataError(
            f"{len(lost)} images of the set cannot be read, such as {printable(lost[0])}.\n"
            "`nolabel check DATA` reports the reasons. Without them the numbers would mean something else."
        )


def _same(features: Tensor) -> Tensor:
    return features


def _percent(scores: Mapping[str, float]) -> dict[str, Any]:
    kinds: dict[str, list[float]] = {}
    for name, value in scores.items():
        kinds.setdefault(name.partition("/")[0], []).append(value)
    return {
        "map": {name: round(100 * value, 4) for name, value in scores.items()},
        "mean_map": {kind: round(100 * sum(values) / len(values), 4) for kind, values in kinds.items()},
    }


def _settings(loaded: Loaded, config: CopiesConfig, given: Sources) -> dict[str, Any]:
    return {
        "image_size": config.image_size or descriptor_size(loaded),
        "interpolation": "bicubic",
        "top": TOP,
        "attacks": None if given.copies.blocks else config.attacks,
        "distractors": given.distractors and _about(config.distractors, given.distractors),
        "whiten": given.whitening and _about(config.whiten, given.whitening) | {"centered": config.whiten_centered},
    }


def _about(data: str | None, images: Images) -> dict[str, Any]:
    return {"name": data_name(data or ""), "images": len(images.names), "fingerprint": fingerprint(images)}


def _notes(given: Sources, counts: Mapping[str, int], width: int) -> list[str]:
    """Sentences that a reader of the numbers needs beside the settings."""
    notes = list(given.copies.notes)
    lost = len(given.copies.originals.names) - counts["num_originals"]
    if lost:
        notes.append(f"{lost} originals cannot be read and are left out")
    if given.distractors is None:
        notes.append("no distractors: the database holds nothing but the originals, which is easier")
    elif len(given.distractors.names) > counts["num_distractors"]:
        notes.append(f"{len(given.distractors.names) - counts['num_distractors']} distractors cannot be read")
    if given.whitening is None:
        notes.append("not whitened, which costs networks more than pixels: the paper's numbers are (--whiten IMAGES)")
    elif len(given.whitening.names) < width:
        notes.append(f"whitening from {len(given.whitening.names)} images for {width} dimensions: take more of them")
    return notes


def _write_sheet(originals: Images, config: CopiesConfig, folder: Path) -> None:
    """The first originals that can be read, each in a row with its copies, in the order of the settings."""
    transform = partial(
        _with_copies, names=originals.names, prepare=partial(squash, size=128), attacks=config.attacks, seed=config.seed
    )
    rows = next(prepared(originals._replace(names=originals.names[:8]), transform, batch_size=8), None)
    if rows is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "attacks.png") as file:
            save_image(make_grid(rows.images.flatten(0, 1), nrow=rows.images.shape[1]).float() / 255, file, "PNG")
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}). Choose another --out.") from error


PROTOCOL = Protocol(
    "copies", 1, "copies, mAP, %", CopiesConfig, measure, columns, check_data=partial(copy_set, max_originals=1)
)
