"""The k-NN protocol: from weights and labelled images to accuracies with their floors (Caron et al. 2021)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nolabel.data.images import LabelledImages
from nolabel.data.names import printable
from nolabel.evals.classification.neighbours import (
    KS,
    TEMPERATURE,
    KNNResult,
    check_settings,
    knn,
    leave_one_out,
    raw_floor,
)
from nolabel.evals.protocol import EvalConfig, Folders, Measured, Protocol
from nolabel.evals.shared.cache import pooled
from nolabel.evals.shared.features import Pixels, embed, evaluation_crop, in_batches, raw_pixels, read_pixels
from nolabel.evals.shared.labelled import Roles, check_classes, roles, subset
from nolabel.evals.shared.reading import data_notes, read_roles
from nolabel.evals.shared.tables import Tables, describe_data, hold_out, make_tables
from nolabel.networks.backbones import Backbone
from nolabel.networks.precision import Precision
from nolabel.weights.load import Loaded

DEFAULT_K = 20  # "usually best" (Caron et al. 2021)


MAX_LEAVE_ONE_OUT = 5000


@dataclass(frozen=True)
class KNNConfig(EvalConfig):
    """Settings of the protocol; those of the paper, for weights trained at 224 px."""

    ks: tuple[int, ...] = KS
    """Numbers of neighbours."""
    temperature: float = TEMPERATURE
    """A neighbour votes with exp(cosine similarity / temperature)."""


class MonitorImages(NamedTuple):
    """Labelled images that a training run is watched with, decoded once."""

    raw: float
    """20-NN of their raw pixels in percent: what a network has to beat."""
    train: Pixels
    test: Pixels | None
    """None: leave one out."""


def measure(loaded: Loaded, data: str | Path, config: KNNConfig, folders: Folders) -> Measured:
    """Accuracies in percent of the k-NN classifier."""
    check_settings(config.ks, config.temperature)
    labelled = read_roles(data)
    parts = labelled if labelled.test else labelled._replace(train=subset(labelled.train, MAX_LEAVE_ONE_OUT))
    tables = make_tables(parts, partial(pooled, loaded, config=config, folder=folders.cache))
    return Measured(
        metrics=_percent(_classify(tables, config)) | _choose_k(tables, config),
        data=describe_data(parts, tables),
        settings={"ks": config.ks, "temperature": config.temperature},
        notes=[*_notes(tables, config, len(labelled.train.labels), parts.train), *data_notes(parts)],
        floor=partial(_floor, parts, config, folders.cache),
    )


def columns(metrics: Mapping[str, Any]) -> dict[str, float | str]:
    """Top-1 by k, for the table."""
    return {f"k = {k}": value for k, value in metrics["top1"].items()}


def monitor_images(
    splits: Mapping[str, LabelledImages],
    image_size: int,
    max_images: int | None = 5000,
    workers: int = 0,
    interpolation: str = "bicubic",
) -> MonitorImages:
    """Decode the images of `monitor`: at most `max_images` per split, of 3 * `image_size`^2 bytes each.

    `interpolation` is that of the views, as in the weights' config.json. Of val and test it is val that is watched.
    Raises DataError as `roles` does.
    """
    parts = roles(splits)
    test = parts.val or parts.test
    parts = parts._replace(train=subset(parts.train, max_images), val=None, test=test and subset(test, max_images))
    raw = make_tables(parts, partial(raw_pixels, workers=workers))
    crop = partial(evaluation_crop, size=image_size, interpolation=interpolation)
    return MonitorImages(
        raw=raw_floor(raw.train, raw.test, (DEFAULT_K,)).top1[DEFAULT_K],
        train=read_pixels(parts.train, crop, workers),
        test=parts.test and read_pixels(parts.test, crop, workers),
    )


def monitor(
    net: Backbone,
    images: MonitorImages,
    mean: Sequence[float],
    std: Sequence[float],
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
) -> float:
    """20-NN accuracy in percent of a network in training, whose modes and random states stay as they are."""
    ks = (DEFAULT_K,)
    train = embed(net, in_batches(images.train), mean, std, device, precision)
    if images.test is None:
        return leave_one_out(train, ks, device=device).top1[DEFAULT_K]
    test = embed(net, in_batches(images.test), mean, std, device, precision)
    return knn(train, test, ks, device=device).top1[DEFAULT_K]


def _classify(tables: Tables, config: KNNConfig) -> KNNResult:
    if tables.test is None:
        return leave_one_out(tables.train, config.ks, config.temperature, device=config.device)
    return knn(tables.train, tables.test, config.ks, config.temperature, device=config.device)


def _choose_k(tables: Tables, config: KNNConfig) -> dict[str, Any]:
    """The k that does best on val, or on a tenth of each class of train where val is what is reported."""
    train, val, where = tables.train, tables.val, "val"
    if tables.test is not None and val is None:
        (train, val), where = hold_out(train), "10 % of train"
    if val is None:
        return {"k": min(config.ks, key=lambda k: abs(k - DEFAULT_K)), "k_chosen_on": "nothing"}
    top1 = knn(train, val, config.ks, config.temperature, device=config.device).top1
    return {"k": max(config.ks, key=lambda k: (top1[k], -k)), "k_chosen_on": where}


def _floor(parts: Roles, config: KNNConfig, folder: Path | None, random: Loaded) -> dict[str, Any]:
    """Accuracies of raw pixels and of the untrained network."""
    raw = make_tables(parts._replace(val=None), partial(raw_pixels, workers=config.workers))
    pixels = raw_floor(raw.train, raw.test, config.ks, config.temperature, device=config.device)
    tables = make_tables(parts._replace(val=None), partial(pooled, random, config=config, folder=folder))
    return {"raw_pixels": _percent(pixels), "random_weights": _percent(_classify(tables, config))}


def _percent(result: KNNResult) -> dict[str, Any]:
    top1, top5 = ({str(k): round(value, 4) for k, value in top.items()} for top in (result.top1, result.top5))
    return {"top1": top1, "top5": top5}


def _notes(tables: Tables, config: KNNConfig, num_images: int, train: LabelledImages) -> list[str]:
    """Sentences that a reader of the numbers needs beside the settings."""
    notes = []
    num_train = len(tables.train.ids) - (tables.test is None)
    clipped = ", ".join(str(k) for k in config.ks if k > num_train)
    if clipped:
        notes.append(f"k = {clipped}: all {num_train} training images, there are no more")
    if len(train.labels) < num_images:
        notes.append(f"{len(train.labels)} of {num_images} images, evenly over the classes")
    counts = tables.train.labels.bincount(minlength=len(train.classes)).tolist()
    single = [printable(name) for name, count in zip(train.classes, counts, strict=True) if count == 1]
    if tables.test is None and single:
        notes.append(f"classes of one image, which can't be right: {', '.join(single)}")
    return notes


PROTOCOL = Protocol("knn", 1, "k-NN accuracy, %", KNNConfig, measure, columns, check_classes)
