"""A method wrapped for training in several processes."""

import contextlib
import inspect
import warnings
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nolabel.distributed.group import active


def data_parallel(module: nn.Module) -> nn.Module:
    """`module` with gradients averaged over processes. Buffers, the same everywhere by construction, are not sent."""
    if not active():
        return module
    # Gradients of 1x1 convolutions of channels-last images: the same memory described by other strides.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # the old name warns
    option: dict[str, Any] = {name: False}
    # Gradients are views of the buffers that are sent: this saves a second copy of them, and the copying in each step.
    return DistributedDataParallel(module, gradient_as_bucket_view=True, **option)


def gradients_stay(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Let backward passes in the block add up gradients and send none, for all micro-batches but the last."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()
