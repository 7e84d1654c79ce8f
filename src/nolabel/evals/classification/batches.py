"""The images of each training batch, a function of the seed."""

from collections.abc import Iterator

import torch
from torch import Tensor

from nolabel.data.order import order


def batch_rows(
    num_images: int, steps: int, steps_per_epoch: int, batch_size: int, seed: int, device: str | torch.device = "cpu"
) -> Iterator[tuple[int, Tensor]]:
    """Epoch and row numbers (batch_size,) of every step: a new order per epoch, its incomplete last batch left out."""
    for step in range(steps):
        epoch, place = divmod(step, steps_per_epoch)
        if place == 0:
            permutation = order(num_images, seed, epoch).to(device)
        yield epoch, permutation[place * batch_size : (place + 1) * batch_size]


def batch_keys(
    num_images: int, steps: int, steps_per_epoch: int, batch_size: int, seed: int
) -> list[list[tuple[int, int]]]:
    """(epoch, row) of every image of every step, in the order of `batch_rows`."""
    batches = batch_rows(num_images, steps, steps_per_epoch, batch_size, seed)
    return [[(epoch, row) for row in rows.tolist()] for epoch, rows in batches]
