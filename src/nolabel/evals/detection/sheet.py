"""A picture of what a detector finds, beside what there is."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_bounding_boxes, save_image

from nolabel.errors import StorageError
from nolabel.evals.detection.average_precision import Found
from nolabel.evals.detection.boxes import Annotated, Boxed, read_annotated
from nolabel.files import replacing

SIZE = 320
"""Longer side of each image in pixels."""


ROWS = 8


COLORS = ("gold", "lime", "cyan", "orange", "violet", "tomato", "white", "dodgerblue")


BEST = 10
"""Boxes of an image that are drawn, those of the highest scores."""


def write_sheet(path: Path, boxed: Boxed, examples: Sequence[Annotated], found: Sequence[Found]) -> None:
    """The first images, each with its boxes to the left and, with scores in percent, those found to the right.

    The most certain boxes are drawn, however uncertain they are. Raises StorageError.
    """
    rows = []
    for one, answer in zip(examples[:ROWS], found[:ROWS], strict=True):
        picture, objects = read_annotated(boxed, one)
        best = answer.scores.argsort(descending=True)[:BEST]
        there = _drawn(picture, objects.boxes, objects.labels, boxed.classes)
        scores = answer.scores[best].tolist()
        seen = _drawn(picture, answer.boxes[best], answer.labels[best], boxed.classes, scores)
        rows.append(torch.cat([there, seen], 2))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            save_image(torch.cat(rows, 1).float() / 255, file, "PNG")
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}). Choose another --out.") from error


def _drawn(
    picture: Tensor, boxes: Tensor, labels: Tensor, classes: Sequence[str], scores: Sequence[float] = ()
) -> Tensor:
    """A picture (3, H, W) uint8, SIZE pixels long, with named boxes, at the left of a white strip (3, h, SIZE + 4)."""
    scale = SIZE / max(picture.shape[1:])
    small = F.resize(picture, [max(1, round(side * scale)) for side in picture.shape[1:]], antialias=True)
    names = [classes[label] for label in labels.tolist()]
    if scores:
        names = [f"{name} {100 * score:.0f}" for name, score in zip(names, scores, strict=True)]
    if names:
        colors = [COLORS[label % len(COLORS)] for label in labels.tolist()]
        small = draw_bounding_boxes(small, boxes * scale, names, colors, width=2, fill_labels=True)
    strip = torch.full((3, small.shape[1] + 4, SIZE + 4), 255, dtype=torch.uint8)
    strip[:, : small.shape[1], : small.shape[2]] = small
    return strip
