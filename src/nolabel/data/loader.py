"""A stream of batches of views that has no state: which images, in which order and cut how, is a function of the step.

So resuming is starting at a step, and the number of workers or of processes changes no pixel.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nolabel import distributed
from nolabel.data.decode import BadImage, load, open_image
from nolabel.data.images import BadFile, Images, printable, read, too_many_bad
from nolabel.errors import DataError
from nolabel.views import View, apply, draw, reduced, reduction
from nolabel.views.draw import generator


class Stream(NamedTuple):
    """Everything that decides what the batches hold."""

    images: Images
    views: tuple[View, ...]
    seed: int
    batch_size: int
    """Images a step over all processes."""
    offset: int = 0
    """Batches of the order that are left out before step 0: after a roll-back the next ones come instead."""
    full_decode: bool = False
    """Decode large JPEGs in full, not at 1/2, 1/4 or 1/8 where the crops allow it: slower, other pixels, same crops."""


class Batch(NamedTuple):
    """The share of one process in one step."""

    views: list[Tensor]
    """One uint8 tensor (B, 3, size, size) a view."""
    bad: list[list[BadFile]]
    """For each slot whose file could not be read: that file, then those that failed to replace it."""


def steps_per_epoch(stream: Stream) -> int:
    """Whole batches in one pass over the images; the incomplete last one is dropped."""
    return len(stream.images.names) // stream.batch_size


def order(num_images: int, seed: int, epoch: int) -> Tensor:
    """The permutation (N,) int64 of the images in an epoch."""
    return torch.from_numpy(generator(seed, epoch).permutation(num_images))


def samples(stream: Stream, steps: range, rank: int, world_size: int) -> Iterator[list[tuple[int, int]]]:
    """For each step the (epoch, image) pairs of this process: its slice of the global batch."""
    per_epoch, share = steps_per_epoch(stream), stream.batch_size // world_size
    current, permutation = -1, torch.empty(0)
    for step in steps:
        epoch, position = divmod(step + stream.offset, per_epoch)
        if epoch != current:
            current, permutation = epoch, order(len(stream.images.names), stream.seed, epoch)
        start = position * stream.batch_size + rank * share
        yield [(epoch, int(i)) for i in permutation[start : start + share]]


def batches(stream: Stream, steps: range, workers: int, pin_memory: bool = False) -> Iterator[Batch]:
    """The batches of `steps` for this process. `workers` processes prepare them; 0 does it in place."""
    loader = DataLoader(
        _Views(stream),
        batch_sampler=_Sampler(stream, steps, distributed.rank(), distributed.world_size()),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
    )
    yield from loader


class _Sampler:
    def __init__(self, stream: Stream, steps: range, rank: int, world_size: int) -> None:
        self.arguments = stream, steps, rank, world_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return samples(*self.arguments)

    def __len__(self) -> int:
        return len(self.arguments[1])


Key = tuple[int, int, int, int]
"""(seed, epoch, sample, view): what the randomness of a view is a function of."""

Item = tuple[list[Tensor], list[BadFile]]
"""The views of a slot, and the files that could not be read on the way to it, its own first."""


class _Views(Dataset[Item]):
    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.bad: dict[int, BadFile] = {}  # a broken folder is then read once a worker, not once a slot

    def __getitem__(self, key: tuple[int, int]) -> Item:
        return _first_good(self.stream, *key, self.bad)


def cut(data: bytes, views: Sequence[View], keys: Sequence[Key], full_decode: bool = False) -> list[Tensor]:
    """The views (3, size, size) uint8 of the image in `data`; BadImage where it cannot be decoded.

    The parameters are drawn first, from the size in the header, so they do not depend on the size it is decoded at.
    """
    opened = open_image(data)
    drawn = [draw(v, key, opened.facts.height, opened.facts.width) for v, key in zip(views, keys, strict=True)]
    factor = 1 if full_decode or opened.pixels is not None else reduction(views, drawn)
    image = load(opened, factor)
    return [apply(image, view, reduced(one, factor)) for view, one in zip(views, drawn, strict=True)]


def _first_good(stream: Stream, epoch: int, sample: int, known: dict[int, BadFile]) -> Item:
    """The crops of the image, or of the next one in the list that can be decoded, and the bad files on the way.

    `known` grows.
    """
    images, bad = stream.images, list[BadFile]()
    num_images = len(images.names)
    # A replacement keeps the random key of the slot, so a bad file changes nothing but its own slot.
    keys = [(stream.seed, epoch, sample, v) for v in range(len(stream.views))]
    while not too_many_bad(len(bad), len(bad), num_images):
        index = (sample + len(bad)) % num_images
        data = b""
        try:
            if index not in known:
                data = read(images, index)
                return cut(data, stream.views, keys, stream.full_decode), bad
        except BadImage as error:
            known[index] = BadFile(images.names[index], error.reason, error.detail, len(data))
        bad.append(known[index])
    raise DataError(
        f"{len(bad)} files in a row cannot be read, the first is {printable(bad[0].name)}: {bad[0].reason}.\n"
        "`nolabel check DATA` lists them all with reasons; repair or remove them and start again."
    )


def _collate(items: Sequence[Item]) -> Batch:
    views = [torch.stack(crops) for crops in zip(*(crops for crops, _ in items), strict=True)]
    return Batch(views, [bad for _, bad in items if bad])
