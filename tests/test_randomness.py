"""Streams of random numbers: their keys never change, and no two meet that are not known to."""

import inspect
import itertools

import pytest

from nolabel.randomness import STREAMS, generator, philox

SHARED = {"view", "order", "step", "shots", "share", "fine-tuning crop", "fine-tuning mix", "attack"}
"""Streams of before that have words of small numbers only, and so may meet."""
OLD = {
    "view": ((3, 4, 5), (3, 4, 5)),
    "order": ((3,), (3,)),
    "step": ((3, 4), (3, 4)),
    "masks": ((3,), (3, 0, 2**32)),
    "shuffle": ((3,), (3, 2**33)),
    "shots": ((3,), (3,)),
    "share": ((), (0,)),
    "fine-tuning crop": ((3, 4), (3, 4, 1)),
    "fine-tuning mix": ((3,), (3, 1)),
    "attack": ((), ()),
}


@pytest.mark.parametrize("name", OLD)
def test_an_old_stream_keeps_its_key(name: str) -> None:
    counters, words = OLD[name]
    assert STREAMS[name].words(*counters) == words
    assert generator(name, 7, *counters).integers(1 << 62) == philox(7, *words).integers(1 << 62)


@pytest.mark.parametrize("name", STREAMS.keys() - SHARED)
def test_a_stream_has_a_word_of_its_own(name: str) -> None:
    """Counters are below 2^32: the words above it tell streams apart."""

    def tags(name: str, counter: int) -> tuple[int, ...]:
        words = STREAMS[name].words(*[counter] * len(inspect.signature(STREAMS[name].words).parameters))
        return tuple(word if word >= 2**32 else -1 for word in (*words, 0, 0, 0)[:3])

    own = {tags(name, counter) for counter in (0, 5, 2**32 - 1)}
    others = {tags(other, counter) for other in STREAMS if other != name for counter in (0, 5, 2**32 - 1)}
    assert len(own) == 1 and max(*own) != (-1, -1, -1)
    assert not own & others


def test_streams_give_different_numbers() -> None:
    apart = {"masks", "shuffle", "view"}
    draws = [
        tuple(generator(name, 0, *counters).integers(1 << 62, size=2))
        for name in apart
        for counters in itertools.product(range(4), repeat=len(inspect.signature(STREAMS[name].words).parameters))
    ]
    assert len(set(draws)) == len(draws)
