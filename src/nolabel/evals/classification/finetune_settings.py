"""Settings of fine-tuning: those of the user, those of the papers, and the schedule that follows from the data."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from nolabel.errors import UsageError
from nolabel.evals.classification.classifier import Plan, Recipe
from nolabel.evals.protocol import EvalConfig, check_at_least
from nolabel.optim.schedules import fit_warmup
from nolabel.weights.load import Loaded


@dataclass(frozen=True)
class FinetuneConfig(EvalConfig):
    """Settings of the protocol. What is None follows the network: docs/evals/finetune.md has the table."""

    fractions: tuple[float, ...] = (1.0,)
    """Shares of train whose labels are learned from, evenly over the classes; a training each."""
    files: tuple[Path, ...] = ()
    """Instead: lists of image names, a training each."""
    schedule: Literal["auto", "paper"] = "auto"
    """auto: scaled to the number of images. paper: the published epochs, batch and learning rate."""
    epochs: int | None = None
    """Epochs, instead of the schedule's."""
    train_batch_size: int | None = None
    """Images per optimizer step, instead of the schedule's; `batch_size` of them are in memory at once."""
    lrs: tuple[float, ...] = ()
    """Learning rates for 256 images per step; of several the best on val, or on a tenth of train, is taken."""
    warmup_epochs: float | None = None
    optimizer: Literal["auto", "adamw", "sgd"] = "auto"
    weight_decay: float | None = None
    layer_decay: float | None = None
    """Learning rate of a block in those of the block above it."""
    head_lr: float | None = None
    """Learning rate of the classifier in those of the last block."""
    drop_path: float | None = None
    randaugment: float | None = None
    """Magnitude, 0 to 10; 0 for none."""
    mixup: float | None = None
    cutmix: float | None = None
    label_smoothing: float | None = None
    ema: float = 0.0
    """Momentum of averaged weights that are tested instead of the last ones, such as 0.9999."""


class Published(NamedTuple):
    """Values of the papers for a network."""

    recipe: Recipe
    lr: float
    """Learning rate for 256 images per step."""
    min_lr: float
    epochs: int
    batch_size: int
    warmup_epochs: float
    milestones: tuple[int, ...] = ()
    """Epochs."""


_RANGES = (
    ("warmup_epochs", 0, math.inf),
    ("weight_decay", 0, math.inf),
    ("layer_decay", 0.01, 1),
    ("head_lr", 0.001, 1000),
    ("drop_path", 0, 0.99),
    ("randaugment", 0, 10),
    ("mixup", 0, 100),
    ("cutmix", 0, 100),
    ("label_smoothing", 0, 0.99),
    ("ema", 0, 0.999999),
)


_OWN = tuple(name for name, _, _ in _RANGES if name != "warmup_epochs")


def published(loaded: Loaded, config: FinetuneConfig) -> Published:
    """The papers' values for the network, those of `config` in their place; docs/evals/finetune.md has the table.

    Raises UsageError for an odd number of images per step where they are mixed in pairs.
    """
    width = loaded.backbone.num_features
    if loaded.backbone.patch_size is not None:
        epochs, decay = (200, 0.75) if width < 768 else (100, 0.65) if width < 1024 else (50, 0.75)
        drop_path = 0.1 if width < 768 else 0.2
        recipe = Recipe("adamw", 0.05, decay, 1.0, drop_path, 9.0, 0.8, 1.0, 0.1, config.ema, 2e-5)
        paper = Published(recipe, 5e-4, 1e-6, epochs, 1024, 5.0)
    else:
        recipe = Recipe("sgd", 1e-4, 1.0, 10.0, 0.0, 0.0, 0.0, 0.0, 0.0, config.ema, 0.01)
        paper = Published(recipe, 0.01, 0.0, 20, 256, 0.0, (12, 16))
    given = {name: value for name in Recipe._fields if name in _OWN and (value := getattr(config, name)) is not None}
    if config.optimizer != "auto":
        given["optimizer"] = config.optimizer
    warmup = paper.warmup_epochs if config.warmup_epochs is None else config.warmup_epochs
    recipe = recipe._replace(**given)
    if (recipe.mixup or recipe.cutmix) and config.train_batch_size is not None and config.train_batch_size % 2:
        raise UsageError(
            f"Mixup and cutmix work on pairs: train_batch_size must be even, not {config.train_batch_size}."
        )
    return paper._replace(recipe=recipe, warmup_epochs=warmup)


def make_plan(config: FinetuneConfig, paper: Published, num_images: int, lr: float) -> Plan:
    """The schedule for N training images and a learning rate for 256 images; docs/evals/finetune.md has the rule."""
    exact = config.schedule == "paper"
    batch_size, epochs = paper.batch_size, paper.epochs
    if not exact:  # at least sixteen steps per epoch: the papers' batches are a thousandth of their data
        batch_size = min(batch_size, max(8, 2 ** int(math.log2(max(num_images // 16, 1)))))
        epochs = min(100, max(10, 200_000 // num_images))
    batch_size = min(config.train_batch_size or batch_size, num_images)
    if paper.recipe.mixup or paper.recipe.cutmix:
        batch_size -= batch_size % 2
    epochs = config.epochs or epochs
    per_epoch = num_images // batch_size
    share = batch_size / 256
    warmup = fit_warmup(paper.warmup_epochs, epochs) if exact else min(paper.warmup_epochs, 0.1 * epochs)
    milestones = paper.milestones if exact and epochs == paper.epochs else ()
    return Plan(
        steps=epochs * per_epoch,
        steps_per_epoch=per_epoch,
        batch_size=batch_size,
        lr=lr * (share if exact else math.sqrt(share)),
        min_lr=paper.min_lr,
        warmup_steps=round(warmup * per_epoch),
        milestones=tuple(m * per_epoch for m in milestones),
    )


def check_finetune(config: FinetuneConfig) -> None:
    """UsageError for settings that cannot work."""
    if not config.files and (not config.fractions or any(not 0 < f <= 1 for f in config.fractions)):
        raise UsageError("fractions are shares of train, above 0 and up to 1, such as 0.01 0.1 1.")
    if len(set(config.fractions)) < len(config.fractions) or len({p.stem for p in config.files}) < len(config.files):
        raise UsageError("Give every fraction, and every name of a list, once.")
    if not all(0 < lr < math.inf for lr in config.lrs):
        raise UsageError(f"Learning rates must be above 0, not {', '.join(f'{lr:g}' for lr in config.lrs)}.")
    check_at_least(config, 1, "epochs", "train_batch_size")
    for name, low, high in _RANGES:
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise UsageError(f"{name} must be from {low} to {high}, not {value}.")
