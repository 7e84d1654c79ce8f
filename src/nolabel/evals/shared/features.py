"""Features of labelled images, computed once: every evaluation is a pure function of these tables."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from nolabel.data.bad_files import BadImage
from nolabel.data.decode import decode
from nolabel.data.images import LabelledImages, read
from nolabel.errors import DataError, NumericError
from nolabel.evals.shared.pieces import POOLED, Piece, compute, join
from nolabel.networks.modes import evaluating
from nolabel.networks.precision import Precision, autocast
from nolabel.views import normalize


class FeatureTable(NamedTuple):
    """One row per image; the features are not normalised."""

    features: Tensor
    """(N, D) float32."""
    labels: Tensor
    """(N,) int64."""
    ids: tuple[str, ...]
    """The names of the N images."""


class PieceTable(NamedTuple):
    """Several vectors per image, not normalised."""

    pieces: dict[Piece, Tensor]
    """(N, D) float32 each."""
    labels: Tensor
    """(N,) int64."""
    ids: tuple[str, ...]

    def table(self, pieces: Collection[Piece], interleaved: bool = False) -> FeatureTable:
        """Some of them side by side."""
        return FeatureTable(join(self.pieces, pieces, interleaved), self.labels, self.ids)


class Pixels(NamedTuple):
    """Decoded images of one size."""

    images: Tensor
    """(N, 3, size, size) uint8."""
    labels: Tensor
    """(N,) int64."""
    ids: tuple[str, ...]


def all_finite(features: Tensor) -> bool:
    """True if no number of (N, D) is infinite or NaN. One part at a time: at once it takes as much memory again."""
    return all(bool(part.isfinite().all()) for part in torch.split(features, 2**14))


def raw_pixels(labelled: LabelledImages, size: int = 32, workers: int = 0) -> FeatureTable:
    """The pixels themselves as features, (N, 3 * size * size) in 0..1: the floor that a network has to beat."""
    pixels = read_pixels(labelled, partial(squash, size=size), workers)
    return FeatureTable(pixels.images.flatten(1).float().div_(255), pixels.labels, pixels.ids)


def evaluation_crop(image: Tensor, size: int, interpolation: str = "bicubic") -> Tensor:
    """The evaluation crop of `image` (3, H, W) uint8: shorter side to 8/7 of `size`, centre (3, size, size).

    At 224 px this is the papers' Resize(256), CenterCrop(224) (Caron et al. 2021).
    """
    shorter, longer = min(image.shape[1:]), max(image.shape[1:])
    if longer > 8 * shorter:  # far outside the crop; enlarging a 1 x 10,000 strip would take gigabytes
        image = F.center_crop(image, [min(side, 8 * shorter) for side in image.shape[1:]])
    image = F.resize(image, [round(8 * size / 7)], InterpolationMode(interpolation), antialias=True)
    crop: Tensor = F.center_crop(image, [size, size])
    return crop


def squash(image: Tensor, size: int) -> Tensor:
    """The whole of `image` (3, H, W) uint8 as (3, size, size), its aspect ratio not kept."""
    small: Tensor = F.resize(image, [size, size], InterpolationMode.BICUBIC, antialias=True)
    return small


def read_pixels(labelled: LabelledImages, transform: Callable[[Tensor], Tensor], workers: int = 0) -> Pixels:
    """All images that can be read, in memory. Raises DataError where there is none."""
    images, labels, ids = zip(*decoded(labelled, transform, 128, workers), strict=True)
    return Pixels(torch.cat(images), torch.cat(labels), tuple(chain(*ids)))


def in_batches(pixels: Pixels, batch_size: int = 128) -> Iterator[Pixels]:
    """Decoded images again, a batch at a time."""
    for i in range(0, len(pixels.ids), batch_size):
        j = i + batch_size
        yield Pixels(pixels.images[i:j], pixels.labels[i:j], pixels.ids[i:j])


def decoded(
    labelled: LabelledImages, transform: Callable[[Tensor], Tensor], batch_size: int, workers: int = 0
) -> Iterator[Pixels]:
    """Batches of transformed images in order, without those that can't be read.

    `transform` is a picklable function of an image (3, H, W) uint8. The global random state is left alone.
    Raises DataError where no image can be read.
    """
    loader = DataLoader(
        _Readable(labelled, transform),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator(),  # else every pass draws from the global one, and training would notice
    )
    found = False
    for pixels in loader:
        if pixels is not None:
            found = True
            yield pixels
    if not found:
        raise DataError(
            f"None of the {len(labelled.images.names)} images in {labelled.images.root} can be read.\n"
            "`nolabel check DATA` reports the reasons."
        )


def embed(
    backbone: nn.Module,
    batches: Iterable[Pixels],
    mean: Sequence[float],
    std: Sequence[float],
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
) -> FeatureTable:
    """Pooled features (N, D) of decoded images, on the CPU. The backbone moves to `device`, keeps its modes.

    Raises NumericError where a feature is not finite.
    """
    return embed_pieces(backbone, batches, (POOLED,), mean, std, device, precision).table((POOLED,))


def embed_pieces(
    backbone: nn.Module,
    batches: Iterable[Pixels],
    pieces: Collection[Piece],
    mean: Sequence[float],
    std: Sequence[float],
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
) -> PieceTable:
    """Several vectors per image (N, D each) of decoded images; else like `embed`."""
    parts: dict[Piece, list[Tensor]] = {piece: [] for piece in pieces}
    labels, ids = [], list[str]()
    with inference(backbone, device, precision):
        for batch in batches:
            computed = compute(backbone, normalize(batch.images.to(device), mean, std), pieces)
            for piece, x in computed.items():
                parts[piece].append(x.float().cpu())
            labels.append(batch.labels)
            ids += batch.ids
    table = PieceTable({piece: torch.cat(xs) for piece, xs in parts.items()}, torch.cat(labels), tuple(ids))
    bad = torch.stack([~x.isfinite().all(1) for x in table.pieces.values()]).any(0)
    if bad.any():
        raise NumericError(f"{int(bad.sum())} of {len(ids)} images have features that are not finite: damaged weights.")
    return table


@contextlib.contextmanager
def inference(backbone: nn.Module, device: str | torch.device, precision: Precision) -> Iterator[None]:
    """The backbone on `device`, in eval mode, without gradients, under autocast; its modes come back."""
    with evaluating(backbone.to(device)), autocast(device, precision):
        yield


class _Readable(Dataset[tuple[Tensor, int, str] | None]):
    def __init__(self, labelled: LabelledImages, transform: Callable[[Tensor], Tensor]) -> None:
        self.labelled, self.transform = labelled, transform

    def __len__(self) -> int:
        return len(self.labelled.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str] | None:
        images = self.labelled.images
        try:
            image = decode(read(images, index), limits=images.limits)
        except BadImage:
            return None
        return self.transform(image), self.labelled.labels[index], images.names[index]


def _collate(items: Sequence[tuple[Tensor, int, str] | None]) -> Pixels | None:
    good = [item for item in items if item is not None]
    if not good:
        return None
    images, labels, names = zip(*good, strict=True)
    return Pixels(torch.stack(images), torch.tensor(labels), names)
