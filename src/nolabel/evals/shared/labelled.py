"""Roles of labelled data: the images that are learned from, chosen on and tested on."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nolabel.data.images import LabelledImages, scan_labelled
from nolabel.data.names import printable
from nolabel.errors import DataError


class Roles(NamedTuple):
    """The splits of labelled data by what they are for."""

    train: LabelledImages
    val: LabelledImages | None
    """Settings are chosen on it, where there is a test split too."""
    test: LabelledImages | None
    """Results are reported on it; None: on `train` itself, each image against all the others."""
    names: tuple[str, str, str]
    """Names of the three."""


def roles(splits: Mapping[str, LabelledImages]) -> Roles:
    """With val and test: choose on val, report test. With one of them: report it. With none: leave one out.

    Raises DataError where train is missing or has no image of a class in val or test.
    """
    if len(splits) == 1:
        ((name, labelled),) = splits.items()
        return Roles(labelled, None, None, (name, "", ""))
    if "train" not in splits:
        raise DataError(
            f"The labelled data holds {' and '.join(sorted(splits))} but no train.\n"
            "Expected train/ with val/ or test/, or class folders without splits."
        )
    train = splits["train"]
    for name in splits:
        check_seen(train.labels, splits[name].labels, train.classes, name)
    if "test" in splits:
        return Roles(train, splits.get("val"), splits["test"], ("train", "val", "test"))
    return Roles(train, None, splits["val"], ("train", "", "val"))


def check_classes(data: str | Path) -> Roles:
    """The roles of DATA. DataError where it is no class folders that `roles` takes."""
    return roles(scan_labelled(data))


def check_seen(train: Iterable[int], test: Iterable[int], classes: Sequence[str], split: str) -> None:
    """DataError that names the classes with images in `split` and none to learn from."""
    learned = set(train)
    unseen = [classes[i] for i in sorted(set(test) - learned)]
    if unseen:
        shown = printable(", ".join(unseen[:5])) + (f" and {len(unseen) - 5} more" if len(unseen) > 5 else "")
        alike = {classes[i].casefold(): classes[i] for i in learned}
        other = next((f"{alike[name.casefold()]} is not {name}" for name in unseen if name.casefold() in alike), "")
        raise DataError(
            f"Classes in {split} without a readable image in train: {shown}.\n"
            + (f"Names must be equal in every letter: {printable(other)}.\n" if other else "")
            + "Nothing could ever be recognised as them: add images to train/, or take the folders out."
        )


def subset(labelled: LabelledImages, max_images: int | None) -> LabelledImages:
    """At most `max_images` images, evenly over the classes as far as there are, always the same ones."""
    names, labels = labelled.images.names, labelled.labels
    if max_images is None or len(names) <= max_images:
        return labelled
    turn = rank_in_class(names, labels)
    chosen = sorted(sorted(range(len(names)), key=lambda i: (turn[i], labels[i]))[:max_images])
    images = labelled.images._replace(names=tuple(names[i] for i in chosen))
    return labelled._replace(images=images, labels=tuple(labels[i] for i in chosen))


def rank_in_class(ids: Sequence[str], labels: Sequence[int]) -> list[int]:
    """The place of each image, from 0, in a random but fixed order of its class: by SHA-256 of its name."""
    digests = [hashlib.sha256(name.encode(errors="surrogateescape")).digest() for name in ids]
    ranks, seen = [0] * len(ids), dict.fromkeys(labels, 0)
    for i in sorted(range(len(ids)), key=digests.__getitem__):
        ranks[i] = seen[labels[i]]
        seen[labels[i]] += 1
    return ranks
