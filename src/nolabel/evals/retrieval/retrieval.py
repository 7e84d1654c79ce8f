"""The retrieval protocol: find other pictures of the same place or thing (revisited Oxford and Paris)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nolabel.data.images import Images, fingerprint, left_out, scan
from nolabel.data.names import printable
from nolabel.errors import DataError, UsageError
from nolabel.evals.protocol import EvalConfig, Folders, Measured, Protocol
from nolabel.evals.retrieval.descriptors import RAW_FLOORS, SCALES, Descriptor, MultiScale, described_images, network
from nolabel.evals.retrieval.groundtruth import Box, GroundTruth, find_ground_truth, ground_truth
from nolabel.evals.retrieval.ranking import Score, score
from nolabel.evals.retrieval.whitening import learn_whitening, whiten
from nolabel.evals.shared.reading import report_reading, report_values
from nolabel.evals.shared.results import data_name
from nolabel.weights.load import Loaded

KS = (1, 5, 10)


@dataclass(frozen=True)
class RetrievalConfig(EvalConfig):
    """Settings of the protocol; DINO's for Oxford, for weights trained at 224 px."""

    image_size: int | None = None
    """Longest side of an image, which keeps its shape and is never enlarged; by default that of the weights."""
    multi_scale: bool = False
    """Average the features at 1, 0.71 and 0.5 of the size (DINO's for Paris, with an image size of 512)."""
    crop_queries: bool = False
    """Cut queries to their box, as the revisited protocol asks; DINO's numbers use whole queries."""
    whiten: str | None = None
    """A folder, zip or list of other images to learn a whitening on (centred)."""


class Task(NamedTuple):
    """Data and settings of every row of the table."""

    truth: GroundTruth
    other: Images | None
    """Images to learn a whitening on."""
    config: RetrievalConfig
    folder: Path | None
    """Folder of kept features."""


def measure(loaded: Loaded, data: str | Path, config: RetrievalConfig, folders: Folders) -> Measured:
    """mAP and mP@k in percent at the levels easy, medium and hard."""
    truth = ground_truth(data)
    if config.crop_queries and None in truth.boxes:
        raise UsageError("--crop-queries needs a bbx for every query, and the ground truth lacks some.")
    other = scan(config.whiten) if config.whiten else None
    report_reading({"database": (len(truth.database.names), ""), "queries": (len(truth.queries.names), "")})
    report_values(truth.database)
    unused = left_out(truth.database)
    task = Task(truth, other, config, folders.cache)
    scores = _rank(task, _network(loaded, config), whitened=True)
    return Measured(
        metrics=_percent(scores),
        data={
            "num_queries": len(truth.queries.names),
            "num_database": len(truth.database.names),
            "fingerprint": fingerprint(truth.database),
            "ground_truth": truth.fingerprint,
        },
        settings=_settings(config, other),
        notes=[*_notes(scores, len(truth.queries.names)), *unused],
        floor=partial(_floor, task),
    )


def columns(metrics: Mapping[str, Any]) -> dict[str, float | str]:
    """mAP by level, and mP@10 at medium, for the table."""
    values = {f"mAP {level}": metrics[level]["map"] for level in metrics}
    values["mP@10 medium"] = metrics["medium"]["mp"]["10"]
    return {name: "none" if value is None else value for name, value in values.items()}


def check_ground_truth(data: str | Path) -> None:
    """DataError where DATA holds no ground truth, or several."""
    if find_ground_truth(data)[1] is None:
        raise DataError("no gnd.json with queries and their answers")


def thumbnail(image: Tensor, size: int) -> Tensor:
    """`image` (3, H, W) uint8 shrunk by Lanczos until no side is above `size`; its shape is kept."""
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def cut(image: Tensor, box: Box) -> Tensor:
    """The part of `image` (3, H, W) in `box`, rounded to pixels.

    Raises DataError where there is none, or where the box sticks out by more than 5 % of the image.
    """
    left, top, right, bottom = (max(0, round(side)) for side in box)
    part = image[:, top:bottom, left:right]
    height, width = image.shape[1:]
    if 0 in part.shape or right > 1.05 * width or bottom > 1.05 * height:
        raise DataError(
            f"The box {box} of a query lies outside its image of {width}x{height} px.\n"
            "Boxes are left, top, right, bottom in pixels of the file. Was the image made smaller?"
        )
    return part


def _network(loaded: Loaded, config: RetrievalConfig) -> Descriptor:
    net = MultiScale(loaded.backbone, SCALES if config.multi_scale else (1.0,))
    return network(net, "retrieval", partial(thumbnail, size=config.image_size or loaded.image_size), loaded, config)


def _floor(task: Task, random: Loaded) -> dict[str, Any]:
    rows = {name: _rank(task, descriptor, whitened=False) for name, descriptor in RAW_FLOORS.items()}
    rows["random_weights"] = _rank(task, _network(random, task.config), whitened=True)
    return {name: _percent(scores) for name, scores in rows.items()}


def _rank(task: Task, descriptor: Descriptor, whitened: bool) -> dict[str, Score]:
    """The scores by level; features may be `whitened` where there are images to learn that on."""
    truth, config = task.truth, task.config
    database = _features(task, truth.database, descriptor)
    queries = _features(task, truth.queries, descriptor, truth.boxes if config.crop_queries else [])
    if descriptor.center:
        mean = database.mean(0, dtype=torch.float64).float()
        database, queries = database - mean, queries - mean
    if whitened and task.other is not None:
        learned = learn_whitening(_features(task, task.other, descriptor, whole=False), centered=True)
        database, queries = whiten(database, learned), whiten(queries, learned)
    return score(queries, database, truth.truths, KS, config.device)


def _features(
    task: Task, images: Images, descriptor: Descriptor, boxes: Sequence[Box | None] = (), whole: bool = True
) -> Tensor:
    """(N, D). Raises DataError for an image that cannot be read, where the `whole` of them is needed."""
    transform = partial(_prepare, prepare=descriptor.prepare, boxes=boxes)
    features, names = described_images(images, descriptor, transform, [list(boxes)], task.config, task.folder)
    lost = sorted(set(images.names) - set(names)) if whole else []
    if lost:
        raise DataError(
            f"{len(lost)} images of the ground truth cannot be read, such as {printable(lost[0])}.\n"
            "`nolabel check DATA` reports the reasons."
        )
    return features[:, 0]


def _prepare(image: Tensor, index: int, prepare: Callable[[Tensor], Tensor], boxes: Sequence[Box | None]) -> Tensor:
    box = boxes[index] if boxes else None
    return prepare(image if box is None else cut(image, box))[None]


def _percent(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {
        level: {"map": _rounded(s.mean_ap), "mp": {str(k): _rounded(p) for k, p in s.precision.items()}}
        for level, s in scores.items()
    }


def _rounded(share: float) -> float | None:
    return None if math.isnan(share) else round(100 * share, 4)


def _settings(config: RetrievalConfig, other: Images | None) -> dict[str, Any]:
    return {
        "interpolation": "lanczos",
        "scales": SCALES if config.multi_scale else (1.0,),
        "crop_queries": config.crop_queries,
        "whiten": None
        if other is None
        else {"name": data_name(config.whiten or ""), "fingerprint": fingerprint(other)},
    }


def _notes(scores: Mapping[str, Score], num_queries: int) -> list[str]:
    """The queries that a level leaves out."""
    return [
        f"{level}: {num_queries - s.num_queries} of {num_queries} queries have no answer at this level and are left out"
        for level, s in scores.items()
        if s.num_queries < num_queries
    ]


PROTOCOL = Protocol("retrieval", 1, "retrieval, %", RetrievalConfig, measure, columns, check_ground_truth)
