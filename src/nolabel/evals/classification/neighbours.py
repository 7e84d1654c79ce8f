"""Weighted k-nearest-neighbour classification of frozen features (DINO's protocol, Caron et al. 2021).

The nearest training images by cosine similarity vote for their classes, with weight
exp(similarity / temperature).

Ties have an order, so neither chunk sizes nor threads nor the device change a result. Similarities are
computed in float64 and rounded to multiples of 2^-24; of equally similar images the earlier one in the table
is nearer, of equally scored classes the one of lower id wins.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nolabel.errors import DataError, NumericError, UsageError
from nolabel.evals.shared.features import FeatureTable, all_finite

KS = (10, 20, 100, 200)


TEMPERATURE = 0.07


_GRID = 2**24


_MAX_TRAIN = 2**27  # similarity (25 bits) and index (27 bits) fit the 53 bits of a float64


_MAX_VOTES = 2**22


class KNNResult(NamedTuple):
    """Accuracies in percent by k. A k above `num_train` means all training images."""

    top1: dict[int, float]
    top5: dict[int, float]
    """The class is among the five of highest score; a class without votes never counts."""
    num_train: int
    """Images that a test image is compared with."""
    num_test: int


def knn(
    train: FeatureTable,
    test: FeatureTable,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    chunk_size: int = 4096,
    device: str | torch.device = "cpu",
) -> KNNResult:
    """Classify the images of `test` by their neighbours in `train`; any number of images and of classes.

    Beside the tables it needs memory for `chunk_size`^2 similarities (4096: about 0.5 GB). A zero feature has
    similarity 0 with everything. Raises UsageError for k < 1 or a temperature <= 0, DataError for an empty
    table, NumericError for features that are not finite.
    """
    return _classify(train, test, ks, temperature, chunk_size, torch.device(device), leave_out=False)


def leave_one_out(
    table: FeatureTable,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    chunk_size: int = 4096,
    device: str | torch.device = "cpu",
) -> KNNResult:
    """Classify each image of `table` by its neighbours among the others; else as `knn`.

    The only image of a class can't be right.
    """
    return _classify(table, table, ks, temperature, chunk_size, torch.device(device), leave_out=True)


def raw_floor(
    train: FeatureTable,
    test: FeatureTable | None,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    device: str | torch.device = "cpu",
) -> KNNResult:
    """`knn` or, without `test`, `leave_one_out` of pixels minus the mean of `train`."""
    mean = train.features.mean(0, dtype=torch.float64).float()
    train = train._replace(features=train.features - mean)
    if test is None:
        return leave_one_out(train, ks, temperature, device=device)
    return knn(train, test._replace(features=test.features - mean), ks, temperature, device=device)


def _classify(
    train: FeatureTable,
    test: FeatureTable,
    ks: Sequence[int],
    temperature: float,
    chunk_size: int,
    device: torch.device,
    leave_out: bool,
) -> KNNResult:
    num_train, num_test = len(train.labels) - leave_out, len(test.labels)
    check_settings(ks, temperature)
    _check_tables(train, test, num_train)
    if device.type == "mps":
        device = torch.device("cpu")  # has no float64
    classes, labels = torch.unique(torch.cat([train.labels, test.labels]), return_inverse=True)
    known, truth = labels[: len(train.labels)].to(device), labels[len(train.labels) :].to(device)
    sizes = {k: min(k, num_train) for k in ks}
    hits = {size: torch.zeros(2, dtype=torch.int64) for size in sizes.values()}
    for rows in torch.split(torch.arange(num_test), chunk_size):
        similarity, nearest = _neighbours(train.features, test.features, rows, max(hits), chunk_size, device, leave_out)
        for part in torch.split(torch.arange(len(rows)), max(1, _MAX_VOTES // len(classes))):
            votes = similarity[part], known[nearest[part]]
            for size, hit in _hits(*votes, truth[rows[part]], hits.keys(), temperature).items():
                hits[size] += hit
    top1, top5 = ({k: 100 * int(hits[size][i]) / num_test for k, size in sizes.items()} for i in (0, 1))
    return KNNResult(top1, top5, num_train, num_test)


def check_settings(ks: Sequence[int], temperature: float) -> None:
    """UsageError for k < 1 or a temperature <= 0."""
    if not ks or min(ks) < 1:
        raise UsageError(f"k must be at least 1, not {', '.join(map(str, ks)) or 'nothing'}.")
    if not temperature > 0:
        raise UsageError(f"The temperature of the votes must be above 0, not {temperature}.")


def _check_tables(train: FeatureTable, test: FeatureTable, num_train: int) -> None:
    num_test = len(test.labels)
    if num_train < 1 or num_test < 1:
        raise DataError(f"k-NN compares {num_test} images with {num_train}: at least one of each is needed.")
    assert num_train < _MAX_TRAIN
    if not (all_finite(train.features) and all_finite(test.features)):
        raise NumericError("Some features are not finite: the weights are damaged.")


def _neighbours(
    train: Tensor, test: Tensor, rows: Tensor, k: int, chunk_size: int, device: torch.device, leave_out: bool
) -> tuple[Tensor, Tensor]:
    """Similarity (B, k) float64 and index (B, k) of the rows of `train` nearest to `test[rows]`, in order.

    Rounded similarity and index make one exact number, similarity * 2^51 - index. No two of a row are equal,
    so the largest of the chunks' largest are the same for every chunk size.
    """
    queries = _unit(test[rows].to(device)) * _GRID
    best = queries.new_empty(len(rows), 0)
    for columns in torch.split(torch.arange(len(train), device=device), chunk_size):
        keys = queries @ _unit(train[columns[0] : columns[-1] + 1].to(device)).T
        keys.round_().mul_(_MAX_TRAIN).sub_(columns)
        if leave_out:
            keys[rows.to(device)[:, None] == columns] = -torch.inf
        best = torch.cat([best, keys.topk(min(k, len(columns))).values], 1)
        best = best.topk(min(k, best.shape[1])).values
    similarity = (best / _MAX_TRAIN).ceil()
    return similarity / _GRID, (similarity * _MAX_TRAIN - best).long()


def _unit(x: Tensor) -> Tensor:
    x = x.double()
    unit: Tensor = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return unit


def _hits(
    similarity: Tensor, found: Tensor, truth: Tensor, ks: Collection[int], temperature: float
) -> dict[int, Tensor]:
    """Number of B images that are right (top-1, top-5) for each k; `found` (B, K) are the neighbours' labels.

    Votes are relative to that of the nearest neighbour, so no temperature overflows.
    """
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    num_classes = int(torch.maximum(found.max(), truth.max())) + 1
    votes = weights.new_zeros(len(truth), num_classes)
    ids, image = torch.arange(num_classes, device=found.device), torch.arange(len(truth), device=found.device)
    hits = {}
    for k in range(1, found.shape[1] + 1):
        votes[image, found[:, k - 1]] += weights[:, k - 1]
        if k in ks:
            own = votes.gather(1, truth[:, None])
            better = ((votes > own) | ((votes == own) & (ids < truth[:, None]))).sum(1)
            hits[k] = torch.stack([((better < top) & (own[:, 0] > 0)).sum() for top in (1, 5)]).cpu()
    return hits
