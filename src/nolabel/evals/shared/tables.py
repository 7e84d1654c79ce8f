"""The splits of labelled data as tables of features, and the record of them in a result."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nolabel.data.images import LabelledImages, fingerprint
from nolabel.data.names import printable
from nolabel.errors import DataError
from nolabel.evals.shared.features import FeatureTable
from nolabel.evals.shared.labelled import Roles, check_classes, check_seen, rank_in_class
from nolabel.evals.shared.reading import read_roles


def roles_with_test(data: str | Path) -> Roles:
    """The roles of DATA for what learns from some images and is tested on others. DataError for class folders alone."""
    parts = read_roles(data)
    if parts.test is None:
        raise DataError(
            f"{printable(str(data))} has class folders and no splits, and what learns must be tested on other images."
            "\nExpected train/ with val/ or test/, each of class folders."
        )
    return parts


def check_splits(data: str | Path) -> None:
    """DataError where `roles_with_test` does not take DATA, or whose classes are invalid."""
    if check_classes(data).test is None:
        raise DataError("no splits: train/ with val/ or test/")


class Tables(NamedTuple):
    """`Roles` as features."""

    train: FeatureTable
    val: FeatureTable | None
    test: FeatureTable | None


def make_tables(parts: Roles, features: Callable[[LabelledImages], FeatureTable]) -> Tables:
    """`features` of every split. Raises DataError for a class that train lost to unreadable files."""
    train, val, test = (part and features(part) for part in parts[:3])
    assert train is not None
    tables = Tables(train, val, test)
    check_tables(parts, tables)
    return tables


def check_tables(parts: Roles, tables: Tables) -> None:
    """DataError for a class that train lost: it can lose its last image to decoding."""
    for table, name in zip(tables[1:], parts.names[1:], strict=True):
        if table is not None:
            check_seen(tables.train.labels.tolist(), table.labels.tolist(), parts.train.classes, name)


def take(table: FeatureTable, mask: Tensor) -> FeatureTable:
    """The rows where `mask` (N,) is true."""
    ids = tuple(name for name, keep in zip(table.ids, mask.tolist(), strict=True) if keep)
    return FeatureTable(table.features[mask], table.labels[mask], ids)


def pick(labelled: LabelledImages, rows: Sequence[int]) -> LabelledImages:
    """The images of the given row numbers, in their order."""
    images = labelled.images._replace(names=tuple(labelled.images.names[i] for i in rows))
    return labelled._replace(images=images, labels=tuple(labelled.labels[i] for i in rows))


def usable(part: LabelledImages, table: FeatureTable) -> LabelledImages:
    """The images of `part` that are in `table`, in its order."""
    there = set(table.ids)
    return pick(part, [i for i, name in enumerate(part.images.names) if name in there])


def tenth(table: FeatureTable, least: int = 0) -> Tensor:
    """(N,) bool: a fixed tenth of each class, rounded down but at least `least` of its images, never all of them."""
    ranks = torch.tensor(rank_in_class(table.ids, table.labels.tolist()))
    sizes = table.labels.bincount()[table.labels]
    return ranks < torch.minimum((sizes // 10).clamp(min=least), sizes - 1)


def hold_out(table: FeatureTable) -> tuple[FeatureTable, FeatureTable | None]:
    """The table without a fixed tenth of each class, and that tenth; None where no class has ten images."""
    held = tenth(table)
    return take(table, ~held), take(table, held) if held.any() else None


def describe_data(parts: Roles, tables: Tables) -> dict[str, Any]:
    """The `data` of a result, but for its name: classes, the split reported, and for each split the images used."""
    splits = {
        name: {
            "images": len(table.ids),
            "unreadable": len(part.labels) - len(table.ids),
            "fingerprint": fingerprint(part.images),
        }
        for name, part, table in zip(parts.names, parts[:3], tables, strict=True)
        if part is not None and table is not None
    }
    return {
        "num_classes": len(parts.train.classes),
        "reported_on": parts.names[2] or "leave one out",
        "splits": splits,
    }
