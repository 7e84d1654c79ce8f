"""A segmentation network on a backbone, all of it trained: FCN on R50-d8 as in DenseCL (methods.md, C5.4).

Wang et al. 2021 fine-tune so on PASCAL VOC and Cityscapes; Long et al. 2015 is the head. A ViT gets the same head, or
one linear layer, on its patches.
"""

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator, Philox
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as VF

from nolabel.errors import DataError, NumericError
from nolabel.evals.dense.iou import VOID
from nolabel.evals.dense.layouts import Masked, read_pair
from nolabel.evals.protocol import EvalConfig
from nolabel.networks.backbones import Backbone
from nolabel.networks.precision import autocast
from nolabel.progress import Report
from nolabel.views import normalize
from nolabel.weights.load import Loaded

AUX_WEIGHT = 0.4
MAX_SHARE = 0.75
"""A crop of which one class has more is drawn again, up to ten times."""


class Schedule(NamedTuple):
    """Length of a training, and the sizes of its images."""

    steps: int
    batch_size: int
    lr: float
    crop: int
    """Side of the square crops in pixels."""
    short_side: int
    """Shorter side of the images before the random scale of 0.5 to 2, and in the test."""
    align_corners: bool = False
    stride: int = 0
    """Stride of the windows of `crop` px that a test image is cut into; 0: the whole image at once."""


class FCNHead(nn.Module):
    """`num_convs` 3 x 3 convolutions, one more over input and output joined where `concat`, then a score per class."""

    def __init__(self, dim: int, channels: int, num_convs: int, num_classes: int, concat: bool) -> None:
        super().__init__()
        widths = [dim, *[channels] * num_convs]
        self.convs = nn.Sequential(*(_conv(i, o) for i, o in pairwise(widths)))
        self.join = _conv(dim + channels, channels) if concat else None
        score = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(score.weight, std=0.01)
        nn.init.constant_(score.bias, 0)  # type: ignore[arg-type]
        self.score = nn.Sequential(nn.Dropout2d(0.1), score)

    def forward(self, x: Tensor) -> Tensor:
        out = self.convs(x)
        if self.join is not None:
            out = self.join(torch.cat([x, out], 1))
        scores: Tensor = self.score(out)
        return scores


class Segmenter(nn.Module):
    """Backbone and head: scores (B, K, h, w) of images, and those of the auxiliary head on stage 3 of a ResNet."""

    def __init__(self, backbone: Backbone, num_classes: int, head: str) -> None:
        super().__init__()
        self.backbone, self.num_classes = backbone, num_classes
        self.aux: FCNHead | None = None
        dim = backbone.patch_features
        self.is_resnet = hasattr(backbone.model, "layer4")
        if head == "linear":
            self.head: nn.Module = nn.Sequential(nn.BatchNorm2d(dim), nn.Conv2d(dim, num_classes, 1))
        else:
            self.head = FCNHead(dim, 512, 2, num_classes, concat=True)
        if self.is_resnet:
            self.aux = FCNHead(backbone.model.feature_info[-2]["num_chs"], 256, 1, num_classes, concat=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.is_resnet:
            stages = self.backbone.stages(x)
            return self.head(stages[-1]), self.aux(stages[-2]) if self.training and self.aux else None
        features = self.backbone(x)
        return self.head(features.patches.transpose(1, 2).unflatten(2, features.grid)), None


def finetune(
    loaded: Loaded, masked: Masked, schedule: Schedule, head: str, config: EvalConfig, report: Report
) -> Segmenter:
    """Train backbone and head on crops of train; `loaded` stays as it is. `head` is "fcn" or "linear".

    SGD (momentum 0.9, decay 5e-4) or, for a ViT, AdamW (decay 0.05); the learning rate falls with power 0.9 to 1 %.
    Raises NumericError when it diverges.
    """
    loader = DataLoader(
        _Crops(masked, schedule, config.seed, loaded.mean),
        batch_size=schedule.batch_size,
        num_workers=config.workers,
        collate_fn=_collate,
        generator=torch.Generator(),
    )
    device = torch.device(config.device)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        net = Segmenter(copy.deepcopy(loaded.backbone).requires_grad_(True), len(masked.classes.ids), head)
        net.to(device).train()
        optimizer = _optimizer(net, schedule)
        for step, batch in enumerate(loader):
            if isinstance(batch, str):
                raise DataError(batch)
            for group in optimizer.param_groups:  # C5.4: from 0.01 to 0.0001
                group["lr"] = schedule.lr * (0.99 * (1 - step / schedule.steps) ** 0.9 + 0.01)
            images, truth = (x.to(device) for x in batch)
            with autocast(device, config.precision):
                scores, aux = net(normalize(images, loaded.mean, loaded.std))
            loss = _loss(scores, truth, schedule.align_corners)
            if aux is not None:
                loss = loss + AUX_WEIGHT * _loss(aux, truth, schedule.align_corners)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if not loss.isfinite():
                raise NumericError(f"The loss of fine-tuning is {loss.item()} at step {step}: lower the learning rate.")
            report(step + 1, {"loss": loss.item(), "lr": optimizer.param_groups[0]["lr"]})
    return net.eval()


def segment(net: Segmenter, x: Tensor, size: tuple[int, int], schedule: Schedule) -> Tensor:
    """The class (H, W) of each pixel at `size` of one normalised image (1, 3, h, w), in windows where asked."""
    align, crop, stride = schedule.align_corners, schedule.crop, schedule.stride
    height, width = x.shape[-2:]
    with torch.no_grad():
        if not stride or (height <= crop and width <= crop):
            scores = F.interpolate(net(x)[0].float(), (height, width), mode="bilinear", align_corners=align)
        else:
            scores, count = x.new_zeros(1, net.num_classes, height, width), x.new_zeros(height, width)
            for top, left in _windows(height, width, crop, stride):
                part = slice(top, min(top + crop, height)), slice(left, min(left + crop, width))
                window = x[:, :, part[0], part[1]]
                enlarged = F.interpolate(
                    net(window)[0].float(), tuple(window.shape[-2:]), mode="bilinear", align_corners=align
                )
                scores[:, :, part[0], part[1]] += enlarged
                count[part] += 1
            scores = scores / count
        return F.interpolate(scores, size, mode="bilinear", align_corners=align)[0].max(0).indices


def _windows(height: int, width: int, crop: int, stride: int) -> Iterator[tuple[int, int]]:
    """Top left corners that cover the image; the last of a row or column is moved back inside."""
    for i in range(max(-(-(height - crop) // stride), 0) + 1):
        for j in range(max(-(-(width - crop) // stride), 0) + 1):
            yield max(min(i * stride, height - crop), 0), max(min(j * stride, width - crop), 0)


def _conv(dim: int, channels: int) -> nn.Module:
    conv = nn.Conv2d(dim, channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _optimizer(net: Segmenter, schedule: Schedule) -> torch.optim.Optimizer:
    parameters = [p for p in net.parameters() if p.requires_grad]
    if net.backbone.can_drop:
        return torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=0.05)
    return torch.optim.SGD(parameters, lr=schedule.lr, momentum=0.9, weight_decay=5e-4)


def _loss(scores: Tensor, truth: Tensor, align_corners: bool) -> Tensor:
    """Mean cross-entropy over the pixels that are not void; 0 where all are."""
    large = F.interpolate(scores.float(), truth.shape[-2:], mode="bilinear", align_corners=align_corners)
    total = F.cross_entropy(large, truth.long(), ignore_index=VOID, reduction="sum")
    return total / (truth != VOID).sum().clamp_min(1)


class _Crops(Dataset[tuple[Tensor, Tensor] | str]):
    """`steps` x `batch_size` random crops; each is a function of the seed and its number."""

    def __init__(self, masked: Masked, schedule: Schedule, seed: int, mean: tuple[float, ...]) -> None:
        self.masked, self.schedule, self.seed = masked, schedule, seed
        self.num_images = len(masked.splits["train"].pictures)
        self.fill = tuple(round(255 * m) for m in mean)

    def __len__(self) -> int:
        return self.schedule.steps * self.schedule.batch_size

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor] | str:
        epoch, place = divmod(number, self.num_images)
        order = Generator(Philox(key=[self.seed, 2**63 + epoch])).permutation(self.num_images)
        try:
            picture, truth = read_pair(self.masked, "train", int(order[place]))
        except DataError as error:
            return str(error)
        return augment(picture, truth, self.schedule, Generator(Philox(key=[self.seed, number])), self.fill)


def augment(
    picture: Tensor, truth: Tensor, schedule: Schedule, rng: Generator, fill: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """A random scale, crop, flip and change of colours: (3, crop, crop) uint8 and its classes (crop, crop)."""
    scale = schedule.short_side * rng.uniform(0.5, 2) / min(truth.shape)
    size = [max(1, round(side * scale)) for side in truth.shape]
    picture = VF.resize(picture, size, InterpolationMode.BILINEAR, antialias=True)
    truth = VF.resize(truth[None], size, InterpolationMode.NEAREST_EXACT)[0]
    crop = schedule.crop
    for _ in range(10):
        top, left = (int(rng.integers(max(side - crop, 0) + 1)) for side in size)
        part = truth[top : top + crop, left : left + crop]
        counts = part[part != VOID].bincount()
        if len(counts) and counts.max() < MAX_SHARE * counts.sum():
            break
    picture = _distort(picture[:, top : top + crop, left : left + crop], rng)
    if rng.random() < 0.5:
        picture, part = picture.flip(-1), part.flip(-1)
    image = torch.tensor(fill, dtype=torch.uint8)[:, None, None].repeat(1, crop, crop)
    classes = torch.full((crop, crop), VOID)
    image[:, : part.shape[0], : part.shape[1]] = picture
    classes[: part.shape[0], : part.shape[1]] = part
    return image, classes


def _distort(picture: Tensor, rng: Generator) -> Tensor:
    """Brightness by up to 32 of 255, contrast and saturation by half, hue by 18 degrees, each in half of the cases."""
    draws, amounts = rng.random(4) < 0.5, rng.uniform(-1, 1, 4)
    x = picture.float()
    if draws[0]:
        x = x + 32 * amounts[0]
    if draws[1]:
        x = x * (1 + 0.5 * amounts[1])
    x = x.clamp(0, 255).byte()
    if draws[2]:
        x = VF.adjust_saturation(x, float(1 + 0.5 * amounts[2]))
    if draws[3]:
        x = VF.adjust_hue(x, float(np.clip(amounts[3] * 18 / 360, -0.5, 0.5)))
    return x


def _collate(items: list[tuple[Tensor, Tensor] | str]) -> tuple[Tensor, Tensor] | str:
    for item in items:
        if isinstance(item, str):
            return item
    images, truths = zip(*items, strict=True)
    return torch.stack(images), torch.stack(truths)
