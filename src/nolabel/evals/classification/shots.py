"""Choice of the few images of train that a low-shot classifier learns from."""

from collections.abc import Collection, Sequence
from pathlib import Path
from posixpath import splitext

import torch
from torch import Tensor

from nolabel.data.names import printable
from nolabel.errors import DataError
from nolabel.evals.shared.features import FeatureTable
from nolabel.randomness import generator


def draw_rows(labels: Tensor, num_images: int, seed: int, split: int) -> Tensor:
    """Row numbers of `num_images` images, spread over the classes as evenly as it goes; sorted.

    Of one (seed, split) fewer images are always among more. A class that has not enough gives all it has. SimCLR's
    1 % of ImageNet is of this form: 811 classes of 13 images and 189 of 12.
    """
    rng = generator("shots", seed, split)
    sizes = labels.bincount()
    present = torch.from_numpy(rng.permutation(len(sizes)))
    present = present[sizes[present] > 0]
    base, extra = divmod(num_images, len(present))
    wanted = torch.full_like(sizes, base)
    wanted[present[:extra]] += 1
    order = torch.from_numpy(rng.permutation(len(labels)))
    order = order[labels[order].argsort(stable=True)]  # class by class, at random within each
    place = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[labels[order]]
    return order[place < wanted[labels[order]]].sort().values


def read_list(path: Path, ids: Sequence[str]) -> Tensor:
    """Row numbers in `ids` of the images that a text file names, one per line; sorted.

    A line is the name in the data (`train/cat/1.jpg`), its end (`cat/1.jpg`, `1.jpg`), or these without or with another
    suffix, as in the lists of 1 % of ImageNet. Raises DataError for names that train lacks, that are not clear, or that
    are listed twice.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{printable(str(path))} cannot be read ({error.strerror}).") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    places = _endings(ids)
    rows = [_find(line, places) for line in lines]
    shown = printable(str(path))
    for wrong, what in (
        ([a for a, r in zip(lines, rows, strict=True) if not r], "has names that train lacks"),
        ([a for a, r in zip(lines, rows, strict=True) if len(r) > 1], "has names that fit several images of train"),
    ):
        if wrong:
            raise DataError(
                f"{shown} {what}: {_some(wrong)}.\n"
                "Expected one image per line, named as in train/ or by the end of its path."
            )
    chosen = [r[0] for r in rows]
    if not chosen or len(set(chosen)) < len(chosen):
        twice = [a for i, a in enumerate(lines) if chosen[i] in chosen[:i]]
        raise DataError(f"{shown} names {'an image twice: ' + _some(twice) if twice else 'no image'}.")
    return torch.tensor(sorted(chosen))


def read_lists(paths: Sequence[Path], train: FeatureTable, classes: Sequence[str]) -> list[Tensor]:
    """`read_list` of several files. Raises DataError, too, for a file without an image of some class of train."""
    lists = [read_list(path, train.ids) for path in paths]
    for path, rows in zip(paths, lists, strict=True):
        missing = set(train.labels.tolist()) - set(train.labels[rows].tolist())
        if missing:
            names = ", ".join(printable(classes[c]) for c in sorted(missing)[:5])
            raise DataError(f"{path.name} names no image of {len(missing)} classes of train: {names}.")
    return lists


def _endings(ids: Sequence[str]) -> dict[str, list[int]]:
    """Whose every end of a name at a `/` is; the same without suffix has \\0 before it."""
    places: dict[str, list[int]] = {}
    for i, name in enumerate(ids):
        parts = name.split("/")
        for k in range(len(parts)):
            end = "/".join(parts[k:])
            places.setdefault(end, []).append(i)
            places.setdefault("\0" + splitext(end)[0], []).append(i)
    return places


def _find(line: str, places: dict[str, list[int]]) -> list[int]:
    return places.get(line) or places.get("\0" + line) or places.get("\0" + splitext(line)[0]) or []


def _some(names: Collection[str]) -> str:
    shown = [printable(name)[:60] for name in list(names)[:3]]  # a file that is no list has lines of any length
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
