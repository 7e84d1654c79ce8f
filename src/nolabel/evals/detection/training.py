"""Training a detector on images with boxes, and what it finds on others."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from numpy.random import Generator, Philox
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from nolabel.data.names import printable
from nolabel.errors import DataError, NumericError
from nolabel.evals.detection.average_precision import Found, decode_outline, encode_mask
from nolabel.evals.detection.boxes import Annotated, Boxed, Objects, read_annotated
from nolabel.evals.detection.networks import Kind, Sizes, detector
from nolabel.evals.protocol import EvalConfig
from nolabel.networks.precision import autocast
from nolabel.optim.schedules import multi_step
from nolabel.progress import Report
from nolabel.weights.load import Loaded

PRECISE_BATCHES = 200
"""Batches that BatchNorm's statistics are computed from after training (detectron2's PRECISE_BN)."""


class Schedule(NamedTuple):
    """Length and learning rate of a training."""

    steps: int
    milestones: tuple[int, ...]
    """Steps at which the learning rate falls to a tenth."""
    warmup: int
    """Steps on which it rises from a thousandth."""
    batch_size: int
    lr: float


class Task(NamedTuple):
    """Everything a training and its test need beside the network."""

    boxed: Boxed
    train: Sequence[Annotated]
    test: Sequence[Annotated]
    kind: Kind
    masks: bool
    sizes: Sizes
    schedule: Schedule


def lr_at(schedule: Schedule, step: int) -> float:
    """The learning rate of a step."""
    rate = multi_step(schedule.lr, 0.1, schedule.milestones, step)
    if step < schedule.warmup:
        share = step / schedule.warmup
        rate *= 0.001 * (1 - share) + share
    return rate


def train_detector(loaded: Loaded, task: Task, config: EvalConfig, report: Report) -> Any:
    """A detector around a copy of the network, all of it trained by SGD on images that all have an object.

    Raises NumericError when it diverges, DataError for images that can't be right.
    """
    device = torch.device(config.device)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        net = copy.deepcopy(loaded.backbone).requires_grad_(True)
        model = detector(loaded, net, task.kind, len(task.boxed.classes), task.masks, task.sizes).to(device).train()
        optimizer = make_optimizer(model)
        scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        batches = training_batches(task, task.schedule.steps, config)
        for step, (images, targets) in enumerate(batches):
            lr = lr_at(task.schedule, step)
            for group in optimizer.param_groups:
                group["lr"] = lr
            with autocast(device, config.precision):
                losses = model(_to(images, device), [_target(t, device) for t in targets])
            loss = torch.stack([value.float() for value in losses.values()]).sum()
            optimizer.zero_grad()
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            if not loss.isfinite():
                raise NumericError(
                    f"The loss of the detector is {loss.item()} at step {step}: lower the learning rate."
                )
            report(step + 1, {"loss": loss.item(), "lr": lr})
        few = training_batches(task, min(PRECISE_BATCHES, task.schedule.steps), config)
        precise_batchnorm(model, few, device)
    return model.eval()


def make_optimizer(model: nn.Module) -> torch.optim.SGD:
    """SGD, momentum 0.9, weight decay 1e-4, none for norms: the defaults of detectron2."""
    norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    decayed = [p for p in model.parameters() if id(p) not in norms]
    plain = [p for p in model.parameters() if id(p) in norms]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9)


def precise_batchnorm(
    model: nn.Module, batches: Iterator[tuple[list[Tensor], list[Any]]], device: torch.device
) -> None:
    """Statistics of every BatchNorm as the mean over `batches` with the weights as they are now."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        for images, targets in batches:
            model(_to(images, device), [_target(t, device) for t in targets])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def detect(model: Any, task: Task, config: EvalConfig) -> tuple[list[Found], list[Objects], list[tuple[int, int]]]:
    """For each image the objects found, the true ones, and its height and width."""
    device = torch.device(config.device)
    loader = DataLoader(
        _Test(task.boxed, task.test), batch_size=None, num_workers=config.workers, generator=torch.Generator()
    )
    found, truth, sizes = list[Found](), list[Objects](), list[tuple[int, int]]()
    for item in loader:
        if isinstance(item, str):
            raise DataError(item)
        picture, objects = item
        with torch.no_grad(), autocast(device, config.precision):
            answer = {key: value.cpu() for key, value in model(_to([picture], device))[0].items()}
        runs = [encode_mask(mask[0] > 0.5) for mask in answer["masks"]] if task.masks else None
        found.append(Found(answer["boxes"].float(), answer["labels"] - 1, answer["scores"].float(), runs))
        truth.append(objects)
        sizes.append((picture.shape[1], picture.shape[2]))
    return found, truth, sizes


def training_batches(task: Task, steps: int, config: EvalConfig) -> Iterator[tuple[list[Tensor], list[Any]]]:
    """`steps` batches of images and targets; each image is a function of the seed and its number."""
    loader = DataLoader(
        _Train(task, steps * task.schedule.batch_size, config.seed),
        batch_size=task.schedule.batch_size,
        num_workers=config.workers,
        collate_fn=_together,
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, str):
            raise DataError(batch)
        yield batch


class _Train(Dataset[Any]):
    """`count` images, flipped in half of the cases, each once before any comes again."""

    def __init__(self, task: Task, count: int, seed: int) -> None:
        self.task, self.count, self.seed = task, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        examples = self.task.train
        epoch, place = divmod(number, len(examples))
        order = Generator(Philox(key=[self.seed, 2**63 + epoch])).permutation(len(examples))
        try:
            picture, target = training_example(self.task.boxed, examples[int(order[place])], self.task.masks)
        except DataError as error:
            return str(error)
        mirrored = Generator(Philox(key=[self.seed, number])).random() < 0.5
        return flipped(picture, target) if mirrored else (picture, target)


def training_example(boxed: Boxed, one: Annotated, masks: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """An image and its target as torchvision has it: boxes, labels from 1, masks; without ignored objects."""
    picture, objects = read_annotated(boxed, one)
    kept = ~objects.ignored if boxed.layout == "COCO" else torch.ones_like(objects.ignored)
    target = {"boxes": objects.boxes[kept], "labels": objects.labels[kept] + 1}
    if masks:
        assert objects.outlines is not None
        size = (picture.shape[1], picture.shape[2])
        rows = kept.nonzero()[:, 0].tolist()
        drawn = [decode_outline(objects.outlines[i], size, printable(one.picture)) for i in rows]
        target["masks"] = torch.stack([torch.zeros(size, dtype=torch.bool), *drawn])[1:].to(torch.uint8)  # of none, too
    return picture, target


def flipped(picture: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The mirror image, left and right exchanged."""
    x0, y0, x1, y1 = target["boxes"].unbind(1)
    width = picture.shape[2]
    turned = target | {"boxes": torch.stack([width - x1, y0, width - x0, y1], 1)}
    if "masks" in target:
        turned["masks"] = target["masks"].flip(2)
    return picture.flip(2), turned


class _Test(Dataset[Any]):
    def __init__(self, boxed: Boxed, examples: Sequence[Annotated]) -> None:
        self.boxed, self.examples = boxed, examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        try:
            return read_annotated(self.boxed, self.examples[index])
        except DataError as error:
            return str(error)


def _together(items: list[Any]) -> Any:
    for item in items:
        if isinstance(item, str):
            return item
    images, targets = zip(*items, strict=True)
    return list(images), list(targets)


def _to(images: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    return [image.to(device).float().div(255) for image in images]


def _target(target: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {key: value.to(device) for key, value in target.items()}
