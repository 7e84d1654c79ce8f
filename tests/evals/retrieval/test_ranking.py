"""AP and precision by hand, by a slow loop over the definition, and by scikit-learn where the two agree."""

import math
import random
import time

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve
from torch import Tensor

from nolabel.errors import NumericError
from nolabel.evals.retrieval import ranking
from nolabel.evals.retrieval.ranking import (
    Truth,
    average_precision,
    mean_ap_of_first,
    positive_ranks,
    precision_at,
    rankings,
    score,
)


@pytest.mark.parametrize(
    ("ranks", "num_positives", "expected"),
    [
        ([0], 1, 1.0),
        ([1], 1, 0.25),
        ([0, 2], 2, (1 + 1) / 4 + (1 / 2 + 2 / 3) / 4),
        ([0, 1, 2], 3, 1.0),
        ([0], 2, 0.5),  # the other one is not among the answers
        ([], 1, 0.0),
    ],
)
def test_average_precision_by_hand(ranks: list[int], num_positives: int, expected: float) -> None:
    assert average_precision(ranks, num_positives) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("ranks", "k", "expected"),
    [([0, 2], 1, 1.0), ([0, 2], 2, 0.5), ([0, 2], 10, 2 / 3), ([4], 5, 0.2), ([4], 1, 0.0), ([0], 10, 1.0)],
)
def test_precision_by_hand(ranks: list[int], k: int, expected: float) -> None:
    assert precision_at(ranks, k) == pytest.approx(expected, abs=1e-15)


def test_junk_is_neither_right_nor_wrong() -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    assert positive_ranks(order, Truth([0, 2], [3, 1])) == [0, 2]
    assert positive_ranks(order, Truth([0, 2])) == [1, 4]
    assert positive_ranks(order, Truth([], [3])) == []


def by_definition(query: Tensor, database: Tensor, truth: Truth) -> float:
    """The area under the precision-recall curve, answer by answer: recall rises at positives, by trapezoids."""
    similarity = [float(torch.cosine_similarity(query.double(), row.double(), dim=0)) for row in database]
    answers = sorted(range(len(database)), key=lambda i: (-similarity[i], i))
    recall, precision, area, found, seen = 0.0, 1.0, 0.0, 0, 0
    for answer in answers:
        if answer in truth.junk:
            continue
        seen += 1
        found += answer in truth.positives
        area += (found / len(truth.positives) - recall) * (precision + found / seen) / 2
        recall, precision = found / len(truth.positives), found / seen
    return area


def test_scores_equal_a_slow_loop() -> None:
    generator, rng = torch.Generator().manual_seed(0), random.Random(0)
    database, queries = (torch.randn(n, 8, generator=generator) for n in (60, 7))
    truths = []
    for _ in queries:
        chosen = rng.sample(range(60), 12)
        truths.append(Truth(chosen[:8], chosen[8:]))
    found = score(queries, database, {"all": truths}, (1, 5))["all"]
    expected = [by_definition(q, database, t) for q, t in zip(queries, truths, strict=True)]
    assert found.mean_ap == pytest.approx(np.mean(expected), abs=1e-12)
    assert found.num_queries == 7


def test_the_curve_is_that_of_scikit_learn() -> None:
    """Both take precision and recall after each answer; scikit-learn's AP adds steps, ours trapezoids from (0, 1)."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, right = rng.permutation(50), rng.random(50) < 0.2
        right[0] = True
        ranks = sorted(np.flatnonzero(right[np.argsort(-scores)]).tolist())
        steps = sum((i + 1) / (rank + 1) for i, rank in enumerate(ranks)) / len(ranks)
        assert average_precision_score(right, scores) == pytest.approx(steps)
        precision, recall, _ = precision_recall_curve(right, scores)
        assert average_precision(ranks, len(ranks)) == pytest.approx(-np.trapezoid(precision, recall))
        assert average_precision(ranks, len(ranks)) <= steps + 1e-12


def test_a_query_without_answers_is_left_out() -> None:
    database = torch.eye(3)
    truths = [Truth([0]), Truth([])]
    found = score(torch.eye(3)[:2], database, {"easy": truths, "none": [Truth([])] * 2}, (1,))
    assert (found["easy"].mean_ap, found["easy"].num_queries) == (1.0, 1)
    assert math.isnan(found["none"].mean_ap) and found["none"].num_queries == 0


def test_ties_are_in_the_order_of_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    database = torch.tensor([[1.0, 0], [0, 0], [2, 0], [0, 1], [3, 0], [-1, 0]])
    queries = torch.tensor([[1.0, 0], [0, 0]])
    for cells, least in ((2**24, 64), (1, 64), (1, 1)):
        monkeypatch.setattr(ranking, "_MAX_CELLS", cells)
        monkeypatch.setattr(ranking, "_MIN_QUERIES", least)
        assert [order.tolist() for order in rankings(queries, database)] == [[0, 2, 4, 1, 3, 5], [0, 1, 2, 3, 4, 5]]
        assert [order.tolist() for order in rankings(queries, database, 2)] == [[0, 2], [0, 1]]


def test_only_the_first_answers_count() -> None:
    angles = torch.arange(5) / 10
    database = torch.stack([angles.cos(), angles.sin()], 1)
    query = database[:1].repeat(3, 1)
    assert mean_ap_of_first(query, database, [0, 1, 4], 2) == pytest.approx((1 + 0.25 + 0) / 3)
    assert mean_ap_of_first(query, database, [4, 4, 4], 5) == pytest.approx(average_precision([4], 1))


def test_damaged_features() -> None:
    with pytest.raises(NumericError, match="not finite"):
        list(rankings(torch.tensor([[float("nan")]]), torch.ones(1, 1)))


@pytest.mark.slow
def test_time_is_linear_in_the_database() -> None:
    """Four times the images in at most seven times the time (the sort adds a logarithm)."""
    times = []
    for size in (50_000, 200_000):
        generator = torch.Generator().manual_seed(0)
        database, queries = (torch.randn(n, 64, generator=generator) for n in (size, 20))
        truths = {"all": [Truth(range(10), range(10, 20))] * 20}
        started = time.perf_counter()
        score(queries, database, truths, (1, 5, 10))
        times.append(time.perf_counter() - started)
    assert times[1] < 7 * times[0]
