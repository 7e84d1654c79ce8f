"""Checks during training: k-NN with labels, feature statistics and attention pictures of fixed images, the report."""

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from nolabel import files
from nolabel.config import resolved
from nolabel.data.bad_files import BadImage
from nolabel.data.decode import decode
from nolabel.data.images import Images, read
from nolabel.data.order import images_at
from nolabel.errors import NumericError
from nolabel.evals.classification import knn
from nolabel.evals.shared.features import Pixels, embed, in_batches
from nolabel.evals.shared.reading import report_splits
from nolabel.files import replacing
from nolabel.health.diagnosis import diagnose
from nolabel.health.facts import RunFacts, collect_facts
from nolabel.health.features import FeatureSignals, feature_signals
from nolabel.health.verdict import Diagnosis
from nolabel.networks.backbones import Backbone
from nolabel.plots.attention import snapshot
from nolabel.progress import report_line
from nolabel.report import report
from nolabel.runs import folder
from nolabel.training.events import optional_write, record_event
from nolabel.training.job import Job
from nolabel.views import normalize

NUM_PICTURES = 8


MAX_BYTES = 400_000_000  # of the decoded labelled images of one split


MIN_SAMPLE, MAX_SAMPLE = 256, 2048


MIN_CELLS = 7  # rows and columns of a map in a picture


class Monitor(NamedTuple):
    """The fixed images that a run is checked with, and the results so far."""

    labelled: knn.MonitorImages | None
    sample: Tensor
    """(N, 3, size, size) uint8 training images for the signals of `health/features.py`."""
    pictures: Tensor
    """(8, 3, side, side) uint8 training images for the maps, large enough to show something; fewer in small data."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device
    facts: RunFacts
    history: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    reported: list[str]
    """Alarms and notes that were reported, as `alarm KIND` or `note KIND`."""


def open_monitor(job: Job) -> Monitor:
    """Choose and decode the images; a resumed run remembers what it wrote."""
    config, size = job.config, job.config.method.image_size
    most = min(5000, MAX_BYTES // (3 * size * size))
    workers, interpolation = resolved(config.workers), job.method.views()[0].interpolation
    labelled = knn.monitor_images(job.labelled, size, most, workers, interpolation) if job.labelled else None
    if job.labelled:
        watched = next((split for split in ("val", "test") if split in job.labelled), "every image against all others")
        rest = ", test is not used while training" if {"val", "test"} <= job.labelled.keys() else ""
        report_splits(job.labelled, watched + rest)
    sample = _sample(job.stream.images, size, config.seed, _sample_size(job))
    pictures = _sample(job.stream.images, _picture_side(job), config.seed, NUM_PICTURES)
    written = folder.Run(job.out)
    reported = [f"{e['event']} {e.get('kind')}" for e in written.events() if e.get("event") in ("alarm", "note")]
    facts = collect_facts(
        vars(config.method),
        config.method.advice,
        job.method.backbone.num_features,
        config.optim.warmup_epochs,
        job.steps_per_epoch,
        job.total_steps,
        config.optim.lr,
        None if labelled is None else len((labelled.test or labelled.train).labels),
    )
    return Monitor(labelled, sample, pictures, config.mean, config.std, job.device, facts, written.metrics(), reported)


def evaluate_now(job: Job, images: Monitor, done: int) -> dict[str, Any]:
    """Write k-NN, feature signals and a picture of the present network to the run folder; return what to show."""
    net = job.method.backbone
    record: dict[str, Any] = {}
    with optional_write("eval/attention"):
        _picture(images, net, job.out / "eval" / "attention" / f"step-{done:08d}.webp")
    try:
        if images.labelled is not None:
            accuracy = knn.monitor(net, images.labelled, images.mean, images.std, images.device)
            record = {"knn": accuracy}
            if done == 0:
                record |= {"knn_untrained": accuracy, "knn_raw": images.labelled.raw}
        if len(images.sample) > 1:
            record |= _features(images, net)
    except NumericError:  # features that are not finite end no training: `health/diagnosis.py` reports them
        record |= dict.fromkeys(FeatureSignals._fields, math.nan)
    if done == 0:
        record |= {"distinct_images": _distinct(images.sample)}
    written = {"step": done, "epoch": done / job.steps_per_epoch, **record}
    images.history.append(written)
    with optional_write("metrics.jsonl"):
        files.append_jsonl(job.out / "metrics.jsonl", written)
    record_event(job, "eval", step=done, **record)
    if done == job.total_steps:  # no log line comes that would judge the last evaluation
        judge_health(job, images)
    with optional_write("report.html"):
        report(folder.Run(job.out))
    return record


def judge_health(job: Job, images: Monitor) -> Diagnosis:
    """Diagnose the run by all lines of metrics so far; report and record the first alarm and note of each kind.

    The verdict goes to status.json.
    """
    health, step = diagnose(images.history, images.facts), images.history[-1]["step"]
    kind = "alarm" if health.alarm else "note"
    if health.words and f"{kind} {health.kind}" not in images.reported:
        images.reported.append(f"{kind} {health.kind}")
        report_line(f"{'warning' if health.alarm else 'note'}: {health.words}")
        record_event(job, kind, step=step, kind=health.kind, words=health.words)
    with optional_write("status.json"):
        folder.write_status(job.out, "running", step, health={"kind": health.kind, "words": health.words})
    return health


def _features(images: Monitor, net: Backbone) -> dict[str, float]:
    labels = torch.zeros(len(images.sample), dtype=torch.int64)
    pixels = Pixels(images.sample, labels, ("",) * len(images.sample))
    table = embed(net, in_batches(pixels), images.mean, images.std, images.device)
    return feature_signals(table.features)._asdict()


def _sample_size(job: Job) -> int:
    """Number of images that costs about 0.5 % of the training between two evaluations, as much as pictures and report.

    An image in training costs at least four forward passes: one of the teacher, and three for forward and backward.
    """
    fitting = 0.005 * 4 * job.config.batch_size * resolved(job.config.eval_every)
    size = job.config.method.image_size
    return int(min(max(fitting, MIN_SAMPLE), MAX_SAMPLE, MAX_BYTES // (3 * size * size)))


def _picture_side(job: Job) -> int:
    """The size of the views, or as much more as a map of 7 x 7 takes."""
    net, size = job.method.backbone, job.config.method.image_size
    side: int = max(size, MIN_CELLS * net.stride)
    return side if net.takes(side) else size


def _distinct(sample: Tensor) -> float:
    """Share of the images that differ from all before them."""
    return len({hashlib.sha256(image.numpy().tobytes()).digest() for image in sample}) / max(len(sample), 1)


def _picture(m: Monitor, backbone: Backbone, path: Path) -> None:
    """Save the contact sheet of this moment; do nothing where no image could be read."""
    if not len(m.pictures):
        return
    x = normalize(m.pictures, m.mean, m.std).to(m.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = snapshot(backbone, x, m.mean, m.std)
    with replacing(path) as file:
        picture.save(file, "WEBP", quality=80)


def _sample(images: Images, size: int, seed: int, number: int) -> Tensor:
    chosen = []
    for place in range(len(images.names)):
        (index,) = images_at(range(place, place + 1), len(images.names), seed, 0)
        try:
            image = decode(read(images, index), limits=images.limits)
        except BadImage:
            continue
        image = F.resize(image, [size], antialias=True)
        chosen.append(F.center_crop(image, [size, size]))
        if len(chosen) == number:
            break
    return torch.stack(chosen) if chosen else torch.empty(0, 3, size, size, dtype=torch.uint8)
