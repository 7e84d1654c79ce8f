"""Choice of the best setting of a linear probe on images that are not the test images; then its number on these."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nolabel.errors import DataError, NumericError
from nolabel.evals.classification.probes import Heads, Plan, score, table_batches, train_heads
from nolabel.evals.shared.features import FeatureTable
from nolabel.evals.shared.pieces import Layout
from nolabel.evals.shared.tables import tenth

Batches = Iterable[tuple[Mapping[Layout, Tensor], Tensor]]


class Samples(NamedTuple):
    """The images of one split as the features of each layout."""

    features: dict[Layout, Tensor]
    """(N, D) each."""
    labels: Tensor
    """(N,) int64."""
    ids: tuple[str, ...]

    def some(self, rows: Tensor) -> "Samples":
        """Those of the given row numbers."""
        features = {layout: x[rows] for layout, x in self.features.items()}
        return Samples(features, self.labels[rows], tuple(self.ids[i] for i in rows.tolist()))


class Probe(NamedTuple):
    """All that a sweep needs."""

    train: Samples
    val: Samples | None
    """Settings are chosen on it; None: on a fixed tenth of each class of `train`."""
    test: Samples
    num_classes: int
    batches: Callable[[Tensor, Sequence[Layout], Plan], Batches] | None = None
    """Training batches of the images of given row numbers, one per step; None: of the features in `train`."""


class Best(NamedTuple):
    """The best setting of a sweep."""

    layout: Layout
    lr: float
    top1: float
    """Percent on test."""
    top5: float
    chosen_on: str
    retrained: bool
    """The head was trained again on all of train, after its setting had been chosen on a part of it."""
    tried: list[dict[str, Any]]
    """Every setting with its top-1 on what it was chosen on."""
    head: Heads
    steps: int
    """Steps that the head was trained for."""


def sweep(probe: Probe, layouts: Sequence[Layout], lrs: Sequence[float], plan: Callable[[int], Plan]) -> Best:
    """Train a head for every layout and learning rate side by side, and test the best; `plan` is that for N images.

    Of equally good settings the one of the earlier layout, then of the lower rate is taken. Raises DataError where
    there is nothing to choose on, NumericError where no head stays finite.
    """
    rows = torch.arange(len(probe.train.ids))
    if len(layouts) * len(lrs) == 1:
        heads, steps = _train(probe, rows, layouts, lrs, plan)
        return _best(probe, heads[layouts[0]], layouts[0], lrs[0], "nothing", [], steps)
    val, chosen_on, learned = probe.val, "val", rows
    if val is None:
        held = tenth(FeatureTable(torch.empty(0), probe.train.labels.cpu(), probe.train.ids), least=1)
        if not held.any():
            raise DataError(
                "Every class of train has one image: there is nothing to choose the best setting on.\n"
                "Give one learning rate and one layout, for example --lrs 0.1 --blocks 1."
            )
        val, chosen_on, learned = probe.train.some(rows[held]), "10 % of train", rows[~held]
    heads, steps = _train(probe, learned, layouts, lrs, plan)
    tried = [
        {"blocks": layout.blocks, "mean_patches": layout.mean_patches, "lr": lr, "top1": _rounded(top1)}
        for layout, trained in heads.items()
        for lr, top1 in zip(lrs, score(trained, val.features[layout], val.labels).top1, strict=True)
    ]
    best = max(range(len(tried)), key=lambda i: (-1.0 if tried[i]["top1"] is None else tried[i]["top1"], -i))
    if tried[best]["top1"] is None:
        raise NumericError("Every classifier of the sweep became infinite: give smaller --lrs.")
    layout, lr = layouts[best // len(lrs)], lrs[best % len(lrs)]
    head = heads[layout].only(best % len(lrs))
    if probe.val is None:
        again, steps = _train(probe, rows, [layout], [lr], plan)
        head = again[layout]
    return _best(probe, head, layout, lr, chosen_on, tried, steps)


def _train(
    probe: Probe, rows: Tensor, layouts: Sequence[Layout], lrs: Sequence[float], plan: Callable[[int], Plan]
) -> tuple[dict[Layout, Heads], int]:
    how = plan(len(rows))
    device = probe.train.labels.device
    widths = {layout: probe.train.features[layout].shape[1] for layout in layouts}
    heads = {
        layout: Heads(how.head, len(lrs), probe.num_classes, dim, how.seed).to(device) for layout, dim in widths.items()
    }
    if probe.batches is None:
        whole = len(rows) == len(probe.train.ids)
        train = probe.train if whole else probe.train.some(rows)
        batches: Batches = table_batches({layout: train.features[layout] for layout in layouts}, train.labels, how)
    else:
        batches = probe.batches(rows, layouts, how)
    train_heads(heads, lrs, batches, how)
    return heads, how.steps


def _best(
    probe: Probe,
    head: Heads,
    layout: Layout,
    lr: float,
    chosen_on: str,
    tried: list[dict[str, Any]],
    steps: int,
) -> Best:
    scores = score(head, probe.test.features[layout], probe.test.labels)
    top1, top5 = _rounded(scores.top1[0]), _rounded(scores.top5[0])
    if top1 is None or top5 is None:
        raise NumericError(f"The classifier with learning rate {lr:g} became infinite: give smaller --lrs.")
    return Best(layout, lr, top1, top5, chosen_on, bool(tried) and probe.val is None, tried, head, steps)


def _rounded(percent: float) -> float | None:
    return None if percent != percent else round(percent, 4)
