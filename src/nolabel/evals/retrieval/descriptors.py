"""Descriptors of whole images for search; protocols that rank images use them instead of the pooled feature."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from nolabel.data.bad_files import BadImage
from nolabel.data.decode import decode
from nolabel.data.images import Images, read
from nolabel.data.names import printable
from nolabel.errors import DataError
from nolabel.evals.protocol import EvalConfig
from nolabel.evals.shared.cache import described, network_facts, with_progress
from nolabel.evals.shared.features import FeatureTable, Pixels, embed, squash
from nolabel.networks.backbones import Backbone, Features
from nolabel.weights.load import Loaded

SCALES = (1.0, 2**-0.5, 0.5)
"""DINO's multi-scale retrieval (Caron et al. 2021)."""


class MultiScale(nn.Module):
    """The mean of a backbone's pooled features over sizes of the image. `pooled` is (B, D); patches are of the last."""

    def __init__(self, backbone: Backbone, scales: tuple[float, ...] = SCALES) -> None:
        super().__init__()
        self.backbone, self.scales = backbone, scales

    def forward(self, x: Tensor) -> Features:
        """Features of normalised images (B, 3, H, W), of any size: sides are cut to multiples of the patch size."""
        seen = list[Features]()
        for scale in self.scales:
            scaled = x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
            seen.append(self.backbone(whole_patches(scaled, self.backbone.patch_size)))
        return seen[-1]._replace(pooled=torch.stack([s.pooled.float() for s in seen]).mean(0))


class CopyDescriptor(nn.Module):
    """A backbone whose `pooled` is (B, 2 D): pooled feature, then GeM of the patches (Caron et al. 2021)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Features:
        """Features of normalised images (B, 3, H, W)."""
        seen: Features = self.backbone(x)
        return seen._replace(pooled=torch.cat([seen.pooled.float(), gem(seen.patches)], 1))


def gem(patches: Tensor, power: float = 4.0) -> Tensor:
    """Generalised mean of patches (B, N, D) over N, (B, D) float32; values below 1e-6 count as 1e-6."""
    mean: Tensor = patches.float().clamp_min(1e-6).pow(power).mean(1).pow(1 / power)
    return mean


def whole_patches(x: Tensor, patch_size: int | None) -> Tensor:
    """Images (B, 3, H, W) cut at the right and at the foot to multiples of the patch size, as a ViT's stem cuts them.

    A side below one patch is enlarged to one.
    """
    if patch_size is None:
        return x
    height, width = (max(side, patch_size) for side in x.shape[-2:])
    if (height, width) != tuple(x.shape[-2:]):
        x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    return x[..., : height // patch_size * patch_size, : width // patch_size * patch_size]


def color_histogram(image: Tensor) -> Tensor:
    """Roots of the shares of 8 x 8 x 8 colours in `image` (3, H, W) uint8: (512,) of length 1.

    Their cosine is the Bhattacharyya coefficient of two histograms: what colours alone find.
    """
    r, g, b = (image // 32).long()
    return torch.bincount((64 * r + 8 * g + b).flatten(), minlength=512).div(r.numel()).sqrt()


class Descriptor(NamedTuple):
    """The way from an image to a row of a table."""

    kind: str
    """Its name among kept features."""
    prepare: Callable[[Tensor], Tensor]
    """The upright image (3, H, W) uint8 as what `describe` takes; picklable, as it runs in the loader's workers."""
    describe: Callable[[Iterator[Pixels]], FeatureTable]
    facts: Mapping[str, Any] = {}
    """All that decides the numbers beside the images and what is cut from them."""
    center: bool = False
    """Subtract the mean of the database."""


def network(net: nn.Module, kind: str, prepare: "partial[Tensor]", loaded: Loaded, config: EvalConfig) -> Descriptor:
    """Pooled features of `net`, a wrapper of the network of `loaded`; its name is `kind` and its settings."""
    facts = {"prepare": [prepare.func.__name__, prepare.keywords], "scales": getattr(net, "scales", None)}
    return Descriptor(
        kind,
        prepare,
        lambda batches: embed(net, batches, loaded.mean, loaded.std, config.device, config.precision),
        network_facts(loaded, config) | facts,
    )


def as_they_are(batches: Iterator[Pixels]) -> FeatureTable:
    """Prepared images as features, (N, ...) flattened, of the type that they have."""
    features, labels, ids = [], [], list[str]()
    for batch in batches:
        features.append(batch.images.flatten(1))
        labels.append(batch.labels)
        ids += batch.ids
    return FeatureTable(torch.cat(features), torch.cat(labels), tuple(ids))


def small_pixels(image: Tensor) -> Tensor:
    """`image` (3, H, W) uint8 squashed to (3, 32, 32): with the database's mean subtracted, the raw-pixel floor."""
    return squash(image, 32)


RAW_FLOORS = {
    "raw_pixels": Descriptor("pixels", small_pixels, as_they_are, center=True),
    "color_histogram": Descriptor("colors", color_histogram, as_they_are),
}
"""Descriptors that need no network."""


def described_images(
    images: Images,
    descriptor: Descriptor,
    transform: Callable[[Tensor, int], Tensor],
    parts: Sequence[Any],
    config: EvalConfig,
    folder: Path | None,
) -> tuple[Tensor, tuple[str, ...]]:
    """Features (N, A, D) float32 of A parts or copies of the images that can be read, and their N names.

    `transform(image, index)` stacks the A of them, prepared; `parts` describes each of them in JSON's types.
    Features are kept in `folder`.
    """
    number = len(parts)

    def make() -> FeatureTable:
        batches = prepared(images, transform, max(1, config.batch_size // number), config.workers)
        seen = with_progress(batches, len(images.names))
        return descriptor.describe(
            batch._replace(images=batch.images.flatten(0, 1), labels=batch.labels.repeat_interleave(number))
            for batch in seen
        )

    table = described(folder, images, descriptor.kind, {**descriptor.facts, "parts": parts}, make)
    names = tuple(images.names[i] for i in table.labels[::number].tolist())
    return table.features.float().view(len(names), number, -1), names


def prepared(
    images: Images, transform: Callable[[Tensor, int], Tensor], batch_size: int, workers: int = 0
) -> Iterator[Pixels]:
    """Images in order as batches of `transform(image, index)`, without those that can't be read.

    The labels are indices of `images.names`. A batch holds neighbours of one shape, at most `batch_size` of them.
    Raises DataError where no image can be read.
    """
    loader = DataLoader(
        _Prepared(images, transform),
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),  # else every pass draws from the global one
    )
    waiting: list[tuple[Tensor, int]] = []
    found = False
    for item in loader:
        if item is None:
            continue
        if waiting and (len(waiting) == batch_size or waiting[0][0].shape != item[0].shape):
            yield _batch(waiting, images)
            waiting = []
        found = True
        waiting.append(item)
    if not found:
        raise DataError(
            f"None of the {len(images.names)} images in {printable(images.root)} can be read.\n"
            "`nolabel check DATA` reports the reasons."
        )
    yield _batch(waiting, images)


def _batch(items: list[tuple[Tensor, int]], images: Images) -> Pixels:
    pixels, indices = zip(*items, strict=True)
    return Pixels(torch.stack(pixels), torch.tensor(indices), tuple(images.names[i] for i in indices))


class _Prepared(Dataset[tuple[Tensor, int] | None]):
    def __init__(self, images: Images, transform: Callable[[Tensor, int], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images.names)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | None:
        try:
            image = decode(read(self.images, index), limits=self.images.limits)
        except BadImage:
            return None
        return self.transform(image, index), index
