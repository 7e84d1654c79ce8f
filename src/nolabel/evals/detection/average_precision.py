"""Average precision of boxes and masks by COCO's rules, computed by faster-coco-eval (extra `detection`)."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nolabel.errors import DataError, UsageError
from nolabel.evals.detection.boxes import Objects

MISSING = "Detection needs faster-coco-eval: pip install 'nolabel[detection]'."


class Found(NamedTuple):
    """Boxes that a detector finds in one image."""

    boxes: Tensor
    """(N, 4) float32 in pixels: left, top, right, bottom."""
    labels: Tensor
    """(N,) int64 positions in the classes."""
    scores: Tensor
    """(N,) float32."""
    masks: list[dict[str, Any]] | None = None
    """COCO's run lengths."""


def average_precision(
    truth: Sequence[Objects],
    found: Sequence[Found],
    sizes: Sequence[tuple[int, int]],
    num_classes: int,
    masks: bool = False,
) -> dict[str, Any]:
    """AP (mean over IoU 0.5 to 0.95), AP50 and AP75 in percent, rounded, and AP by class; None without an object.

    `sizes` are (height, width). At most 100 boxes an image count. Raises UsageError without the extra.
    """
    coco, evaluator = _library()
    images = [{"id": i + 1, "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
    categories = [{"id": c + 1, "name": str(c + 1)} for c in range(num_classes)]
    annotations = [a for i, one in enumerate(truth) for a in _truth(one, i + 1, sizes[i], masks)]
    for i, annotation in enumerate(annotations):
        annotation["id"] = i + 1
    known = coco({"images": images, "categories": categories, "annotations": annotations})
    run = evaluator(known, known.loadRes(_answers(found, masks)), iouType="segm" if masks else "bbox")
    run.evaluate()
    run.accumulate()
    precision = torch.as_tensor(run.eval["precision"])[..., 0, -1]  # IoU, recall, class; all areas, 100 boxes
    return {
        "ap": _mean(precision),
        "ap50": _mean(precision[0]),
        "ap75": _mean(precision[5]),
        "by_class": [_mean(precision[:, :, c]) for c in range(num_classes)],
    }


def encode_mask(mask: Tensor) -> dict[str, Any]:
    """The run lengths of a mask (H, W) bool."""
    runs: dict[str, Any] = _mask_library().encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return runs


def decode_outline(outline: Any, size: tuple[int, int], where: str) -> Tensor:
    """The mask (H, W) bool of COCO's polygons or run lengths. Raises DataError for what is neither."""
    try:
        return torch.from_numpy(_mask_library().decode(_runs(outline, size))).bool()
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise DataError(f"An outline of {where} can't be read ({error}): expected polygons or run lengths.") from None


def check_library() -> None:
    """UsageError where faster-coco-eval is not installed."""
    _library()


def _truth(one: Objects, image: int, size: tuple[int, int], masks: bool) -> list[dict[str, Any]]:
    rows = []
    for i, ((x0, y0, x1, y1), label) in enumerate(zip(one.boxes.tolist(), one.labels.tolist(), strict=True)):
        row = {
            "image_id": image,
            "category_id": label + 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "iscrowd": int(one.ignored[i]),
        }
        if masks:
            assert one.outlines is not None
            row["segmentation"] = _text(_runs(one.outlines[i], size))
        rows.append(row)
    return rows


def _answers(found: Sequence[Found], masks: bool) -> list[dict[str, Any]]:
    rows = []
    for i, one in enumerate(found):
        for k, ((x0, y0, x1, y1), label) in enumerate(zip(one.boxes.tolist(), one.labels.tolist(), strict=True)):
            row = {"image_id": i + 1, "category_id": label + 1, "score": float(one.scores[k])}
            if masks:
                assert one.masks is not None
                row["segmentation"] = _text(one.masks[k])
            else:
                row["bbox"] = [x0, y0, x1 - x0, y1 - y0]
            rows.append(row)
    return rows


def _runs(outline: Any, size: tuple[int, int]) -> dict[str, Any]:
    library = _mask_library()
    if isinstance(outline, Mapping):
        compressed = not isinstance(outline["counts"], list)
        runs: dict[str, Any] = dict(outline) if compressed else library.frPyObjects(dict(outline), *size)
        return runs
    merged: dict[str, Any] = library.merge(library.frPyObjects([[float(v) for v in p] for p in outline], *size))
    return merged


def _text(runs: Mapping[str, Any]) -> dict[str, Any]:
    counts = runs["counts"]
    return {"size": list(runs["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def _mean(precision: Tensor) -> float | None:
    """Mean over what has a precision (-1: no object of the class)."""
    there = precision[precision > -1]
    return round(100 * float(there.double().mean()), 4) if len(there) else None


def _library() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise UsageError(MISSING) from None
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    return COCO, COCOeval_faster


def _mask_library() -> Any:
    try:
        from faster_coco_eval.core import mask
    except ImportError:
        raise UsageError(MISSING) from None
    return mask
