"""Shuffling BatchNorm (He et al. 2020, section 3.3): each process normalises keys of images that it does not query.

Without it, or BatchNorm over the joined batch, an image and its key would share the statistics of one small batch, and
the network could find the right key by them. A single process has no other process to exchange images with.
"""

import torch
from torch import Tensor, nn

from nolabel import distributed
from nolabel.randomness import generator


def shuffle(x: Tensor, step: int) -> Tensor:
    """This process's share (B, ...) of the rows of all processes, in an order that depends on `step` alone."""
    return _reorder(x, _order(len(x), step))


def unshuffle(x: Tensor, step: int) -> Tensor:
    """The rows (B, ...) that belong to this process, back in their order, after `shuffle` with the same `step`."""
    return _reorder(x, _order(len(x), step).argsort())


def _order(num_rows: int, step: int) -> Tensor:
    return torch.from_numpy(generator("shuffle", 0, step).permutation(num_rows * distributed.world_size()))


def _reorder(x: Tensor, order: Tensor) -> Tensor:
    mine = order.chunk(distributed.world_size())[distributed.rank()]
    return distributed.all_gather(x)[mine.to(x.device)]


@torch.no_grad()
def average_statistics(module: nn.Module, ok: Tensor) -> None:
    """Give every process the mean of all running statistics, where `ok` (0-d) is 1: buffers stay equal everywhere."""
    buffers = [b for n, b in module.named_buffers() if n.endswith(("running_mean", "running_var"))]
    if not (buffers and distributed.active()):
        return
    means = distributed.all_mean(torch.cat(buffers))
    for buffer, mean in zip(buffers, torch.split(means, [len(b) for b in buffers]), strict=True):
        buffer.copy_(torch.where(ok.bool(), mean, buffer))
