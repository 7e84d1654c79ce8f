"""Maps and masks read from features and attention."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nolabel.networks.backbones import Features


def cosine_to_pooled(features: Features) -> Tensor:
    """(B, N) cosine of each location with the pooled feature: a replacement for attention in a CNN.

    Where the pooled feature has another width, as behind the last layer of a MobileNetV3, the mean location is taken.
    """
    pooled = features.pooled
    if pooled.shape[-1] != features.patches.shape[-1]:
        pooled = features.patches.mean(1)
    return F.cosine_similarity(features.patches, pooled[:, None], dim=-1)


def mass_mask(maps: Tensor, keep: float = 0.6) -> Tensor:
    """The largest entries of each map (..., rows, columns), not negative, that hold the share `keep` of its sum: bool.

    As the authors of DINO: sort ascending, normalise, and keep what has a cumulative sum above 1 - keep. The main text
    of the paper keeps 60 %, its appendix 80 %. A map of zeros has no such entry.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is a share of the attention: above 0 and at most 1, not {keep}.")
    values, order = maps.flatten(-2).double().sort(dim=-1, stable=True)
    share = values / values.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    kept = share.cumsum(-1) > 1 - keep
    return torch.zeros_like(kept).scatter(-1, order, kept).view(maps.shape)
