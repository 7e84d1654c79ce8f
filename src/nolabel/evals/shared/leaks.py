"""Equal files, byte for byte, in two splits or twice in one: a tested image was learned from."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nolabel.data.bad_files import BadImage
from nolabel.data.images import Images, read

MAX_TESTED = 2000
"""Largest number of files of the tested split that are looked for, evenly over the split."""
MAX_READ = 20_000
"""Largest number of files that are read to find them. Only files of equal size are read at all."""


class Leak(NamedTuple):
    """Equal files of a split that is tested on and one that is learned from."""

    equal: int
    looked_at: int
    """Files of the tested split that were looked for."""


def find_leak(learned: Images, tested: Images) -> Leak:
    """The number of files of `tested` that are in `learned`, too, under any name: by size first, then by SHA-256."""
    by_size: dict[int, list[int]] = {}
    for place, size in enumerate(_sizes(learned)):
        by_size.setdefault(size, []).append(place)
    sizes = _sizes(tested)
    some = _evenly(range(len(sizes)), MAX_TESTED)
    wanted = sorted((place for place in some if sizes[place] in by_size), key=lambda i: len(by_size[sizes[i]]))
    digests: dict[int, set[bytes]] = {}
    equal = num_read = 0
    for i, place in enumerate(wanted):
        size = sizes[place]
        if size not in digests:
            num_read += len(by_size[size])
            if num_read > MAX_READ:
                return Leak(equal, len(some) - len(wanted) + i)
            digests[size] = {_digest(learned, one) for one in by_size[size]} - {b""}
        equal += _digest(tested, place) in digests[size]
    return Leak(equal, len(some))


def find_copies(images: Images) -> Leak:
    """The number of files that are in a set more than once, under other names."""
    sizes = _sizes(images)
    number = Counter(sizes)
    places = [place for place, size in enumerate(sizes) if number[size] > 1]
    digests = [_digest(images, place) for place in places[:MAX_READ]]
    seen = Counter(digests)
    looked_at = len(sizes) - max(0, len(places) - MAX_READ)
    return Leak(sum(count for digest, count in seen.items() if digest and count > 1), looked_at)


def leak_notes(splits: Mapping[str, Images | None]) -> list[str]:
    """Notes on equal files in two of the splits (in the order train, val, test); for one split alone, on its copies."""
    there = {name: images for name, images in splits.items() if images is not None}
    if len(there) == 1:
        ((_, images),) = there.items()
        copies = find_copies(images)
        if not copies.equal:
            return []
        return [f"{_of(copies, len(images.names))} images are in the data more than once, byte for byte"]
    notes, names = [], list(there)
    for i, tested in enumerate(names):
        for learned in names[:i]:
            leak = find_leak(there[learned], there[tested])
            if leak.equal:
                number = _of(leak, len(there[tested].names))
                notes.append(f"{number} images of {tested} are in {learned}, too, byte for byte")
    return notes


def _of(leak: Leak, total: int) -> str:
    """`3 of 40`, or `3 of 2,000 looked at of 9,000`."""
    return f"{leak.equal:,} of {leak.looked_at:,}" + (f" looked at of {total:,}" if leak.looked_at < total else "")


def _sizes(images: Images) -> list[int]:
    return [facts[0] if facts else -1 for facts in images.source.facts(images.root, images.names)]


def _digest(images: Images, place: int) -> bytes:
    """SHA-256 of a file; empty where it cannot be read, or is empty itself."""
    try:
        content = read(images, place)
    except BadImage:
        return b""
    return hashlib.sha256(content).digest() if content else b""


def _evenly(places: Sequence[int], most: int) -> list[int]:
    """At most `most` of the places, evenly over all."""
    count = len(places)
    return [places[i * count // most] for i in range(most)] if count > most else list(places)
