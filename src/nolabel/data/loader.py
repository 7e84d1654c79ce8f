"""A stream of batches of views that has no state: which images, in which order and cut how, is a function of the step.

So resuming is starting at a step, and the number of workers or of processes changes no pixel.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nolabel import distributed
from nolabel.data.bad_files import BadFile, BadImage, too_many_bad
from nolabel.data.decode import load, open_image
from nolabel.data.images import Images, read
from nolabel.data.levels import Range
from nolabel.data.names import printable
from nolabel.data.order import images_at
from nolabel.data.workers import MAX_RESTARTS, PREFETCH, DeadWorker, restarted, survives
from nolabel.errors import DataError
from nolabel.views import Apply, Drawn, Sources, View, apply, as_rows, draw, reduction, scaled_down, view_function


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
    whole: bool = False
    """Send whole images and the parameters of their views: the device cuts them."""
    engine: Literal["torch", "numba"] = "torch"
    """Engine that makes the views otherwise: `views.engine`."""
    piped: bool = False
    """Send batches through pipes: where shared memory is too small for those that wait."""


class Batch(NamedTuple):
    """The share of one process in one step."""

    views: list[Tensor]
    """One uint8 tensor (B, 3, size, size) a view."""
    bad: list[list[BadFile]]
    """For each slot whose file could not be read: that file, then those that failed to replace it."""
    notes: tuple[str, ...] = ()
    """Deaths and restarts of the processes that prepare batches since the last one."""
    sources: Sources | None = None
    """With `Stream.whole`, instead of `views`."""
    decode_ms: float = 0.0
    """Milliseconds that reading and decoding an image took, mean of the batch."""
    crop_ms: float = 0.0
    """Milliseconds that drawing and cutting its views took; with `Stream.whole`, drawing alone."""


def steps_per_epoch(stream: Stream) -> int:
    """Whole batches in one pass over the images; the incomplete last one is dropped."""
    return len(stream.images.names) // stream.batch_size


def samples(stream: Stream, steps: range, rank: int, world_size: int) -> Iterator[list[tuple[int, int]]]:
    """For each step the (epoch, image) pairs of this process: its slice of the global batch."""
    per_epoch, share = steps_per_epoch(stream), stream.batch_size // world_size
    for step in steps:
        epoch, position = divmod(step + stream.offset, per_epoch)
        start = position * stream.batch_size + rank * share
        places = range(start, start + share)
        yield [(epoch, i) for i in images_at(places, len(stream.images.names), stream.seed, epoch)]


def batches(stream: Stream, steps: range, workers: int, pin_memory: bool = False) -> Iterator[Batch]:
    """The batches of `steps` for this process. `workers` processes prepare them; 0 does it in place.

    Processes that die or hang are started again, which changes no pixel; DeadWorker where that does not help.
    """
    known: dict[int, BadFile] = {}
    notes: list[str] = []

    def start(done: int, alone: bool) -> Iterator[Batch | DataError]:
        some = steps[done : done + 1] if alone else steps[done:]
        loader = DataLoader(
            _Views(stream, known),
            batch_sampler=_Sampler(stream, some, distributed.rank(), distributed.world_size()),
            num_workers=min(workers, 1) if alone else workers,
            collate_fn=partial(_collate, stream.whole, stream.piped and workers > 0),
            pin_memory=pin_memory,
            prefetch_factor=PREFETCH if workers else None,
        )
        return iter(loader)

    def found_dead(done: int, times: int, how: str) -> None:
        (slots,) = samples(stream, steps[done : done + 1], distributed.rank(), distributed.world_size())
        what = f"A process that prepares images {how} at step {steps[done]}"
        if times > MAX_RESTARTS:
            raise _dead(stream.images, slots, f"{what}, and so did {MAX_RESTARTS} before it.")
        if times == 2:  # not by chance
            known.update(_killers(stream, slots))
        notes.append(f"{what}; all are started again there")

    for batch in restarted(start, found_dead, workers) if workers else start(0, False):
        if isinstance(batch, DataError):
            raise batch
        batch = _each(batch, torch.from_numpy) if stream.piped and workers else batch
        yield batch._replace(notes=tuple(notes))
        notes.clear()


def _killers(stream: Stream, slots: Sequence[tuple[int, int]]) -> dict[int, BadFile]:
    """Those of the images whose reading ends or hangs a process of its own."""
    ends = {sample: survives(_one, stream, epoch, sample) for epoch, sample in slots}
    names = stream.images.names
    return {
        i: BadFile(names[i], "kills its reader", f"the process that read it {how}", 0) for i, how in ends.items() if how
    }


def _dead(images: Images, slots: Sequence[tuple[int, int]], what: str) -> DeadWorker:
    shown = ", ".join(printable(images.names[sample]) for _, sample in slots[:3])
    more = f" and {len(slots) - 3} more" if len(slots) > 3 else ""
    return DeadWorker(
        f"{what}\nIt was preparing {shown}{more}.\n"
        "SIGKILL often means too little memory: use fewer --workers. `nolabel check DATA` reads every file.\n"
        "`nolabel resume RUN` goes on from the last checkpoint."
    )


class _Sampler:
    def __init__(self, stream: Stream, steps: range, rank: int, world_size: int) -> None:
        self.arguments = stream, steps, rank, world_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return samples(*self.arguments)

    def __len__(self) -> int:
        return len(self.arguments[1])


Key = tuple[int, int, int, int]
"""(seed, epoch, sample, view): what the randomness of a view is a function of."""


class Crops(NamedTuple):
    """One image's views (or its pixels and the rows of `as_rows`), and the time they took."""

    views: list[Tensor]
    decode_ms: float
    crop_ms: float


Item = tuple[Crops, list[BadFile]]
"""Content of a slot, and the files that could not be read on the way to it, its own first."""


class _Views(Dataset[Item | DataError]):
    def __init__(self, stream: Stream, bad: dict[int, BadFile]) -> None:
        self.stream = stream
        self.bad = bad  # grows: a broken folder is then read once per worker, not once per slot

    def __getitem__(self, key: tuple[int, int]) -> Item | DataError:
        try:
            return _first_good(self.stream, *key, self.bad)
        except DataError as error:  # raised where the batch arrives: torch would wrap it into its own traceback
            return error


def cut(
    data: bytes,
    views: Sequence[View],
    keys: Sequence[Key],
    full_decode: bool = False,
    make: Apply = apply,
    limits: Range | None = None,
) -> Crops:
    """The views (3, size, size) uint8 of the image in `data`, by `make`; BadImage where it cannot be decoded.

    The parameters are drawn first, from the size in the header, so they do not depend on the size it is decoded at.
    """
    image, drawn, decode_ms, draw_ms = _decoded(data, views, keys, full_decode, limits)
    started = perf_counter()
    crops = [make(image, view, one) for view, one in zip(views, drawn, strict=True)]
    return Crops(crops, decode_ms, draw_ms + 1000 * (perf_counter() - started))


def whole(
    data: bytes, views: Sequence[View], keys: Sequence[Key], full_decode: bool = False, limits: Range | None = None
) -> Crops:
    """The image in `data` (H, W, 3) uint8 uncut, and the parameters of its views (`as_rows`); BadImage as in `cut`."""
    image, drawn, decode_ms, draw_ms = _decoded(data, views, keys, full_decode, limits)
    return Crops([image.permute(1, 2, 0).contiguous(), as_rows(drawn)], decode_ms, draw_ms)


def _decoded(
    data: bytes, views: Sequence[View], keys: Sequence[Key], full_decode: bool, limits: Range | None
) -> tuple[Tensor, list[Drawn], float, float]:
    """The image, what is drawn for its views, and the milliseconds of decoding and of drawing."""
    times = [perf_counter()]
    opened = open_image(data, limits=limits)
    times.append(perf_counter())
    drawn = [draw(v, key, opened.facts.height, opened.facts.width) for v, key in zip(views, keys, strict=True)]
    factor = 1 if full_decode or opened.pixels is not None else reduction(views, drawn)
    times.append(perf_counter())
    image = load(opened, factor)
    times.append(perf_counter())
    opening, drawing, loading = (1000 * (b - a) for a, b in pairwise(times))
    return image, [scaled_down(one, factor) for one in drawn], opening + loading, drawing


def _first_good(stream: Stream, epoch: int, sample: int, known: dict[int, BadFile]) -> Item:
    """The crops of the image, or of the next one in the list that can be decoded, and the bad files on the way.

    `known` grows.
    """
    images, bad = stream.images, list[BadFile]()
    num_images = len(images.names)
    # A replacement keeps the random key of the slot, so a bad file changes nothing but its own slot.
    keys = _keys(stream, epoch, sample)
    while not too_many_bad(len(bad), len(bad), num_images):
        index = (sample + len(bad)) % num_images
        data = b""
        try:
            if index not in known:
                started = perf_counter()
                data = read(images, index)
                reading = 1000 * (perf_counter() - started)
                if stream.whole:
                    crops = whole(data, stream.views, keys, stream.full_decode, images.limits)
                else:
                    make = view_function(stream.engine)
                    crops = cut(data, stream.views, keys, stream.full_decode, make, images.limits)
                return crops._replace(decode_ms=crops.decode_ms + reading), bad
        except BadImage as error:
            known[index] = BadFile(images.names[index], error.reason, error.detail, len(data))
        bad.append(known[index])
    raise DataError(
        f"{len(bad)} files in a row cannot be read, the first is {printable(bad[0].name)}: {bad[0].reason}.\n"
        "`nolabel check DATA` lists them all with reasons; repair or remove them and start again."
    )


def _keys(stream: Stream, epoch: int, sample: int) -> list[Key]:
    return [(stream.seed, epoch, sample, v) for v in range(len(stream.views))]


def _one(stream: Stream, epoch: int, sample: int) -> Crops:
    data, keys = read(stream.images, sample), _keys(stream, epoch, sample)
    return cut(data, stream.views, keys, stream.full_decode, limits=stream.images.limits)


def waiting_bytes(stream: Stream, workers: int, world_size: int) -> int:
    """Bytes of the batches that a process keeps in advance. With `Stream.whole`: for photos of 500 x 375 pixels."""
    image = 3 * 500 * 375 if stream.whole else sum(3 * view.size**2 for view in stream.views)
    return (workers * PREFETCH + 1) * (stream.batch_size // world_size) * image if workers else 0


def _each(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    """`batch` with each of its tensors changed."""
    sources = batch.sources and Sources(*map(change, batch.sources))
    return batch._replace(views=[change(view) for view in batch.views], sources=sources)


def _collate(whole: bool, piped: bool, items: Sequence[Item | DataError]) -> Batch | DataError:
    batch = _joined(whole, items)
    return _each(batch, torch.Tensor.numpy) if piped and isinstance(batch, Batch) else batch  # pickled as bytes


def _joined(whole: bool, items: Sequence[Item | DataError]) -> Batch | DataError:
    good = []
    for item in items:
        if isinstance(item, DataError):
            return item
        good.append(item)
    bad = [bad for _, bad in good if bad]
    decode_ms, crop_ms = (sum(times) / len(good) for times in zip(*(crops[1:] for crops, _ in good), strict=True))
    slots = [crops.views for crops, _ in good]
    if whole:
        shapes = torch.tensor([pixels.shape[:2] for pixels, _ in slots])
        joined = torch.cat([pixels.flatten() for pixels, _ in slots])
        sources = Sources(joined, shapes, torch.stack([drawn for _, drawn in slots]))
        return Batch([], bad, (), sources, decode_ms, crop_ms)
    return Batch([torch.stack(crops) for crops in zip(*slots, strict=True)], bad, (), None, decode_ms, crop_ms)
