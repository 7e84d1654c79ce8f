"""Training crops for fine-tuning: RandomResizedCrop, flip and RandAugment, a function of (seed, epoch, image)."""

import contextlib
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_transform
from torch import Tensor
from torch.utils.data import Dataset

from nolabel.data.images import LabelledImages
from nolabel.evals.classification.augmented import random_crop, train_view
from nolabel.randomness import generator


class AugmentedCrops(Dataset[tuple[Tensor, int]]):
    """Crops (3, size, size) uint8 with their labels, by (epoch, image)."""

    def __init__(self, labelled: LabelledImages, size: int, seed: int, magnitude: float, mean: Sequence[float]) -> None:
        self.labelled, self.size, self.seed, self.magnitude = labelled, size, seed, magnitude
        self.fill = tuple(round(255 * m) for m in mean)
        self.view = train_view(size, "bicubic")

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        x = random_crop(self.labelled, self.view, self.seed, epoch, index)
        if self.magnitude:
            with seeded("fine-tuning crop", self.seed, epoch, index):
                x = rand_augment(x, self.magnitude, self.fill)
        return x, self.labelled.labels[index]


def rand_augment(x: Tensor, magnitude: float, fill: tuple[int, ...]) -> Tensor:
    """timm's RandAugment, two operations of magnitude N(m, 0.5), on (3, H, W) uint8; draws from global generators."""
    changed = _operations(magnitude, x.shape[-1], fill)(Image.fromarray(x.permute(1, 2, 0).numpy()))
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1).contiguous()


@lru_cache(maxsize=4)
def _operations(magnitude: float, size: int, fill: tuple[int, ...]) -> RandAugment:
    """The operations "increasing with magnitude", translations up to 45 % of the side (Touvron et al. 2021)."""
    settings = {
        "translate_const": int(0.45 * size),
        "img_mean": fill,
        "interpolation": Image.Resampling.BICUBIC,
        "magnitude_max": 9.999,  # at 10 posterize keeps no bit of a colour, which Pillow refuses
    }
    operations: RandAugment = rand_augment_transform(f"rand-m{magnitude:g}-n2-mstd0.5-inc1", settings)
    return operations


@contextlib.contextmanager
def seeded(stream: str, seed: int, *counters: int) -> Iterator[None]:
    """Start Python's and numpy's global generators from a stream of `randomness`, and put them back afterwards.

    timm's mixup and RandAugment draw from these, and nothing else may notice.
    """
    kept = random.getstate(), np.random.get_state()
    words = generator(stream, seed, *counters).integers(0, 2**32, 2)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
