"""Overlap of masks: the confusion matrix of a segmentation, and the Jaccard index of two masks."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

VOID = -1
"""The label of a pixel that counts for nothing."""


class MeanIoU(NamedTuple):
    """Scores in percent; None where no pixel counts."""

    miou: float | None
    """Mean over the classes that are in the truth or in the prediction."""
    accuracy: float | None
    """Share of the pixels that are right."""
    iou: tuple[float | None, ...]
    """One per class; None for a class that is in neither."""


def confusion_matrix(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """(K, K) int64 counts of pixels, truth by row; `predicted` and `truth` (...) hold classes, truth also VOID."""
    last = num_classes**2  # where void goes: quicker than to select what is known
    pairs = torch.where(truth == VOID, last, truth.long() * num_classes + predicted)
    return torch.bincount(pairs.flatten(), minlength=last + 1)[:last].view(num_classes, num_classes)


def mean_iou(confusion: Tensor) -> MeanIoU:
    """Intersection over union by class from a confusion matrix (K, K), summed over all images as in PASCAL VOC."""
    hits = confusion.diagonal().double()
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    iou = tuple(100 * float(h / u) if u else None for h, u in zip(hits, union, strict=True))
    there = [value for value in iou if value is not None]
    total = int(confusion.sum())
    return MeanIoU(
        sum(there) / len(there) if there else None,
        100 * float(hits.sum()) / total if total else None,
        iou,
    )


def rounded(scores: MeanIoU, names: tuple[str, ...]) -> dict[str, Any]:
    """For the result: rounded to 4 decimals, IoU by the name of the class."""
    return {
        "miou": _round(scores.miou),
        "accuracy": _round(scores.accuracy),
        "iou": {name: _round(value) for name, value in zip(names, scores.iou, strict=True)},
    }


def jaccard(predicted: Tensor, truth: Tensor, known: Tensor | None = None) -> Tensor:
    """Intersection over union of masks (..., H, W) bool, in 0..1; 1 where both are empty.

    Pixels that are not `known` (H, W) count for nothing.
    """
    if known is not None:
        predicted, truth = predicted & known, truth & known
    both = (predicted & truth).sum((-2, -1)).double()
    either = (predicted | truth).sum((-2, -1)).double()
    return torch.where(either > 0, both / either.clamp_min(1), torch.ones_like(both))


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
