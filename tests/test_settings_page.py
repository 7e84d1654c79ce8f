"""docs/reference/settings.md is what docs/make_settings.py writes from the schema."""

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from nolabel.config import TrainConfig
from nolabel.methods import METHODS
from nolabel.optim.optimizers import OptimConfig

SCRIPT = Path(__file__).parents[1] / "docs" / "make_settings.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_settings", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_current(script: ModuleType) -> None:
    current = script.PAGE.read_text(encoding="utf-8")
    assert current == script.page(), "run `python docs/make_settings.py`"


def test_page_has_every_setting(script: ModuleType) -> None:
    rows = [line for line in script.page().splitlines() if line.startswith("| `") and line.count("|") >= 6]
    fields = [f.name for config in (TrainConfig, OptimConfig) for f in dataclasses.fields(config)]
    fields += [f.name for method in METHODS.values() for f in dataclasses.fields(method.Config)]
    assert len(rows) == len(fields) - 2  # the groups `method` and `optim` are headings
    named = {row.split("`")[1] for row in rows}
    assert named == set(fields) - {"method", "optim"}
