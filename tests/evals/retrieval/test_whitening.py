"""Whitening gives what its definition asks, and its floor holds."""

import pytest
import torch

from nolabel.errors import DataError
from nolabel.evals.retrieval.whitening import FLOOR, learn_whitening, whiten


def features(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    return mixed + torch.arange(6.0)


def test_centred_whitening_leaves_the_identity() -> None:
    x = features(500)
    y = whiten(x, learn_whitening(x, centered=True))
    torch.testing.assert_close(y.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(y.T @ y / 500, torch.eye(6, dtype=torch.float64), atol=1e-8, rtol=0)


def test_the_default_learns_from_second_moments_and_still_subtracts_the_mean() -> None:
    x = features(500)
    y = whiten(x, learn_whitening(x))
    torch.testing.assert_close(y.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-9, rtol=0)
    back = y + x.double().mean(0) @ learn_whitening(x).projection
    torch.testing.assert_close(back.T @ back / 500, torch.eye(6, dtype=torch.float64), atol=1e-8, rtol=0)
    assert not torch.allclose(y.T @ y / 500, torch.eye(6, dtype=torch.float64), atol=1e-2)


def test_directions_that_do_not_vary_are_not_blown_up() -> None:
    x = torch.zeros(100, 2)
    x[:, 0] = torch.linspace(-1, 1, 100)
    learned = learn_whitening(x)
    largest = float(x[:, 0].double().square().mean())
    assert learned.projection.abs().max() == pytest.approx((FLOOR * largest) ** -0.5)


def test_too_few_images() -> None:
    for x in (torch.ones(1, 3), torch.zeros(5, 3)):
        with pytest.raises(DataError, match="cannot be learned"):
            learn_whitening(x)
