"""The queue of MoCo: keys of earlier batches, the oldest replaced first (He et al. 2020, arXiv 1911.05722)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nolabel import distributed


class Queue(nn.Module):
    """A ring of `size` unit vectors (size, dim). It starts with random ones from torch's global generator.

    Takes batches of any size; one larger than the ring leaves its last `size` rows. Equal in all processes as long as
    all start from one seed.
    """

    keys: Tensor
    pointer: Tensor
    """The row to be written next, 0-d int64: a buffer, so that it is saved, and never read by the host."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor, ok: Tensor) -> None:
        """Write the rows `keys` (B, dim) of every process, in rank order, where `ok` (0-d) is 1; else nothing moves."""
        keys = distributed.all_gather(keys.float())
        size, number = len(self.keys), len(keys)
        kept = keys[-size:]  # no row is written twice: which one of the two would stay is not defined
        first = self.pointer + (number - len(kept))
        places = (first + torch.arange(len(kept), device=keys.device)) % size
        good = ok.bool()
        self.keys.index_copy_(0, places, torch.where(good, kept, self.keys[places]))
        self.pointer.copy_(torch.where(good, (self.pointer + number) % size, self.pointer))
