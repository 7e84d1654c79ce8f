"""Train and eval modes of a network."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module has its own mode back."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        # Not inference_mode: a network may keep a tensor of its forward, and must still train afterwards.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
