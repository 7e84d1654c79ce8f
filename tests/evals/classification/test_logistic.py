"""Logistic regression against scikit-learn and against what must hold at the optimum."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from nolabel.evals.classification.logistic import center_rows, fit, unit_rows


def data(num_images: int, dim: int, num_classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % num_classes
    x = torch.randn(num_classes, dim, generator=rng)[labels] + 2 * torch.randn(num_images, dim, generator=rng)
    return center_rows(x.double()), labels


@pytest.mark.parametrize(("num_images", "dim"), [(120, 10), (20, 50)])  # the second is solved in 20 dimensions
def test_the_solution_of_scikit_learn(num_images: int, dim: int) -> None:
    x, labels = data(num_images, dim)
    strengths = (0.025, 10.0, 0.5)
    for strength, found in zip(strengths, fit(x, labels, 4, strengths, tolerance=1e-13), strict=True):
        oracle = LogisticRegression(C=1 / strength, fit_intercept=False, tol=1e-10, max_iter=10_000)
        oracle.fit(x.numpy(), labels.numpy())
        assert np.abs(found.weight.numpy() - oracle.coef_).max() < 1e-4
        assert found.weight.shape == (4, dim)


@pytest.mark.parametrize("strength", [2.5e-4, 0.075, 25.0])
def test_the_promised_accuracy(strength: float) -> None:
    x, labels = data(200, 16)

    def objective(w: Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(x @ w.T, labels, reduction="sum") + strength / 2 * (w**2).sum())

    rough, exact = (fit(x, labels, 4, [strength], tolerance)[0] for tolerance in (1e-3, 1e-12))
    assert rough.gap <= 1e-3
    assert objective(exact.weight) <= objective(rough.weight) <= objective(exact.weight) * (1 + rough.gap)
    assert rough.products <= exact.products


def test_separable_images_and_a_strength_near_zero() -> None:
    """The hardest case of a sweep: the weights grow until nearly all images are told for certain."""
    x, labels = data(400, 64)
    found = fit(x, labels, 4, [2.5e-4])[0]
    p = (x @ found.weight.T).softmax(1)
    assert p[torch.arange(400), labels].median() > 0.99
    assert found.gap <= 1e-9
    assert found.products < 2000
    gradient = (p - torch.nn.functional.one_hot(labels, 4)).T @ x + 2.5e-4 * found.weight
    assert gradient.norm() < 1e-4 * found.weight.norm()


def test_it_stops_at_the_limit() -> None:
    found = fit(*data(400, 64), 4, [2.5e-4], max_products=20)[0]
    assert found.gap > 1e-9 and found.products <= 22


def test_the_strength_is_for_the_sum_over_images() -> None:
    """Each image twice with twice the strength: the same solution."""
    x, labels = data(40, 6)
    once = fit(x, labels, 4, [0.1], 1e-13)[0].weight
    twice = fit(torch.cat([x, x]), torch.cat([labels, labels]), 4, [0.2], 1e-13)[0].weight
    torch.testing.assert_close(once, twice, rtol=0, atol=1e-6)


def test_two_classes_by_hand() -> None:
    """One image each at +1 and -1: weights (-a, a) with strength * a = 2 * sigmoid(-2 a)."""
    weight = fit(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), 2, [0.3], 1e-14)[0].weight[:, 0]
    a = float(weight[1])
    assert weight[0] == pytest.approx(-a)
    assert 0.3 * a == pytest.approx(2 / (1 + np.exp(2 * a)), rel=1e-5)


def test_rows_are_centred_and_of_length_one() -> None:
    x = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([-2.0, -1.0, 3.0]) / 14**0.5
    torch.testing.assert_close(center_rows(x), torch.stack([expected, torch.zeros(3), torch.zeros(3)]))
    torch.testing.assert_close(unit_rows(x)[0], x[0] / 41**0.5)
    assert torch.equal(center_rows(x[:1]), center_rows(x)[:1])  # a row knows of no other
