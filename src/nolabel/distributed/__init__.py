"""Processes: collectives, BatchNorm over all of them, gradients averaged; identity in a single process."""

from nolabel.distributed.batchnorm import SyncBatchNorm, synchronize_batchnorm
from nolabel.distributed.group import (
    active,
    all_gather,
    all_mean,
    all_sum,
    any_process,
    barrier,
    check_launcher,
    is_main,
    number_of,
    process_group,
    rank,
    world_size,
)
from nolabel.distributed.parallel import data_parallel, gradients_stay

__all__ = [
    "SyncBatchNorm",
    "active",
    "all_gather",
    "all_mean",
    "all_sum",
    "any_process",
    "barrier",
    "check_launcher",
    "data_parallel",
    "gradients_stay",
    "is_main",
    "number_of",
    "process_group",
    "rank",
    "synchronize_batchnorm",
    "world_size",
]
