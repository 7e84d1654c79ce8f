"""What is looked at while training: k-NN with labels, the attention of eight fixed images, the report."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from nolabel.backbones import Backbone
from nolabel.config import known
from nolabel.data.decode import BadImage, decode
from nolabel.data.images import Images, read
from nolabel.data.loader import order
from nolabel.evals import knn
from nolabel.job import Job
from nolabel.plots.attention import snapshot
from nolabel.views import normalize

NUM_PICTURES = 8
MAX_BYTES = 400_000_000  # of the decoded labelled images of one split


class Monitor(NamedTuple):
    """The fixed images that a run is looked at with."""

    labelled: knn.MonitorImages | None
    pictures: Tensor
    """(8, 3, size, size) uint8, or fewer where the data hold fewer."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device


def monitor(job: Job) -> Monitor:
    """Choose and decode the images."""
    config, size = job.config, job.config.method.image_size
    most = min(5000, MAX_BYTES // (3 * size * size))
    labelled = knn.monitor_images(job.labelled, size, most, known(config.workers)) if job.labelled else None
    pictures = _pictures(job.stream.images, size, config.seed)
    return Monitor(labelled, pictures, config.mean, config.std, job.device)


def accuracy(m: Monitor, backbone: Backbone) -> float | None:
    """20-NN of the backbone in percent, None without labels."""
    return None if m.labelled is None else knn.monitor(backbone, m.labelled, m.mean, m.std, m.device)


def picture(m: Monitor, backbone: Backbone, path: Path) -> None:
    """Save the contact sheet of this moment; nothing where no image could be read."""
    if not len(m.pictures):
        return
    x = normalize(m.pictures, m.mean, m.std).to(m.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    snapshot(backbone, x, m.mean, m.std).save(path, quality=80)


def _pictures(images: Images, size: int, seed: int) -> Tensor:
    chosen = []
    for index in order(len(images.names), seed, 0).tolist():
        try:
            image = decode(read(images, index))
        except BadImage:
            continue
        image = F.resize(image, [size], antialias=True)
        chosen.append(F.center_crop(image, [size, size]))
        if len(chosen) == NUM_PICTURES:
            break
    return torch.stack(chosen) if chosen else torch.empty(0, 3, size, size, dtype=torch.uint8)
