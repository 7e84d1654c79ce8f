"""Features of augmented training images, a batch at a time: a probe trained the papers' way sees no crop twice."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nolabel.data.bad_files import BadImage
from nolabel.data.decode import decode
from nolabel.data.images import LabelledImages, read
from nolabel.data.names import printable
from nolabel.errors import DataError
from nolabel.evals.classification.batches import batch_keys
from nolabel.evals.classification.probes import Plan
from nolabel.evals.protocol import EvalConfig
from nolabel.evals.shared.features import inference
from nolabel.evals.shared.pieces import Layout, Piece, compute, join
from nolabel.views import View, apply, draw, normalize
from nolabel.weights.load import Loaded


def train_view(size: int, interpolation: Literal["bicubic", "bilinear"]) -> View:
    """RandomResizedCrop with its usual scale, and a flip: how linear classifiers are trained."""
    return View(size, (0.08, 1.0), interpolation=interpolation, jitter_p=0.0, grayscale=0.0)


def augmented_batches(
    loaded: Loaded,
    labelled: LabelledImages,
    view: View,
    layouts: Mapping[Layout, Sequence[Piece]],
    interleaved: bool,
    config: EvalConfig,
    plan: Plan,
) -> Iterator[tuple[dict[Layout, Tensor], Tensor]]:
    """Features (B, D) of each layout and labels (B,) of `plan.steps` batches, from crops that (seed, epoch, image) fix.

    One forward pass serves all layouts. Raises DataError where an image can't be read.
    """
    pieces = tuple(dict.fromkeys(piece for wanted in layouts.values() for piece in wanted))
    loader = DataLoader(
        _Crops(labelled, view, plan.seed),
        batch_sampler=batch_keys(len(labelled.labels), plan.steps, plan.steps_per_epoch, plan.batch_size, plan.seed),
        num_workers=config.workers,
        generator=torch.Generator(),
    )
    for images, labels in loader:
        with inference(loaded.backbone, config.device, config.precision):
            parts = [
                compute(loaded.backbone, normalize(x.to(config.device), loaded.mean, loaded.std), pieces)
                for x in images.split(config.batch_size)
            ]
        joined = {piece: torch.cat([part[piece].float() for part in parts]) for piece in pieces}
        features = {layout: join(joined, wanted, interleaved) for layout, wanted in layouts.items()}
        yield features, labels.to(config.device)


def random_crop(labelled: LabelledImages, view: View, seed: int, epoch: int, index: int) -> Tensor:
    """The crop (3, size, size) of an image that (seed, epoch, image) fix. Raises DataError where it can't be read."""
    images = labelled.images
    try:
        image = decode(read(images, index), limits=images.limits)
    except BadImage as error:  # it could be read a moment ago, when the evaluation began
        raise DataError(f"{printable(images.names[index])} cannot be read any more: {error}.") from None
    return apply(image, view, draw(view, (seed, epoch, index, 0), *image.shape[1:]))


class _Crops(Dataset[tuple[Tensor, int]]):
    def __init__(self, labelled: LabelledImages, view: View, seed: int) -> None:
        self.labelled, self.view, self.seed = labelled, view, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        return random_crop(self.labelled, self.view, self.seed, *key), self.labelled.labels[key[1]]
