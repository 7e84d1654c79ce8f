"""A backbone with a classifier, all of it trained: the fine-tuning recipe of DeiT, BEiT and MAE on timm's parts.

Touvron et al. 2021 (mixup, cutmix, RandAugment, label smoothing, drop path), Bao et al. 2022 (layer decay),
He et al. 2022 and Assran et al. 2022 (the values); methods.md, A5.4, B5.3 and D7.
"""

from functools import partial
from typing import Literal, NamedTuple

import torch
from timm.data.mixup import Mixup
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from nolabel.data.images import LabelledImages
from nolabel.errors import NumericError
from nolabel.evals.classification.batches import batch_keys
from nolabel.evals.classification.crops import AugmentedCrops, seeded
from nolabel.evals.protocol import EvalConfig
from nolabel.evals.shared.features import decoded, evaluation_crop
from nolabel.networks.backbones import Backbone, backbone
from nolabel.networks.precision import autocast
from nolabel.optim.schedules import Clock, multi_step, warmup_cosine
from nolabel.progress import Report
from nolabel.views import normalize
from nolabel.weights.load import Loaded

STEP_DECAY = 0.2
"""Factor of the learning rate at each milestone (Wang et al. 2021, semi-supervised ImageNet)."""


class Recipe(NamedTuple):
    """Training of a network, independent of the data."""

    optimizer: Literal["adamw", "sgd"]
    weight_decay: float
    layer_decay: float
    """The learning rate of a block is this times that of the block above it; 1: all have the same."""
    head_lr: float
    """Learning rate of the classifier, in those of the last block."""
    drop_path: float
    randaugment: float
    """Magnitude of RandAugment's two operations, 0 to 10; 0: none."""
    mixup: float
    """Alpha of its Beta distribution; 0: none."""
    cutmix: float
    label_smoothing: float
    ema: float
    """Momentum of the averaged weights that are tested; 0: the last weights are."""
    head_std: float
    """Standard deviation of the classifier's first weights."""


class Plan(NamedTuple):
    """Length, batch and learning rate of a training."""

    steps: int
    steps_per_epoch: int
    batch_size: int
    """Images per optimizer step."""
    lr: float
    """Peak learning rate."""
    min_lr: float
    warmup_steps: int
    milestones: tuple[int, ...] = ()
    """Steps at which the rate falls to a fifth; none: half a cosine."""


class Score(NamedTuple):
    """Accuracies in percent, rounded."""

    top1: float
    top5: float


def train_classifier(
    loaded: Loaded, labelled: LabelledImages, recipe: Recipe, plan: Plan, config: EvalConfig, report: Report
) -> Backbone:
    """A copy of the network with a classifier, trained on `labelled`, whose images can all be read.

    Raises NumericError when it diverges, DataError where an image can't be read any more.
    """
    device = torch.device(config.device)
    size, num_classes = config.image_size or loaded.image_size, len(labelled.classes)
    crops = AugmentedCrops(labelled, size, config.seed, recipe.randaugment, loaded.mean)
    keys = batch_keys(len(labelled.labels), plan.steps, plan.steps_per_epoch, plan.batch_size, config.seed)
    loader = DataLoader(crops, batch_sampler=keys, num_workers=config.workers, generator=torch.Generator())
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        net = with_classifier(loaded, num_classes, recipe).to(device).train()
        average = ModelEmaV3(net, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        optimizer = make_optimizer(net, recipe)
        scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        for step, (images, labels) in enumerate(loader):
            lr = lr_at(plan, step)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            x, target = mixed(
                normalize(images, loaded.mean, loaded.std), labels, num_classes, recipe, config.seed, step
            )
            loss = _backward(net, x.to(device), target.to(device), config, scaler)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if not loss.isfinite():
                raise NumericError(f"The loss of fine-tuning is {loss.item()} at step {step}: lower the learning rate.")
            if average is not None:
                average.update(net, step + 1)
            report(step + 1, {"loss": loss.item(), "lr": lr})
    trained = net if average is None else average.module
    assert isinstance(trained, Backbone)
    return trained.eval()


def accuracy(net: Backbone, loaded: Loaded, labelled: LabelledImages, config: EvalConfig) -> Score:
    """Top-1 and top-5 (fewer classes: all of them) on centre crops."""
    size = config.image_size or loaded.image_size
    crop = partial(evaluation_crop, size=size, interpolation=loaded.interpolation)
    device = torch.device(config.device)
    first = fifth = count = 0
    with torch.no_grad(), autocast(device, config.precision):
        for batch in decoded(labelled, crop, config.batch_size, config.workers):
            scores = logits(net, normalize(batch.images.to(device), loaded.mean, loaded.std)).float().cpu()
            ranked = scores.topk(min(5, scores.shape[1]), 1).indices == batch.labels[:, None]
            first, fifth, count = first + int(ranked[:, 0].sum()), fifth + int(ranked.sum()), count + len(scores)
    return Score(round(100 * first / count, 4), round(100 * fifth / count, 4))


def with_classifier(loaded: Loaded, num_classes: int, recipe: Recipe) -> Backbone:
    """A trainable copy of the network with drop path and a new linear classifier, its weights small, its bias 0."""
    more = {"drop_path_rate": recipe.drop_path} if recipe.drop_path else {}
    net = backbone(loaded.backbone.name, {**loaded.backbone.args, **more}, positions=loaded.backbone.positions)
    net.model.load_state_dict(loaded.backbone.model.state_dict())
    net.model.reset_classifier(num_classes)
    head = net.model.get_classifier()
    nn.init.trunc_normal_(head.weight, std=recipe.head_std)
    nn.init.zeros_(head.bias)
    return net


def logits(net: Backbone, x: Tensor) -> Tensor:
    """Scores (B, C) of normalised images (B, 3, H, W)."""
    if net.patch_size is None:
        x = x.contiguous(memory_format=torch.channels_last)
    scores: Tensor = net.model(x)
    return scores


def make_optimizer(net: Backbone, recipe: Recipe) -> torch.optim.Optimizer:
    """Groups with `lr_scale`: layer_decay ** (blocks above), the classifier head_lr times the last one's.

    AdamW decays no biases, norms, tokens or position embeddings; SGD (momentum 0.9) decays everything.
    """
    adamw = recipe.optimizer == "adamw"
    free = net.model.no_weight_decay() if adamw and hasattr(net.model, "no_weight_decay") else ()
    groups = param_groups_layer_decay(
        net.model, recipe.weight_decay, free, weight_decay_exclude_1d=adamw, layer_decay=recipe.layer_decay
    )
    head = {id(p) for p in net.model.get_classifier().parameters()}
    for group in groups:
        if all(id(p) in head for p in group["params"]):
            group["lr_scale"] *= recipe.head_lr
    if adamw:
        return torch.optim.AdamW(groups, lr=0.0)
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9)


def lr_at(plan: Plan, step: int) -> float:
    """The learning rate of a step: linear warm-up, then half a cosine to `min_lr`, or steps down at the milestones."""
    if plan.milestones and step >= plan.warmup_steps:
        return multi_step(plan.lr, STEP_DECAY, plan.milestones, step)
    return warmup_cosine(plan.lr, plan.min_lr, plan.warmup_steps, Clock(step, plan.steps, plan.steps_per_epoch))


def mixed(x: Tensor, labels: Tensor, num_classes: int, recipe: Recipe, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) and targets (B, C) after mixup or cutmix, one of them by chance, and label smoothing.

    A function of (seed, step). B is even where anything is mixed.
    """
    if not recipe.mixup and not recipe.cutmix:
        soft = F.one_hot(labels, num_classes).float()
        return x, soft * (1 - recipe.label_smoothing) + recipe.label_smoothing / num_classes
    mix = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes)  # type: ignore[no-untyped-call]
    with seeded("fine-tuning mix", seed, step):
        images, targets = mix(x, labels)
    return images, targets


def _backward(net: Backbone, x: Tensor, target: Tensor, config: EvalConfig, scaler: torch.amp.GradScaler) -> Tensor:
    """Gradients of the mean cross-entropy, `config.batch_size` images at a time; returns the loss (0-d)."""
    parts = list[Tensor]()
    for i in range(0, len(x), config.batch_size):
        images, wanted = x[i : i + config.batch_size], target[i : i + config.batch_size]
        with autocast(x.device, config.precision):
            scores = logits(net, images)
        loss = F.cross_entropy(scores.float(), wanted, reduction="sum") / len(x)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        parts.append(loss.detach())
    return torch.stack(parts).sum()
