"""Every setting has a class that says whether it may change on resume; a new one without fails here."""

import dataclasses
import typing
from typing import Any

import pytest
from sizes import SIZES

from nolabel.config import TrainConfig
from nolabel.config.changes import changes, check_changes, class_of
from nolabel.config.describe import mark_of
from nolabel.errors import UsageError
from nolabel.methods import METHODS
from nolabel.methods.dino import DINOConfig
from nolabel.optim.optimizers import OptimConfig
from nolabel.settings import Mark


def test_every_setting_of_a_run_has_a_mark() -> None:
    for kind, group in ((TrainConfig, ""), (OptimConfig, "optim.")):
        hints = typing.get_type_hints(kind, include_extras=True)
        for name in {f.name for f in dataclasses.fields(kind)} - {"method", "optim"}:
            assert any(isinstance(mark, Mark) for mark in getattr(hints[name], "__metadata__", ())), group + name


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_of_a_method_is_fixed_or_may_change(method: str) -> None:
    config = METHODS[method].Config()
    names = {f.name for f in dataclasses.fields(config)}
    changeable = {name for name in names if mark_of(config, name).change == "allow"}
    assert changeable == set(SIZES[method].changeable.split())
    assert names - changeable == set(SIZES[method].fixed.split())


def config(**values: Any) -> TrainConfig[DINOConfig]:
    return dataclasses.replace(TrainConfig(DINOConfig(), out="run"), **values)


def test_changes_are_found_by_name() -> None:
    after = config(workers=3, method=DINOConfig(teacher_temp=0.07), optim=OptimConfig(lr=1.0))
    names = [c.name for c in changes(config(workers=1), after)]
    assert names == ["method.teacher_temp", "optim.lr", "workers"]
    assert [class_of(name, after) for name in names] == ["allow", "allow", "safe"]


def test_a_longer_run_reports_what_that_does_to_the_schedules() -> None:
    (first, second) = check_changes(config(epochs=100), config(epochs=200), allowed=False)
    assert first == "epochs: 100 -> 200" and "schedules" in second


def test_what_is_not_safe_needs_permission() -> None:
    after = config(optim=OptimConfig(lr=1.0))
    with pytest.raises(UsageError, match=r"--allow-change"):
        check_changes(config(), after, allowed=False)
    assert check_changes(config(), after, allowed=True) == ["optim.lr: 0.0005 -> 1.0"]
    with pytest.raises(UsageError, match="another backbone"):
        check_changes(config(), config(backbone="resnet50"), allowed=True)
    assert check_changes(config(), config(), allowed=False) == []
