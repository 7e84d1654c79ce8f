"""The state of torch that nolabel changes while it works, and restores for the program that called it."""

import contextlib
import threading
from collections.abc import Iterator

import torch

from nolabel.errors import UsageError

_BUSY = threading.Lock()


@contextlib.contextmanager
def own_state() -> Iterator[None]:
    """Use torch's defaults within the block; afterwards threads, random state and gradient mode are as before.

    UsageError where another thread is in such a block: both would draw from one generator, so neither run could be
    repeated.
    """
    if not _BUSY.acquire(blocking=False):
        raise UsageError(
            "nolabel is at work in another thread of this process, and both would draw from torch's one generator.\n"
            "Start the second one in a process of its own, or after the first."
        )
    try:
        threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
        device = contextlib.nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
        cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        with torch.random.fork_rng(devices=cuda), torch.inference_mode(False), torch.enable_grad(), device:
            torch.set_default_dtype(torch.float32)
            try:
                yield
            finally:
                torch.set_default_dtype(dtype)
                torch.set_num_threads(threads)
    finally:
        _BUSY.release()
