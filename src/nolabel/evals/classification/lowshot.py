"""The low-shot protocol: logistic regression on the features of a few labelled images (Assran et al. 2022)."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from nolabel import console
from nolabel.data.images import LabelledImages
from nolabel.errors import DataError, UsageError
from nolabel.evals.classification.logistic import TOLERANCE, center_rows, fit, unit_rows
from nolabel.evals.classification.shots import draw_rows, read_lists
from nolabel.evals.protocol import EvalConfig, Folders, Measured, Protocol
from nolabel.evals.shared.cache import features
from nolabel.evals.shared.features import FeatureTable, raw_pixels
from nolabel.evals.shared.labelled import Roles
from nolabel.evals.shared.pieces import Layout, pieces_of
from nolabel.evals.shared.reading import data_notes
from nolabel.evals.shared.tables import Tables, check_splits, describe_data, make_tables, roles_with_test, tenth
from nolabel.weights.load import Loaded

PREPROCESS: dict[str, Callable[[Tensor], Tensor]] = {"center": center_rows, "unit": unit_rows, "none": lambda x: x}


@dataclass(frozen=True)
class LowshotConfig(EvalConfig):
    """Settings of the protocol; MSN's, but for the features, which are those of k-NN (see `before_norm`)."""

    shots: tuple[int, ...] = (1, 2, 5)
    """Images per class."""
    fractions: tuple[float, ...] = (0.01, 0.1)
    """Shares of train, evenly over the classes."""
    splits: int = 3
    """Random choices of these images; the results are mean and standard deviation over them."""
    files: tuple[Path, ...] = ()
    """Instead: lists of image names, one file per split."""
    strengths: tuple[float, ...] = (2.5e-4, 2.5e-3, 0.025, 0.075, 0.25, 0.75, 2.5, 7.5, 25.0)
    """Regularisations tried (MSN's lambda; scikit-learn's 1 / C)."""
    preprocess: Literal["center", "unit", "none"] = "center"
    """Change of each feature vector by itself: minus its own mean, then length 1; only length 1; nothing."""
    before_norm: bool = False
    """The class token before the final norm of a plain ViT, as MSN has it."""
    blocks: int = 1
    """Last blocks whose class tokens are joined."""


class Case(NamedTuple):
    """One row of the result."""

    name: str
    splits: list[Tensor]
    """Rows of train that are learned from."""


def measure(loaded: Loaded, data: str | Path, config: LowshotConfig, folders: Folders) -> Measured:
    """Top-1 in percent by number of labels, mean and spread over splits."""
    _check(config)
    parts = roles_with_test(data)
    tables = make_tables(parts, partial(_features, loaded, config, folders.cache))
    cases, held, notes = _cases(tables.train, parts, config, val=tables.val is not None)
    score = partial(_score_cases, cases=cases, held=held, config=config)
    return Measured(
        metrics=score(tables),
        data=describe_data(parts, tables),
        settings=_describe(config, tables),
        notes=[*notes, *data_notes(parts)],
        floor=lambda random: {
            name: score(table) for name, table in _floors(random, parts, config, folders.cache).items()
        },
    )


def columns(metrics: Mapping[str, Any]) -> dict[str, float | str]:
    """Mean ± standard deviation by number of labels, for the table."""

    def cell(case: Mapping[str, Any]) -> str:
        return f"{case['top1']:.1f}" + ("" if case["std"] is None else f"±{case['std']:.1f}")

    return {name: cell(case) for name, case in metrics.items()}


def _check(config: LowshotConfig) -> None:
    if config.preprocess not in PREPROCESS:
        raise UsageError(f"There is no preprocessing {config.preprocess!r}: use one of {', '.join(PREPROCESS)}.")
    if not config.strengths or not all(0 < s < float("inf") for s in config.strengths):
        raise UsageError("strengths must be numbers above 0.")
    if not (config.shots or config.fractions or config.files):
        raise UsageError("There is nothing to learn from: give shots, fractions or files.")
    if any(k < 1 for k in config.shots) or any(not 0 < f <= 1 for f in config.fractions) or config.splits < 1:
        raise UsageError("shots and splits are numbers from 1 up, fractions are above 0 and at most 1.")


def _features(loaded: Loaded, config: LowshotConfig, folder: Path | None, part: LabelledImages) -> FeatureTable:
    pieces = pieces_of(loaded.backbone, Layout(config.blocks), config.before_norm)
    return features(loaded, part, pieces, config, folder).table(pieces)


def _floors(random: Loaded, parts: Roles, config: LowshotConfig, folder: Path | None) -> dict[str, Tables]:
    """Raw pixels, minus the mean training image, and the features of the untrained network."""
    raw = make_tables(parts, partial(raw_pixels, workers=config.workers))
    mean = raw.train.features.mean(0)
    centred = Tables(*(t and t._replace(features=t.features - mean) for t in raw))  # type: ignore[arg-type]
    return {
        "raw_pixels": centred,
        "random_weights": make_tables(parts, partial(_features, random, config, folder)),
    }


def _cases(train: FeatureTable, parts: Roles, config: LowshotConfig, val: bool) -> tuple[list[Case], Tensor, list[str]]:
    """The cases; the rows of train (N,) bool that the regularisation is chosen on; notes for the reader."""
    notes: list[str] = []
    held = torch.zeros(len(train.ids), dtype=torch.bool)
    lists = read_lists(config.files, train, parts.train.classes)
    if not val and len(config.strengths) > 1:
        held = tenth(train, least=1)
        for rows in lists:
            held[rows] = False
        if not held.any():
            raise DataError(
                "No image of train is left to choose the regularisation on.\n"
                "Give one, for example --strengths 0.075, or a val/ beside test/."
            )
    if lists:
        return [Case("files", lists)], held, notes
    open_rows = (~held).nonzero()[:, 0]
    labels, num_classes = train.labels[open_rows], len(parts.train.classes)
    fewest = int(labels.bincount(minlength=num_classes).min())
    amounts = [(f"{k} img", k * num_classes) for k in config.shots]
    amounts += [(f"{100 * f:g} %", int(f * len(train.ids) + 1e-9)) for f in config.fractions]
    cases = []
    for name, amount in amounts:
        if amount < num_classes:
            notes.append(f"{name} skipped: {amount} images for {num_classes} classes")
            continue
        if amount > fewest * num_classes:
            notes.append(f"{name}: classes with fewer images give all they have")
        splits = [open_rows[draw_rows(labels, amount, config.seed, split)] for split in range(config.splits)]
        cases.append(Case(name, splits))
    if not cases:
        raise DataError(f"Nothing is left to measure: {'; '.join(notes)}. Give more images or --shots 1.")
    return cases, held, notes


def _score_cases(tables: Tables, cases: Sequence[Case], held: Tensor, config: LowshotConfig) -> dict[str, Any]:
    """Accuracies by case; the strength of a case is the best of its splits' mean on val or on the rows held out."""
    device = torch.device("cpu" if torch.device(config.device).type == "mps" else config.device)  # mps has no float64
    prepare = PREPROCESS[config.preprocess]

    def ready(table: FeatureTable) -> tuple[Tensor, Tensor]:
        return prepare(table.features.double()).to(device), table.labels.to(device)

    x, labels = ready(tables.train)
    assert tables.test is not None
    test = ready(tables.test)
    chooser = ready(tables.val) if tables.val else (x[held.to(device)], labels[held.to(device)])
    num_classes = int(labels.max()) + 1
    metrics = {}
    for case in cases:
        chosen, tested = [], []
        for rows in case.splits:
            rows = rows.to(device)
            fitted = fit(x[rows], labels[rows], num_classes, config.strengths)
            rough = [f.gap for f in fitted if f.gap > TOLERANCE]
            if rough:
                console.note(f"{case.name}: solved to {max(rough):.1e} instead of {TOLERANCE:g}")
            chosen.append([_top1(f.weight, *chooser) for f in fitted])
            tested.append([_top1(f.weight, *test) for f in fitted])
        means = [statistics.fmean(column) for column in zip(*chosen, strict=True)]
        best = max(range(len(means)), key=lambda i: (means[i], config.strengths[i])) if len(means) > 1 else 0
        metrics[case.name] = _row(case, [s[best] for s in tested], best, means, tested, config)
    return metrics


def _row(
    case: Case,
    top1: Sequence[float],
    best: int,
    means: Sequence[float],
    tested: Sequence[Sequence[float]],
    config: LowshotConfig,
) -> dict[str, Any]:
    swept = [
        {"strength": s, "chosen_by": round(mean, 4), "top1": round(statistics.fmean(column), 4)}
        for s, mean, column in zip(config.strengths, means, zip(*tested, strict=True), strict=True)
    ]
    return {
        "top1": round(statistics.fmean(top1), 4),
        "std": round(statistics.stdev(top1), 4) if len(top1) > 1 else None,
        "splits": [round(value, 4) for value in top1],
        "images": [len(rows) for rows in case.splits],
        "strength": config.strengths[best],
        "sweep": swept if len(swept) > 1 else [],
    }


def _top1(weight: Tensor, x: Tensor, labels: Tensor) -> float:
    """Percent; of equally scored classes the one of lower id wins. 0 without images."""
    if not len(labels):
        return 0.0
    scores = x @ weight.T
    first = scores >= scores.amax(1, keepdim=True)
    return 100 * float((first.int().argmax(1) == labels).double().mean())


def _describe(config: LowshotConfig, tables: Tables) -> dict[str, Any]:
    where = "val" if tables.val else "10 % of train"
    return {
        "preprocess": config.preprocess,
        "features": "before the final norm" if config.before_norm else "final",
        "blocks": config.blocks,
        "strengths": config.strengths,
        "strength_chosen_on": where if len(config.strengths) > 1 else "nothing",
        "files": [path.name for path in config.files],
    }


PROTOCOL = Protocol("lowshot", 2, "low-shot top-1, %", LowshotConfig, measure, columns, check_splits)
