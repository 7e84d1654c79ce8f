"""Position embeddings of a ViT at other sizes than the stored one: timm's way, and those of the papers' authors."""

from functools import partial
from typing import Any, Literal, get_args

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

Resampling = Literal["timm", "dino", "msn"]
"""Ways to resample, all bicubic. timm: with antialiasing. msn: without. dino: without, by a scale of sides that are 0.1
patches longer (Caron et al. 2021)."""
WAYS: tuple[Resampling, ...] = get_args(Resampling)


def resample(positions: Tensor, stored: tuple[int, int], grid: tuple[int, int], way: Resampling) -> Tensor:
    """Positions (1, rows * columns, D) of the grid `stored`, resampled to `grid`; the same tensor for an equal grid.

    `way` is "dino" or "msn": for "timm" the network resamples by itself.
    """
    if grid == stored:
        return positions
    planes = positions.float().view(1, *stored, -1).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    if way == "dino":
        # The scale is used as it is given, so that pixel i is read at (i + 0.5) / scale - 0.5 of the stored grid.
        scale = tuple((new + 0.1) / old for new, old in zip(grid, stored, strict=True))
        planes = F.interpolate(planes, scale_factor=scale, mode="bicubic", recompute_scale_factor=False)
        assert planes.shape[2:] == grid, f"{stored} by {scale} gave {tuple(planes.shape[2:])}"
    else:
        planes = F.interpolate(planes, size=grid, mode="bicubic")
    return planes.flatten(2).transpose(1, 2).to(positions.dtype)


def use_resampling(model: Any, way: Resampling) -> bool:
    """Let a plain ViT resample its positions in this way from here on; False for a network that has none to resample.

    Names and values of the state dict stay, and at the stored size nothing changes.
    """
    plain = isinstance(model, VisionTransformer) and type(model)._pos_embed is VisionTransformer._pos_embed
    if not plain or model.pos_embed is None or not model.dynamic_img_size:
        return False
    if way != "timm":
        model._pos_embed = partial(_add_positions, model, way)  # timm has no switch for it
    return True


def _add_positions(model: Any, way: Resampling, x: Tensor) -> Tensor:
    """Tokens (B, prefix + N, D) of patches (B, rows, columns, D), as timm makes them except for the resampling."""
    number = 0 if model.no_embed_class else model.num_prefix_tokens
    positions = model.pos_embed
    stored, grid = tuple(model.patch_embed.grid_size), (x.shape[1], x.shape[2])
    positions = torch.cat([positions[:, :number], resample(positions[:, number:], stored, grid, way)], dim=1)
    prefix = [token.expand(len(x), -1, -1) for token in (model.cls_token, model.reg_token) if token is not None]
    x = x.flatten(1, 2)
    x = torch.cat([*prefix, x + positions], dim=1) if model.no_embed_class else torch.cat([*prefix, x], 1) + positions
    return model.pos_drop(x)  # type: ignore[no-any-return]
