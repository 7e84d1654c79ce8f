"""The k-NN protocol: from weights and labelled images to accuracies with their floors (Caron et al. 2021)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nolabel.data.images import LabelledImages, printable, scan_labelled
from nolabel.evals.classification.neighbours import (
    KS,
    TEMPERATURE,
    KNNResult,
    check_settings,
    knn,
    leave_one_out,
    raw_floor,
)
from nolabel.evals.protocol import EvalConfig, check_common, describe_weights, untrained
from nolabel.evals.shared.cache import cache_folder, pooled
from nolabel.evals.shared.features import Pixels, embed, evaluation_crop, in_batches, raw_pixels, read_pixels
from nolabel.evals.shared.labelled import Roles, roles, subset
from nolabel.evals.shared.results import write_result
from nolabel.evals.shared.tables import Tables, describe_data, hold_out, make_tables
from nolabel.networks.backbones import Backbone
from nolabel.weights.load import Loaded

VERSION = 1


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


def evaluate_knn(
    loaded: Loaded, data: str | Path, config: KNNConfig | None = None, out: Path | None = None
) -> dict[str, Any]:
    """Accuracies in percent of the k-NN classifier; docs/evals/knn.md explains the keys.

    With `out` the result is written there, and the durations beside it. Raises UsageError for settings and
    DataError for data that can't be used.
    """
    config = config or KNNConfig()
    check_common(config)
    check_settings(config.ks, config.temperature)
    times = [time.perf_counter()]
    found = roles(scan_labelled(data))
    parts = found if found.test else found._replace(train=subset(found.train, MAX_LEAVE_ONE_OUT))
    folder = cache_folder(loaded, config)
    tables = make_tables(parts, partial(pooled, loaded, config=config, folder=folder))
    metrics = _percent(_measure(tables, config)) | _choose_k(tables, config)
    times.append(time.perf_counter())
    floor = _floor(loaded, parts, config, folder) if config.floor else {}
    times.append(time.perf_counter())
    result = {
        "protocol": "knn",
        "version": VERSION,
        "metrics": metrics,
        "floor": floor,
        "settings": describe_weights(loaded, config) | {"ks": config.ks, "temperature": config.temperature},
        "data": describe_data(data, parts, tables),
        "seed": config.seed,
        "notes": _notes(tables, config, len(found.train.labels), parts.train),
    }
    if out is not None:
        seconds = {"weights": times[1] - times[0], "floor": times[2] - times[1]}
        write_result(out, result, {"seconds": seconds, "device": config.device, "workers": config.workers})
    return result


def columns(metrics: Mapping[str, Any]) -> dict[str, float | str]:
    """Top-1 by k, for the table."""
    return {f"k = {k}": value for k, value in metrics["top1"].items()}


def monitor_images(
    splits: Mapping[str, LabelledImages], image_size: int, max_images: int | None = 5000, workers: int = 0
) -> MonitorImages:
    """Decode what `monitor` needs: at most `max_images` of a split, of 3 * `image_size`^2 bytes each.

    Of val and test it is val that is watched. Raises DataError as `roles` does.
    """
    parts = roles(splits)
    test = parts.val or parts.test
    parts = parts._replace(train=subset(parts.train, max_images), val=None, test=test and subset(test, max_images))
    raw = make_tables(parts, partial(raw_pixels, workers=workers))
    crop = partial(evaluation_crop, size=image_size)
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
    precision: str = "fp32",
) -> float:
    """20-NN accuracy in percent of a network in training, whose modes and random states stay as they are."""
    ks = (DEFAULT_K,)
    train = embed(net, in_batches(images.train), mean, std, device, precision)
    if images.test is None:
        return leave_one_out(train, ks, device=device).top1[DEFAULT_K]
    test = embed(net, in_batches(images.test), mean, std, device, precision)
    return knn(train, test, ks, device=device).top1[DEFAULT_K]


def _measure(tables: Tables, config: KNNConfig) -> KNNResult:
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


def _floor(loaded: Loaded, parts: Roles, config: KNNConfig, folder: Path | None) -> dict[str, Any]:
    """The same numbers for raw pixels and for the same network with random weights."""
    raw = make_tables(parts._replace(val=None), partial(raw_pixels, workers=config.workers))
    pixels = raw_floor(raw.train, raw.test, config.ks, config.temperature, device=config.device)
    untrained_features = partial(pooled, untrained(loaded, config.seed), config=config, folder=folder)
    random = make_tables(parts._replace(val=None), untrained_features)
    return {"raw_pixels": _percent(pixels), "random_weights": _percent(_measure(random, config))}


def _percent(result: KNNResult) -> dict[str, Any]:
    top1, top5 = ({str(k): round(value, 4) for k, value in top.items()} for top in (result.top1, result.top5))
    return {"top1": top1, "top5": top5}


def _notes(tables: Tables, config: KNNConfig, num_found: int, train: LabelledImages) -> list[str]:
    """What a reader of the numbers has to know beside the settings."""
    notes = []
    num_train = len(tables.train.ids) - (tables.test is None)
    clipped = ", ".join(str(k) for k in config.ks if k > num_train)
    if clipped:
        notes.append(f"k = {clipped}: all {num_train} training images, there are no more")
    if len(train.labels) < num_found:
        notes.append(f"{len(train.labels)} of {num_found} images, evenly over the classes")
    counts = tables.train.labels.bincount(minlength=len(train.classes)).tolist()
    single = [printable(name) for name, count in zip(train.classes, counts, strict=True) if count == 1]
    if tables.test is None and single:
        notes.append(f"classes of one image, which can't be right: {', '.join(single)}")
    return notes
