"""k-NN and retrieval on large banks: CPU seconds of one thread and the most memory beside the features.

    python benchmarks/neighbours.py

384 random numbers per image; every case in a process of its own.
"""

import multiprocessing
import resource
import time

import torch

from nolabel.evals.classification.neighbours import knn
from nolabel.evals.retrieval.ranking import rankings
from nolabel.evals.shared.features import FeatureTable

DIM, CLASSES = 384, 1000
KNN = ((100_000, 1000), (300_000, 1000), (1_000_000, 1000))
RETRIEVAL = ((50_000, 70), (200_000, 70), (800_000, 70))


def table(num_images: int, seed: int) -> FeatureTable:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (num_images,), generator=rng)
    return FeatureTable(torch.randn(num_images, DIM, generator=rng), labels, ("",) * num_images)


def measure(kind: str, num_bank: int, num_queries: int) -> None:
    torch.set_num_threads(1)
    bank, queries = table(num_bank, 0), table(num_queries, 1)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if kind == "k-NN":
        knn(bank, queries)
    else:
        for _ in rankings(queries.features, bank.features):
            pass
    seconds = time.process_time() - start
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    size = num_bank * DIM * 4 / 2**30
    print(
        f"{kind} {num_bank:,} x {num_queries:,}: {seconds:.1f} s, features {size:.2f} GiB, {more:.2f} GiB more",
        flush=True,
    )


if __name__ == "__main__":
    for kind, cases in (("k-NN", KNN), ("retrieval", RETRIEVAL)):
        for case in cases:
            process = multiprocessing.get_context("spawn").Process(target=measure, args=(kind, *case))
            process.start()
            process.join()
