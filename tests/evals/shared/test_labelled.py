"""Roles of splits, refusals, and subsets."""

from collections import Counter
from collections.abc import Iterable

import pytest

from nolabel.data.images import Images, LabelledImages
from nolabel.errors import DataError
from nolabel.evals.shared.labelled import rank_in_class, roles, subset

CLASSES = ("ant", "bee", "cow")


def labelled(labels: Iterable[int], split: str = "train") -> LabelledImages:
    labels = tuple(labels)
    names = tuple(f"{split}/{CLASSES[label]}/{i:04d}.png" for i, label in enumerate(labels))
    return LabelledImages(Images("/data", "folder", names, ()), labels, CLASSES)


def test_val_and_test() -> None:
    splits = {name: labelled([0, 1, 2], name) for name in ("train", "val", "test")}
    assert roles(splits) == (splits["train"], splits["val"], splits["test"], ("train", "val", "test"))


@pytest.mark.parametrize("split", ["val", "test"])
def test_one_of_them_is_reported(split: str) -> None:
    splits = {name: labelled([0, 1], name) for name in ("train", split)}
    found = roles(splits)
    assert (found.train, found.val, found.test) == (splits["train"], None, splits[split])
    assert found.names[2] == split


@pytest.mark.parametrize("name", ["all", "train", "val"])
def test_no_split_is_left_one_out(name: str) -> None:
    splits = {name: labelled([0, 1])}
    assert roles(splits) == (splits[name], None, None, (name, "", ""))


def test_train_is_missing() -> None:
    with pytest.raises(DataError, match="holds test and val but no train"):
        roles({name: labelled([0]) for name in ("val", "test")})


@pytest.mark.parametrize("split", ["val", "test"])
def test_classes_that_train_lacks(split: str) -> None:
    splits = {"train": labelled([1, 1]), "val": labelled([1]), "test": labelled([1])}
    with pytest.raises(DataError, match=f"Classes in {split} without a readable image in train: ant, cow"):
        roles(splits | {split: labelled([2, 0, 1, 0])})


def test_a_class_that_test_lacks_does_no_harm() -> None:
    assert roles({"train": labelled([0, 1, 2]), "test": labelled([2])}).test == labelled([2])


def test_subset_is_balanced_and_keeps_the_order() -> None:
    images = labelled([0] * 50 + [1] * 30 + [2] * 3)
    part = subset(images, 23)
    assert Counter(part.labels) == {0: 10, 1: 10, 2: 3}
    assert list(part.images.names) == sorted(part.images.names)
    assert all(name.split("/")[1] == CLASSES[i] for name, i in zip(part.images.names, part.labels, strict=True))
    assert part.images.names != images.images.names[:10] + images.images.names[50:60] + images.images.names[80:]
    assert subset(images, 23) == part
    assert set(subset(images, 22).images.names) < set(part.images.names)
    assert subset(images, 83) == subset(images, None) == images


def test_ranks_depend_on_names_alone() -> None:
    ids, labels = ["d", "a", "c", "b", "\udcff"], [0, 1, 0, 1, 0]
    ranks = rank_in_class(ids, labels)
    assert sorted(ranks[i] for i in (0, 2, 4)) == [0, 1, 2]
    assert sorted(ranks[i] for i in (1, 3)) == [0, 1]
    assert rank_in_class(ids[::-1], labels[::-1]) == ranks[::-1]
