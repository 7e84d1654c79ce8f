"""Quality of a ranking for queries: average precision and precision at k, with images that count as neither.

Pure functions of features and of who belongs to whom. Ties have an order, as in k-NN: cosine similarities are computed
in float64 and rounded to multiples of 2^-24, and of equally similar images the earlier one in the database comes first.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nolabel.errors import NumericError
from nolabel.evals.shared.features import all_finite

_GRID = 2**24
_MAX_DATABASE = 2**27  # similarity (25 bits) and index (27 bits) fit the 53 bits of a float64
_MAX_CELLS = 2**24  # similarities sorted at a time: 128 MB
_MIN_QUERIES = 64  # at a time, however large the database: its features are brought to length 1 again for each time


class Truth(NamedTuple):
    """Images of the database that belong to one query; all others are wrong answers."""

    positives: Sequence[int]
    junk: Sequence[int] = ()
    """Removed from the ranking before it is judged: neither right nor wrong."""


class Score(NamedTuple):
    """Means over the queries that have a positive, from 0 to 1; nan where none has."""

    mean_ap: float
    precision: dict[int, float]
    """Mean precision among the first k, by k."""
    num_queries: int


def average_precision(ranks: Sequence[int], num_positives: int) -> float:
    """Area under the precision-recall curve, by trapezoids, for positives at `ranks` (from 0, ascending).

    Each positive adds the mean of the precision just before and just after it: 2 positives at ranks 0 and 2 give
    1/2 * (1 + 1)/2 + 1/2 * (1/2 + 2/3)/2. This is the measure of the Oxford buildings (Philbin et al. 2007), of the
    revisited protocol (Radenović et al. 2018) and of DINO. The common non-interpolated AP takes the precision after
    it alone, and is never smaller. Positives without a rank add nothing.
    """
    area = 0.0
    for right, rank in enumerate(ranks):
        before = right / rank if rank else 1.0
        area += (before + (right + 1) / (rank + 1)) / 2
    return area / num_positives


def precision_at(ranks: Sequence[int], k: int) -> float:
    """Share of positives among the first k, or among those up to the last positive if it comes sooner.

    `ranks` (from 0, ascending) are those of all positives (Radenović et al. 2018).
    """
    k = min(k, ranks[-1] + 1)
    return sum(rank < k for rank in ranks) / k


def positive_ranks(order: Tensor, truth: Truth) -> list[int]:
    """Ranks from 0 of the positives in `order` (n,), indices of the database, once the junk is taken out."""
    is_junk = torch.isin(order, torch.tensor(truth.junk, dtype=torch.int64))
    is_positive = torch.isin(order, torch.tensor(truth.positives, dtype=torch.int64))
    ranks: list[int] = ((~is_junk).cumsum(0) - 1)[is_positive].tolist()
    return ranks


def rankings(
    queries: Tensor, database: Tensor, k: int | None = None, device: str | torch.device = "cpu"
) -> Iterator[Tensor]:
    """For each query of (Q, D) the indices of the database (N, D), most similar first; (N,), or (k,) with `k`.

    Time and memory grow linearly in N (but for the sort's log N) and in Q; beside the features it needs about 0.5 GB,
    or 1.2 N kB. A zero feature has similarity 0 with everything. Raises NumericError for what is not finite.
    """
    assert len(database) < _MAX_DATABASE
    if not (all_finite(queries) and all_finite(database)):
        raise NumericError("Some features are not finite: the weights are damaged.")
    device = torch.device(device)
    if device.type == "mps":
        device = torch.device("cpu")  # has no float64
    num_rows = max(1, _MAX_CELLS // len(database))
    for rows in torch.split(queries, max(_MIN_QUERIES, num_rows)):
        for keys in torch.split(_keys(_unit(rows.to(device)), database, device), num_rows):
            # No two keys of a row are equal, so neither sort nor topk has a choice.
            best = keys.sort(1, descending=True) if k is None else keys.topk(min(k, len(database)), 1)
            yield from best.indices.cpu()


def score(
    queries: Tensor,
    database: Tensor,
    truths: Mapping[str, Sequence[Truth]],
    ks: Sequence[int],
    device: str | torch.device = "cpu",
) -> dict[str, Score]:
    """Mean AP and mean precision at each k by level; `truths` holds one Truth per query for each level.

    The database (N, D) is ranked once for all levels. A query without a positive at a level is left out there.
    """
    rows: dict[str, list[tuple[float, list[float]]]] = {level: [] for level in truths}
    for i, order in enumerate(rankings(queries, database, device=device)):
        for level, truth in truths.items():
            if truth[i].positives:
                ranks = positive_ranks(order, truth[i])
                rows[level].append((average_precision(ranks, len(ranks)), [precision_at(ranks, k) for k in ks]))
    scores = {}
    for level, values in rows.items():
        mean_ap = _mean([ap for ap, _ in values])
        scores[level] = Score(mean_ap, {k: _mean([p[i] for _, p in values]) for i, k in enumerate(ks)}, len(values))
    return scores


def mean_ap_of_first(
    queries: Tensor, database: Tensor, positives: Sequence[int], k: int, device: str | torch.device = "cpu"
) -> float:
    """Mean AP, 0 to 1, over only the first `k` answers, where each query has one positive (copy detection)."""
    ranked = zip(rankings(queries, database, k, device), positives, strict=True)
    ranks = [(order == positive).nonzero().flatten().tolist() for order, positive in ranked]
    return _mean([average_precision(rank, 1) for rank in ranks])


def _keys(queries: Tensor, database: Tensor, device: torch.device) -> Tensor:
    """(Q, N) float64: rounded similarity and index as one exact number, similarity * 2^51 - index."""
    keys = queries.new_empty(len(queries), len(database))
    for columns in torch.split(torch.arange(len(database), device=device), 2**12):
        part = slice(int(columns[0]), int(columns[-1]) + 1)
        similarity = queries @ _unit(database[part].to(device)).T
        keys[:, part] = similarity.mul_(_GRID).round_().mul_(_MAX_DATABASE).sub_(columns)
    return keys


def _unit(x: Tensor) -> Tensor:
    x = x.double()
    unit: Tensor = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return unit


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
