"""Frozen patches as features with the classes of their pixels, and two classifiers of them: k-NN and linear."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as VF

from nolabel.errors import DataError, NumericError, UsageError
from nolabel.evals.dense.iou import VOID
from nolabel.evals.dense.layouts import Masked, read_pair
from nolabel.networks.backbones import Backbone, backbone
from nolabel.networks.precision import Precision, autocast
from nolabel.views import normalize
from nolabel.weights.load import Loaded

COLOUR_SIDE = 4


class Scene(NamedTuple):
    """One image, ready for a network, with its classes."""

    image: Tensor
    """(3, h, w) uint8."""
    truth: Tensor
    """(H, W) int16 classes and VOID, in the size of the file."""


class Cells(NamedTuple):
    """Patches of many images."""

    features: Tensor
    """(M, D)."""
    shares: Tensor
    """(M, K) float32: how much of the patch's pixels each class has. What is missing to 1 is void."""


Extractor = Callable[[Tensor], tuple[Tensor, tuple[int, int]]]
"""Images (B, 3, h, w) uint8 to features (B, N, D) and their grid."""
Head = Callable[[Tensor], Tensor]
"""Features (N, D) to scores (N, K)."""


def dilated(loaded: Loaded, output_stride: int | None) -> Loaded:
    """The network with a map at `output_stride` (8: R50-d8), where it is a ResNet; other networks as they are.

    The weights stay the same: strides become dilations.
    """
    net = loaded.backbone
    if output_stride is None or net.patch_size is not None or not hasattr(net.model, "layer4"):
        return loaded
    if output_stride not in (8, 16, 32):
        raise UsageError(f"output_stride is 8, 16 or 32, not {output_stride}.")
    with torch.random.fork_rng(devices=[]):
        wide = backbone(net.name, {**net.args, "output_stride": output_stride})
    if wide.state_dict().keys() != net.state_dict().keys():  # a stage as wide as the one before it
        raise UsageError(
            f"{net.name} has other layers at an output stride of {output_stride} than it was trained with.\n"
            "Use --output-stride 32."
        )
    wide.load_state_dict(net.state_dict())
    wide.eval().requires_grad_(False)
    return loaded._replace(backbone=wide)


def fit_size(height: int, width: int, short_side: int, multiple: int | None) -> tuple[int, int]:
    """Height and width with a shorter side of `short_side`, the shape kept, both rounded to a `multiple`."""
    scale, step = short_side / min(height, width), multiple or 1
    return max(step, round(height * scale / step) * step), max(step, round(width * scale / step) * step)


def scenes(
    masked: Masked, split: str, short_side: int, multiple: int | None, interpolation: str, workers: int = 0
) -> Iterator[Scene]:
    """The images of a split in order, resized as a whole. Raises DataError as reading them does."""
    dataset = _Scenes(masked, split, short_side, multiple, InterpolationMode(interpolation))
    for scene in DataLoader(dataset, batch_size=None, num_workers=workers, generator=torch.Generator()):
        if isinstance(scene, str):
            raise DataError(scene)
        yield scene


def extractor(loaded: Loaded, device: str, precision: Precision) -> Extractor:
    """The patches of a network in eval mode, on `device`, as float32."""
    net = loaded.backbone.to(device).eval()

    def extract(images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        with torch.no_grad(), autocast(device, precision):
            features = net(normalize(images.to(device), loaded.mean, loaded.std))
        if not features.patches.isfinite().all():
            raise NumericError("Some features are not finite: damaged weights.")
        return features.patches.float(), features.grid

    return extract


def colours(like: Backbone, device: str) -> Extractor:
    """The pixels of each patch, as 4 x 4 colours, on the grid of `like`: the floor that needs no network."""
    grids = dict[tuple[int, int], tuple[int, int]]()

    def extract(images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        size = (images.shape[-2], images.shape[-1])
        if size not in grids:
            with torch.no_grad():
                grids[size] = like(torch.zeros(1, 3, *size, device=device)).grid
        rows, columns = grids[size]
        small = F.interpolate(images.to(device).float(), (rows * COLOUR_SIDE, columns * COLOUR_SIDE), mode="area") / 255
        blocks = F.unfold(small, COLOUR_SIDE, stride=COLOUR_SIDE)
        return blocks.transpose(1, 2), (rows, columns)

    return extract


def in_batches(scenes: Iterable[Scene], batch_size: int) -> Iterator[list[Scene]]:
    """Neighbours of one size together, at most `batch_size` of them."""
    batch: list[Scene] = []
    for scene in scenes:
        if batch and (len(batch) == batch_size or scene.image.shape != batch[0].image.shape):
            yield batch
            batch = []
        batch.append(scene)
    if batch:
        yield batch


def shares(truth: Tensor, grid: tuple[int, int], num_classes: int) -> Tensor:
    """The share (N, K) of each class among the pixels of each cell; every pixel of (H, W) belongs to one cell."""
    height, width = truth.shape
    rows, columns = ((torch.arange(n) * 2 + 1) * g // (2 * n) for n, g in zip((height, width), grid, strict=True))
    cell = (rows[:, None] * grid[1] + columns).flatten()
    known, num_cells = truth.flatten() != VOID, grid[0] * grid[1]
    counts = torch.bincount(
        cell[known] * num_classes + truth.flatten()[known].long(), minlength=num_cells * num_classes
    )
    return counts.view(num_cells, num_classes) / torch.bincount(cell, minlength=num_cells).clamp_min(1)[:, None]


def to_classes(scores: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The class (H, W) of each pixel from scores (N, K) of the patches: bilinear between them, then the largest."""
    maps = scores.T.reshape(1, -1, *grid)
    large = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)[0]
    return large.max(0).indices  # as argmax(0), nine times as fast


def fit_linear(cells: Cells, epochs: int, lr: float, seed: int) -> Head:
    """Standardise each feature, then one linear layer: cross-entropy over the pixels of the patches.

    A patch counts by its pixels that are not void. AdamW with decay 1e-3, the learning rate on half a cosine to 0; a
    pass is about a hundred steps, of 64 to 4096 patches.
    """
    batch_size = min(max(len(cells.features) // 100, 64), 4096)
    device, num_classes = cells.features.device, cells.shares.shape[1]
    mean, std = _moments(cells.features)
    weight = torch.zeros(num_classes, cells.features.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(num_classes, device=device, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=lr, weight_decay=1e-3)
    steps = epochs * -(-len(cells.features) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(cells.features), generator=generator).to(device), batch_size):
            x = (cells.features[rows].float() - mean) / std
            target = cells.shares[rows]
            loss = -(target * F.linear(x, weight, bias).log_softmax(1)).sum() / target.sum().clamp_min(1e-6)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    weight, bias = weight.detach(), bias.detach()
    return lambda x: F.linear((x.float() - mean) / std, weight, bias)


def fit_knn(cells: Cells, bank_size: int, k: int, temperature: float, seed: int) -> Head:
    """The shares of the `k` patches of highest cosine, weighted with exp(cosine / temperature).

    They are sought among `bank_size` patches of train drawn from the seed.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = (
        torch.randperm(len(cells.features), generator=generator)[:bank_size].sort().values.to(cells.features.device)
    )
    bank, votes = F.normalize(cells.features[chosen].float(), dim=1), cells.shares[chosen]

    def head(x: Tensor) -> Tensor:
        similarity, nearest = (F.normalize(x.float(), dim=1) @ bank.T).topk(min(k, len(bank)), dim=1)
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        return (weights[:, :, None] * votes[nearest]).sum(1) / weights.sum(1, keepdim=True)

    return head


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,), in pieces: the table may be large, and of half precision."""
    count = len(features)
    mean = sum((part.double().sum(0) for part in torch.split(features, 8192)), torch.zeros(())) / count
    variance = (
        sum(((part.double() - mean).square().sum(0) for part in torch.split(features, 8192)), torch.zeros(())) / count
    )
    return mean.float(), variance.sqrt().clamp_min(1e-6).float()


class _Scenes(Dataset[Scene | str]):
    """Scenes, or the text of the error: a process that decodes cannot raise one that is short."""

    def __init__(
        self, masked: Masked, split: str, short_side: int, multiple: int | None, mode: InterpolationMode
    ) -> None:
        self.masked, self.split = masked, split
        self.short_side, self.multiple, self.mode = short_side, multiple, mode

    def __len__(self) -> int:
        return len(self.masked.splits[self.split].pictures)

    def __getitem__(self, index: int) -> Scene | str:
        try:
            picture, truth = read_pair(self.masked, self.split, index)
        except DataError as error:
            return str(error)
        size = fit_size(truth.shape[0], truth.shape[1], self.short_side, self.multiple)
        return Scene(VF.resize(picture, list(size), self.mode, antialias=True), truth.short())
