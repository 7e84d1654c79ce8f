"""In which order an epoch sees its images: a permutation that is a function of (seed, epoch)."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nolabel.randomness import generator

MAX_LISTED = 1 << 20
"""Up to so many images the permutation is listed, which takes 26 ms and 8 MB an epoch; above, computed where asked."""
ROUNDS = 6


def order(num_images: int, seed: int, epoch: int) -> Tensor:
    """A permutation (N,) int64 of the images, listed."""
    return torch.from_numpy(generator("order", seed, epoch).permutation(num_images))


def images_at(places: range, num_images: int, seed: int, epoch: int) -> list[int]:
    """The images at some places of the epoch: of the `order`, or for more than MAX_LISTED of `permuted`."""
    if num_images <= MAX_LISTED:
        found: list[int] = _listed(num_images, seed, epoch)[places.start : places.stop : places.step].tolist()
        return found
    return permuted(np.arange(places.start, places.stop, places.step), num_images, seed, epoch).tolist()  # type: ignore[no-any-return]


@lru_cache(maxsize=2)  # the steps around the end of an epoch
def _listed(num_images: int, seed: int, epoch: int) -> Tensor:
    return order(num_images, seed, epoch)


def permuted(x: NDArray[np.integer], num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of 0..num_images - 1 at `x`, in time and memory that do not grow with the number of images.

    The generalised Feistel cipher of Black and Rogaway (Ciphers with arbitrary finite domains, CT-RSA 2002): x is a
    pair of digits (left, right) of bases a and b, and in turn one digit is moved by a hash of the other. a * b is at
    most 2 sqrt(N) above N; what falls there goes through the cipher again until it is below N.
    """
    a = np.uint64(int(np.ceil(np.sqrt(num_images))))
    b = np.uint64(-(-num_images // int(a)))
    keys = generator("order", seed, epoch).integers(2**64, size=ROUNDS, dtype=np.uint64)
    x = np.asarray(x, dtype=np.uint64)
    done, inside = np.empty_like(x), np.arange(len(x))
    while len(inside):
        left, right = x % a, x // a
        for number, key in enumerate(keys):
            left, right = right, (left + _mixed(right ^ key)) % (b if number % 2 else a)
        x = left + a * right  # ROUNDS is even: left is below a again
        done[inside] = x
        outside = x >= num_images
        inside, x = inside[outside], x[outside]
    return done.astype(np.int64)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), shifted so that sums stay below 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(1)
