"""The fine-tuning protocol: the whole network trained on labels, all of them or a share (DeiT's recipe)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nolabel import console
from nolabel.data.images import LabelledImages
from nolabel.data.names import printable
from nolabel.errors import DataError, StorageError
from nolabel.evals.classification.classifier import Plan, accuracy, train_classifier
from nolabel.evals.classification.finetune_settings import (
    FinetuneConfig,
    Published,
    check_finetune,
    make_plan,
    published,
)
from nolabel.evals.classification.shots import draw_rows, read_lists
from nolabel.evals.protocol import EvalConfig, Folders, Measured, Protocol
from nolabel.evals.shared.features import FeatureTable, decoded
from nolabel.evals.shared.reading import data_notes
from nolabel.evals.shared.tables import check_splits, describe_data, make_tables, pick, roles_with_test, tenth, usable
from nolabel.files import write_json
from nolabel.progress import progress
from nolabel.weights.load import Loaded
from nolabel.weights.timm import save_weights


class Case(NamedTuple):
    """One row of the result."""

    name: str
    rows: Tensor
    """Rows of train that are learned from."""


def measure(loaded: Loaded, data: str | Path, config: FinetuneConfig, folders: Folders) -> Measured:
    """Top-1 and top-5 in percent of the fine-tuned network; files: the trained networks.

    Raises NumericError when training diverges.
    """
    check_finetune(config)
    parts = roles_with_test(data)
    tables = make_tables(parts, lambda part: readable(part, config))
    train = usable(parts.train, tables.train)
    cases, notes = choose_cases(tables.train, train, config)
    paper = published(loaded, config)
    trainer = Trainer(train, parts.val, parts.test, tables.train, config, paper)
    return Measured(
        metrics={case.name: trainer.run(loaded, case, folders.files) for case in cases},
        data=describe_data(parts, tables),
        settings={"schedule": config.schedule} | paper.recipe._asdict(),
        notes=[*notes, *data_notes(parts)],
        floor=lambda random: {"random_weights": {case.name: trainer.run(random, case, None) for case in cases}},
    )


def columns(metrics: Mapping[str, Any]) -> dict[str, float | str]:
    """Top-1 by what was learned from, for the table."""
    return {f"{name} top-1": row["top1"] for name, row in metrics.items()}


class Trainer(NamedTuple):
    """Everything a training needs beside the network and the case."""

    train: LabelledImages
    """Those that can be read, in the order of `table`."""
    val: LabelledImages | None
    test: LabelledImages | None
    table: FeatureTable
    config: FinetuneConfig
    paper: Published

    def run(self, loaded: Loaded, case: Case, folder: Path | None) -> dict[str, Any]:
        """Train on the rows of a case, choose the learning rate where there are several, and test once."""
        lrs = self.config.lrs or (self.paper.lr,)
        lr, tried, chosen_on = lrs[0], list[dict[str, float]](), "nothing"
        if len(lrs) > 1:
            lr, tried, chosen_on = self._choose(loaded, case, lrs)
        net, plan = self._train(loaded, case.rows, lr, case.name)
        assert self.test is not None
        score = accuracy(net, loaded, self.test, self.config)
        if folder is not None:
            self._save(net, loaded, folder / case.name.replace(" %", "-percent"))
        about = {"images": len(case.rows), "lr": lr, "chosen_on": chosen_on, "sweep": tried}
        return {**score._asdict(), **about, "plan": plan._asdict()}

    def _choose(self, loaded: Loaded, case: Case, lrs: tuple[float, ...]) -> tuple[float, list[dict[str, float]], str]:
        """The rate that does best on val, or on a tenth of the labels of the case; of equals the lower one."""
        rows, val, where = case.rows, self.val, "val"
        if val is None:
            held = tenth(_take(self.table, rows), least=1)
            if not held.any():
                raise DataError("One image per class leaves none to choose the learning rate on: give one, --lrs 5e-4.")
            rows, val, where = rows[~held], pick(self.train, rows[held].tolist()), "10 % of train"
        tried = []
        for lr in lrs:
            net, _ = self._train(loaded, rows, lr, f"{case.name}, lr {lr:g}")
            tried.append({"lr": lr, "top1": accuracy(net, loaded, val, self.config).top1})
        return max(tried, key=lambda one: (one["top1"], -one["lr"]))["lr"], tried, where

    def _train(self, loaded: Loaded, rows: Tensor, lr: float, name: str) -> tuple[Any, Plan]:
        plan = make_plan(self.config, self.paper, len(rows), lr)
        epochs = plan.steps / plan.steps_per_epoch
        console.note(
            f"finetune {loaded.name}, {name}: {len(rows)} images, {epochs:g} epochs of {plan.steps_per_epoch} steps, "
            f"{plan.batch_size} images per step, learning rate {plan.lr:.3g}",
        )
        some = pick(self.train, rows.tolist())
        with progress(0, plan.steps) as report:
            return train_classifier(loaded, some, self.paper.recipe, plan, self.config, report), plan

    def _save(self, net: Any, loaded: Loaded, folder: Path) -> None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            size = self.config.image_size or loaded.image_size
            save_weights(net, folder, size, loaded.mean, loaded.std, loaded.interpolation, loaded.limits)
            write_json(folder / "classes.json", [printable(name) for name in self.train.classes])
        except OSError as error:
            raise StorageError(f"{folder} cannot be written ({error.strerror}). Choose another --out.") from error


def choose_cases(train: FeatureTable, labelled: LabelledImages, config: FinetuneConfig) -> tuple[list[Case], list[str]]:
    """The cases, and notes for the reader. A share below one image per class is left out."""
    notes, num_classes = list[str](), len(labelled.classes)
    if config.files:
        lists = read_lists(config.files, train, labelled.classes)
        return [Case(path.stem, rows) for path, rows in zip(config.files, lists, strict=True)], notes
    cases = []
    for fraction in config.fractions:
        name, amount = f"{100 * fraction:g} %", int(fraction * len(train.ids) + 1e-9)
        if amount < num_classes:
            notes.append(f"{name} skipped: {amount} images for {num_classes} classes")
            continue
        every = torch.arange(len(train.ids))
        cases.append(Case(name, every if fraction == 1 else draw_rows(train.labels, amount, config.seed, 0)))
    if not cases:
        raise DataError(f"Nothing is left to learn from: {'; '.join(notes)}. Give more images or larger --fractions.")
    return cases, notes


def readable(part: LabelledImages, config: EvalConfig) -> FeatureTable:
    """Ids and labels of the images that can be read, each decoded once; no features."""
    batches = list(decoded(part, _nothing, 64, config.workers))
    labels = torch.cat([batch.labels for batch in batches])
    return FeatureTable(torch.empty(len(labels), 0), labels, tuple(name for batch in batches for name in batch.ids))


def _nothing(image: Tensor) -> Tensor:
    return image[:, :1, :1]


def _take(table: FeatureTable, rows: Tensor) -> FeatureTable:
    return FeatureTable(table.features[rows], table.labels[rows], tuple(table.ids[i] for i in rows.tolist()))


PROTOCOL = Protocol(
    "finetune", 1, "fine-tuned accuracy, %", FinetuneConfig, measure, columns, check_splits, unasked=False
)
