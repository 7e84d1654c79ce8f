"""Memory of the process: keep what is freed, and explain what to do when it runs out."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Any

import torch

from nolabel.config import TrainConfig
from nolabel.errors import UsageError


def keep_freed_memory() -> None:
    """Let this process keep what its tensors free, where the C library is glibc.

    glibc maps each block of more than 32 MB again, and returns what is free at the end of its heap. Then a step touches
    its memory page by page, which took a fifth to a third of its time (docs/results.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(ctypes.c_int(-4), ctypes.c_int(0))  # M_MMAP_MAX: nothing is mapped
        mallopt(ctypes.c_int(-1), ctypes.c_int(2**31 - 1))  # M_TRIM_THRESHOLD: nothing is given back


@contextlib.contextmanager
def enough_memory(config: TrainConfig[Any], step: int) -> Iterator[None]:
    """Turn lack of device memory in a step into a UsageError with what to change. The optimizer has not moved then."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        micro = config.micro_batch
        half = f"nolabel resume {config.out} --micro-batch {max(int(micro) // 2, 1)} --allow-change"
        raise UsageError(
            f"The memory of {config.device} does not hold step {step}: batch {config.batch_size}, micro-batch {micro}, "
            f"{config.backbone}, {config.precision}.\n{' '.join(str(error).split())[:200]}\n"
            f"Nothing has moved in this step. Smaller pieces of the same batch: {half}\n"
            "The same numbers with less memory: resume with --keep-less (plain ViTs), or with --grad-checkpointing."
        ) from error
