"""k-NN on tables with known answers, against a slow loop and against scikit-learn."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from nolabel.errors import DataError, NumericError, UsageError
from nolabel.evals.classification.neighbours import KNNResult, knn, leave_one_out, raw_floor
from nolabel.evals.shared.features import FeatureTable

Rows = Sequence[Sequence[float]] | torch.Tensor


def table(features: Rows, labels: Sequence[int] | torch.Tensor) -> FeatureTable:
    features = torch.as_tensor(features, dtype=torch.float32)
    return FeatureTable(features, torch.as_tensor(labels), tuple(f"{i:05d}" for i in range(len(features))))


def random_table(num: int, num_classes: int, seed: int, dim: int = 6) -> FeatureTable:
    """Clouds around the corners of a simplex, wide enough that neighbours are often wrong."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num)
    centres = np.random.default_rng(0).normal(size=(num_classes, dim))
    features = centres[labels] + 1.5 * rng.normal(size=(num, dim))
    return table(torch.from_numpy(features), torch.from_numpy(labels))


def slow(
    train: FeatureTable, test: FeatureTable, k: int, temperature: float, leave_out: bool = False
) -> list[list[int]]:
    """The voted classes of each test image, best first: the protocol as loops over Python floats."""
    ranking = []
    for i, x in enumerate(test.features.double().tolist()):
        near = []
        for j, y in enumerate(train.features.double().tolist()):
            if leave_out and i == j:
                continue
            norms = math.hypot(*x) * math.hypot(*y)
            near.append((-sum(a * b for a, b in zip(x, y, strict=True)) / norms if norms else 0.0, j))
        votes: dict[int, float] = {}
        for distance, j in sorted(near)[:k]:
            label = int(train.labels[j])
            votes[label] = votes.get(label, 0.0) + math.exp(-distance / temperature)
        ranking.append(sorted(votes, key=lambda c: (-votes[c], c)))
    return ranking


def percent(ranking: list[list[int]], labels: torch.Tensor, top: int) -> float:
    return 100 * sum(int(y) in r[:top] for r, y in zip(ranking, labels, strict=True)) / len(labels)


def test_duplicated_points() -> None:
    """E2: the vote of a neighbour at the same place, e^(1/.07) = 1.6e6, outweighs all that are orthogonal."""
    train = table([[1, 0], [0, 1], [0, 1], [0, 1]], [0, 1, 1, 1])
    test = table([[2, 0], [0, 3]], [0, 1])
    assert knn(train, test, (1, 4)).top1 == {1: 100.0, 4: 100.0}
    assert knn(train, test, (4,), temperature=10).top1 == {4: 50.0}  # e^.1 = 1.1 against 3 votes of 1


def test_votes_of_one_image_by_hand() -> None:
    """Similarities 1, .8 and .6: e^(1/T) = e^(.8/T) + e^(.6/T) at e^(.2/T) = 1.618, that is T = .4156."""
    train = table([[1, 0], [0.8, 0.6], [0.6, 0.8]], [0, 1, 1])
    for temperature, right in ((0.41, 100.0), (0.42, 0.0)):
        assert knn(train, table([[1, 0]], [0]), (3,), temperature).top1 == {3: right}


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("num_classes", [2, 7])
def test_against_a_slow_loop(temperature: float, num_classes: int) -> None:
    train, test = random_table(150, num_classes, 1), random_table(60, num_classes, 2)
    result = knn(train, test, (1, 5, 10, 200), temperature)
    assert (result.num_train, result.num_test) == (150, 60)
    for k in (1, 5, 10, 200):
        ranking = slow(train, test, k, temperature)
        assert result.top1[k] == percent(ranking, test.labels, 1)
        assert result.top5[k] == percent(ranking, test.labels, 5)
    assert 100 / num_classes < result.top1[10] < 100  # the tables tell right from wrong


def test_leave_one_out_against_a_slow_loop() -> None:
    points = random_table(90, 4, 3)
    result = leave_one_out(points, (1, 20, 500), chunk_size=32)
    for k in (1, 20, 500):
        ranking = slow(points, points, k, 0.07, leave_out=True)
        assert result.top1[k] == percent(ranking, points.labels, 1)
        assert result.top5[k] == percent(ranking, points.labels, 5)
    assert result.num_train == 89
    assert knn(points, points, (1,)).top1[1] == 100.0 > result.top1[1]


def test_against_scikit_learn() -> None:
    def votes(distance: np.ndarray) -> np.ndarray:
        weights: np.ndarray = np.exp((1 - distance) / 0.07)
        return weights

    train, test = random_table(2000, 10, 4, dim=16), random_table(500, 10, 5, dim=16)
    result = knn(train, test, (10, 20, 100, 200))
    for k in (10, 20, 100, 200):
        oracle = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=votes)
        oracle.fit(train.features.double().numpy(), train.labels.numpy())
        right = oracle.predict(test.features.double().numpy()) == test.labels.numpy()
        assert result.top1[k] == pytest.approx(100 * right.mean())


def test_chunks_change_nothing() -> None:
    """Few distinct points: nearly all neighbours are tied, so the order of ties decides the result."""
    rng = np.random.default_rng(6)
    points = [
        table(torch.from_numpy(rng.integers(-1, 2, size=(n, 3))), torch.from_numpy(rng.integers(5, size=n)))
        for n in (301, 150)
    ]
    expected, alone = knn(*points, (1, 7, 50)), leave_one_out(points[0], (1, 7, 50))
    for chunk_size in (7, 64, 150, 300):
        assert knn(*points, (1, 7, 50), chunk_size=chunk_size) == expected
        assert leave_one_out(points[0], (1, 7, 50), chunk_size=chunk_size) == alone


def test_the_earlier_of_equally_near_images_is_the_neighbour() -> None:
    train = table([[1, 0]] * 40, [3] * 20 + [1] * 20)
    assert knn(train, table([[1, 0]], [3]), (1, 20), chunk_size=3).top1 == {1: 100.0, 20: 100.0}


def test_the_lower_of_equally_scored_classes_wins() -> None:
    train = table([[1, 0]] * 4, [3, 1, 3, 1])
    assert knn(train, table([[1, 0]], [1]), (4,)).top1 == {4: 100.0}
    assert knn(train, table([[1, 0]], [3]), (4,)).top1 == {4: 0.0}


def test_a_class_without_votes_is_not_among_the_five() -> None:
    train = table([[1, 0], [1, 0], [0, 1]], [0, 1, 2])
    result = knn(train, table([[1, 0]] * 3, [0, 1, 2]), (1, 2, 3))
    assert result.top5 == pytest.approx({1: 100 / 3, 2: 200 / 3, 3: 100.0})


def test_top5_counts_five_classes() -> None:
    train = table([[10, i] for i in range(7)], range(7))  # the nearer to the axis, the lower the class
    result = knn(train, table([[1, 0]] * 7, range(7)), (7,))
    assert result.top5 == pytest.approx({7: 500 / 7})


def test_more_neighbours_than_images() -> None:
    train, test = random_table(30, 3, 7), random_table(5, 3, 8)
    result = knn(train, test, (10, 30, 200))
    assert (result.num_train, result.num_test) == (30, 5)
    assert result.top1.keys() == {10, 30, 200}
    assert result.top1[200] == result.top1[30]


def test_many_classes_and_one_test_image() -> None:
    train = table(torch.eye(1500), range(1500))
    test = table(torch.eye(1500)[[1499]], [1499])
    assert knn(train, test, (20,)) == KNNResult({20: 100.0}, {20: 100.0}, 1500, 1)
    test = table(torch.eye(1500).roll(1, 0), range(1500))
    assert knn(train, test, (1,)).top1 == {1: 0.0}


def test_labels_may_be_any_numbers() -> None:
    train, test = random_table(80, 5, 9), random_table(40, 5, 10)
    other = [t._replace(labels=t.labels * 10**12 - 7) for t in (train, test)]
    assert knn(*other) == knn(train, test)


def test_a_class_that_train_lacks_is_never_right() -> None:
    train = table([[1, 0], [0, 1]], [0, 1])
    assert knn(train, table([[1, 0], [1, 0]], [0, 9]), (2,)).top1 == {2: 50.0}


def test_zero_features_are_similar_to_nothing() -> None:
    train = table([[0, 0], [-1, 0], [1, 0]], [0, 1, 2])
    assert knn(train, table([[0, 0]], [0]), (1, 3)).top1 == {1: 100.0, 3: 100.0}  # the first, the lowest
    assert knn(train, table([[-1, 0]], [1]), (3,)).top1 == {3: 100.0}
    assert knn(train, table([[1, 0]], [0]), (2,)).top5 == {2: 100.0}  # similarity 0 is nearer than -1


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lengths_of_features_do_not_matter(scale: float) -> None:
    train, test = random_table(80, 5, 11), random_table(40, 5, 12)
    assert knn(train, test._replace(features=test.features * scale)) == knn(train, test)


def test_tiny_temperature_is_the_nearest_neighbour() -> None:
    train, test = random_table(80, 5, 13), random_table(40, 5, 14)
    assert knn(train, test, (20,), temperature=1e-9).top1[20] == knn(train, test, (1,)).top1[1]


def test_raw_floor_subtracts_the_mean_of_train() -> None:
    """On a bright background all pixels look alike; what differs is left once the mean is gone."""
    signal = torch.tensor([[1.0, 0, 0], [1.1, 0, 0], [-1.0, 0, 0], [-1.1, 0, 0]])
    noise = torch.tensor([[0, 3.0, 0], [0, 0, 3.0], [0, 3.0, 0], [0, 0, 3.0]])
    train = table(signal + 100, [0, 0, 1, 1])
    test = table(signal + 0.1 * noise + 100, [0, 0, 1, 1])
    assert raw_floor(train, test, (1,)).top1 == {1: 100.0}
    assert raw_floor(train, None, (1,)).top1 == {1: 100.0}
    shifted = test._replace(features=test.features + 50)  # the mean is train's, not test's
    assert raw_floor(train, shifted, (1,)).top1 == {1: 50.0}


def test_bad_arguments() -> None:
    good, empty = table([[1, 0]], [0]), table(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    for ks in ((), (0,), (5, -1)):
        with pytest.raises(UsageError, match="k must be at least 1"):
            knn(good, good, ks)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="above 0"):
            knn(good, good, temperature=temperature)
    for train, test in ((empty, good), (good, empty)):
        with pytest.raises(DataError, match="at least one of each"):
            knn(train, test)
    with pytest.raises(DataError, match="at least one of each"):
        leave_one_out(good)
    with pytest.raises(NumericError, match="not finite"):
        knn(good, table([[math.nan, 0]], [0]))
