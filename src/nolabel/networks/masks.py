"""Random masks: the patches of an image that a network gets to see."""

import math

import numpy as np
import torch
from torch import Tensor

from nolabel.errors import UsageError


def num_kept(num_patches: int, ratio: float) -> int:
    """floor(N (1 - ratio)) of N patches. UsageError for a ratio outside [0, 1) and where no patch would be left."""
    if not 0 <= ratio < 1:
        raise UsageError(
            f"A masking ratio of {ratio:g} is invalid: it is the share of patches dropped, from 0 to below 1."
        )
    kept = math.floor(num_patches * (1 - ratio) + 1e-9)  # 100 * (1 - 0.9) is a little less than 10
    if not kept:
        raise UsageError(
            f"A masking ratio of {ratio:g} leaves none of {num_patches} patches: use a lower ratio or smaller patches."
        )
    return kept


def draw_keep(num_patches: int, ratio: float, rng: np.random.Generator, num_samples: int | None = None) -> Tensor:
    """Indices, ascending, of the patches that stay: (n,) int64, or (num_samples, n) with a choice of its own each.

    n is `num_kept`, and every set of n patches is as likely as any other. The result is on the CPU.
    """
    kept = num_kept(num_patches, ratio)
    rows = np.tile(np.arange(num_patches), (1 if num_samples is None else num_samples, 1))
    keep = torch.from_numpy(np.sort(rng.permuted(rows, axis=1)[:, :kept], axis=1))
    return keep[0] if num_samples is None else keep
