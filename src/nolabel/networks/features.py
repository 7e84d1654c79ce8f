"""Features of any timm network: the pooled vector, and one vector per location in the order of the image's rows."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Features(NamedTuple):
    """Features of a batch of images. Both widths are equal, except with a layer between the map and the classifier."""

    pooled: Tensor
    """(B, D): the class token of a ViT, the spatial mean of a CNN; timm's output without a classifier."""
    patches: Tensor
    """(B, N, D): one vector per location, row by row."""
    grid: tuple[int, int]
    """Rows and columns of the image's locations; their product is N unless patches were dropped."""


class KeepPatches(nn.Module):
    """Drop the patches that are not in `keep`. Replaces timm's patch dropout, after the position embedding."""

    def __init__(self, num_prefix_tokens: int) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.keep: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.keep is None:
            return x
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        if self.keep.dim() == 1:
            kept = patches.index_select(1, self.keep)
        else:
            kept = patches.gather(1, self.keep[:, :, None].expand(-1, -1, patches.shape[-1]))
        return torch.cat([prefix, kept], dim=1)


MOST_PREFIX = 2
"""Largest number of tokens in front of the patches where a network does not state it (class token, distillation)."""


def read_features(model: Any, x: Tensor) -> Features:
    """Features of normalised images `x` (B, 3, H, W). TypeError where the network has no map of features."""
    out = model.forward_features(x)
    if not isinstance(out, Tensor):
        raise TypeError(f"it gives a {type(out).__name__} of tensors and no single map")
    pooled = model.forward_head(out, pre_logits=True)
    if not isinstance(pooled, Tensor) or pooled.dim() != 2:
        raise TypeError("it gives no single vector per image")
    if out.dim() == 4:
        if getattr(model, "output_fmt", "NCHW") == "NHWC":
            out = out.permute(0, 3, 1, 2)
        return Features(pooled, out.flatten(2).transpose(1, 2), (out.shape[2], out.shape[3]))
    if out.dim() != 3:
        raise TypeError(f"its features have {out.dim()} dimensions")
    prefix, grid = find_grid(out.shape[1], getattr(model, "num_prefix_tokens", None), x.shape[-2], x.shape[-1])
    return Features(pooled, out[:, prefix:], grid)


@lru_cache(maxsize=1024)
def find_grid(num_tokens: int, num_prefix: int | None, height: int, width: int) -> tuple[int, tuple[int, int]]:
    """The number of tokens in front of the patches, and the rows and columns of the patches of a height x width image.

    Patches are about square, so rows and columns have the aspect of the image. TypeError if no such grid exists.
    """
    for prefix in range(MOST_PREFIX + 1) if num_prefix is None else (num_prefix,):
        number = num_tokens - prefix
        rows = [n for n in range(1, number + 1) if number % n == 0 and abs(n - number / n * height / width) < 1]
        if rows:
            best = min(rows, key=lambda n: abs(n - number / n * height / width))
            return prefix, (best, number // best)
    raise TypeError(f"its {num_tokens} tokens form no grid over an image of {height} x {width} px")
