"""Random numbers: every stream of the program, in one table.

A stream is a pure function of the seed and of up to three counters. So a checkpoint keeps no state of a generator, and
neither the number of workers nor the number of processes changes a draw.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_THREAD = threading.local()
_ZEROS = (0, 0, 0, 0)
_LIMIT = 2**32
"""Steps, epochs, images, views and ranks stay below this, so a word from here on belongs to one stream alone."""


class Stream(NamedTuple):
    """One stream of random numbers."""

    about: str
    words: Callable[..., tuple[int, ...]]
    """The counters to at most three words of the generator's counter."""


STREAMS: dict[str, Stream] = {
    # Training. The first three share the keys (s, r, 0): the seed of step s on rank r, the order of epoch s, and view 0
    # of image r in epoch s draw the same bits. No harm is known, and older runs need their keys.
    "view": Stream("crops and colours of a view", lambda epoch, image, view: (epoch, image, view)),
    "order": Stream("the order of the images in an epoch", lambda epoch: (epoch,)),
    "step": Stream("torch's seed for a step on a rank", lambda step, rank: (step, rank)),
    "masks": Stream("patches that MSN drops in a step", lambda step: (step, 0, _LIMIT)),
    "shuffle": Stream("images exchanged between processes in a step", lambda step: (step, 2 * _LIMIT)),
    # Evaluation. It draws in a process of its own, so it may share keys with training.
    "shots": Stream("labelled images of a low-shot split", lambda split: (split,)),
    "share": Stream("share of the training images", lambda: (0,)),
    "fine-tuning crop": Stream("RandAugment of an image in an epoch", lambda epoch, image: (epoch, image, 1)),
    "fine-tuning mix": Stream("mixup of a step", lambda step: (step, 1)),
    "attack": Stream("change of a copy; its seed is a hash of the name", lambda: ()),
}
"""Streams by name. A new one takes `_LIMIT * n` as third word, n from 3 on, each n once: so no two streams meet."""


def generator(stream: str, seed: int, *counters: int) -> np.random.Generator:
    """A new generator at the start of a stream of STREAMS; `counters` are those that the stream's row names."""
    return philox(seed, *STREAMS[stream].words(*counters))


def philox(seed: int, *words: int) -> np.random.Generator:
    """A counter-based generator for up to three non-negative words below 2^64."""
    counter = np.zeros(4, dtype=np.uint64)
    counter[1 : 1 + len(words)] = words
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))


def reused_philox(seed: int, *words: int) -> np.random.Generator:
    """The generator of `philox`, one object per thread: a new one would take half of the time of `draw`."""
    if not hasattr(_THREAD, "generator"):
        _THREAD.generator = philox(0)
    reused: np.random.Generator = _THREAD.generator
    state = {"counter": (0, *words, *_ZEROS[len(words) + 1 :]), "key": (seed % 2**64, seed >> 64)}
    reused.bit_generator.state = {
        "bit_generator": "Philox", "state": state, "buffer": _ZEROS, "buffer_pos": 4, "has_uint32": 0, "uinteger": 0
    }  # fmt: skip
    return reused
