"""Whitening of descriptors, learned on other images: directions that vary in all images count for less."""

from typing import NamedTuple

import torch
from torch import Tensor

from nolabel.errors import DataError

FLOOR = 1e-5
"""Least eigenvalue, as a share of the largest (DINO's copy detection)."""


class Whitening(NamedTuple):
    """A linear map of descriptors."""

    mean: Tensor
    """(D,) float64."""
    projection: Tensor
    """(D, D) float64: eigenvectors as columns, each over the root of its eigenvalue."""


def learn_whitening(features: Tensor, centered: bool = False) -> Whitening:
    """The whitening of features (N, D): from X'X/N as DINO's copy detection has it, or from their covariance.

    The mean is subtracted on use in both cases. Eigenvalues below FLOOR times the largest are raised to it. Raises
    DataError for fewer than two features and for features that are all zero.
    """
    x = features.double()
    if len(x) < 2 or not x.any():
        raise DataError(f"A whitening cannot be learned from {len(x)} images: give it a folder of many other images.")
    mean = x.mean(0)
    moments = x - mean if centered else x
    values, vectors = torch.linalg.eigh(moments.T @ moments / len(x))
    values = values.clamp_min(max(FLOOR * float(values[-1]), torch.finfo(torch.float64).tiny))
    return Whitening(mean, vectors / values.sqrt())


def whiten(features: Tensor, whitening: Whitening) -> Tensor:
    """Features (N, D) in the coordinates of the whitening, float64; not normalised."""
    return (features.double() - whitening.mean) @ whitening.projection
