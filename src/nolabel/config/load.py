"""Load settings from a recipe, a file or a run, and write them as the text of config.yaml."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nolabel.config.describe import mark_of
from nolabel.config.schema import TrainConfig
from nolabel.config.text import local_paths, to_yaml, update
from nolabel.errors import UsageError
from nolabel.files import read_yaml
from nolabel.methods import METHODS
from nolabel.recipes import find
from nolabel.settings import HEADINGS

OLD_DEFAULTS: dict[str, Any] = {
    "augment": "cpu",
    "view_engine": "torch",
    "positions": "timm",
    "keep_masks": True,
    "optim": {"lars_rate": "inside"},
}
"""Values of settings that the config.yaml of an older run does not have."""
OLD_METHOD_DEFAULTS: dict[str, dict[str, Any]] = {"msn": {"head_per_size": False}}
"""The same for the settings of a method, by its name."""


def load_recipe(name: str) -> TrainConfig[Any]:
    """The settings of a recipe. UsageError with the nearest names for one that doesn't exist."""
    recipe = find(name)
    config: TrainConfig[Any] = TrainConfig(method=METHODS[recipe.method].Config(), recipe=name)
    changed: TrainConfig[Any] = update(config, recipe.settings)
    return changed


def load_file(path: Path) -> TrainConfig[Any]:
    """The settings of a config.yaml, for a new run: `out` is left empty. UsageError where it holds no settings."""
    return from_mapping(read_yaml(path) | {"out": ""}, str(path))


def load_run(folder: Path) -> TrainConfig[Any]:
    """The settings of the run in `folder`, also after it was moved, and of runs older than some settings."""
    file = folder / "config.yaml"
    config: TrainConfig[Any] = local_paths(
        from_mapping(with_old_defaults(read_yaml(file)) | {"out": str(folder)}, str(file))
    )
    return config


def with_old_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, complete: those that an older version did not write have the values of then."""
    name = values.get("method_name")
    old = OLD_DEFAULTS | {"method": OLD_METHOD_DEFAULTS.get(name, {}) if isinstance(name, str) else {}}
    return _filled(values, old)


def _filled(values: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """`values` after what they lack of `old`, in nested mappings, too."""
    filled = dict(old)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(old.get(key), dict)
        filled[key] = _filled(value, old[key]) if both else value
    return filled


def from_mapping(values: dict[str, Any], where: str) -> TrainConfig[Any]:
    """The settings in the mapping of a config.yaml; `where` names it in errors. UsageError where it holds none."""
    name = values.get("method_name")
    if name not in list(METHODS):  # a list compares; a dict would hash what a file may hold
        raise UsageError(f"{where} names no method: expected method_name to be one of {', '.join(METHODS)}.")
    rest = {k: v for k, v in values.items() if k != "method_name"}
    config: TrainConfig[Any] = update(TrainConfig(method=METHODS[name].Config()), rest)
    return config


def check_length(given: Collection[str]) -> None:
    """UsageError where the names of given settings include both lengths of a run."""
    if {"epochs", "steps"} <= set(given):
        raise UsageError("epochs and steps (--epochs, --steps) both set the length of the run: give one of them.")


def config_yaml(config: TrainConfig[Any]) -> str:
    """The text of config.yaml: the name of the method and every setting, under the headings of `--help`."""
    fields = [f.name for f in dataclasses.fields(config)]
    groups = [name for name in reversed(fields) if dataclasses.is_dataclass(getattr(config, name))]
    text = f"method_name: {method_name(config)}\n" + to_yaml(config, ["recipe"])
    for heading, about in HEADINGS.items():
        names = [name for name in fields if name not in ("recipe", *groups)]
        names = [name for name in names if mark_of(config, name).heading == heading]
        names += groups if heading == "training" else []
        text += f"\n# {heading}: {about}\n" + to_yaml(config, names)
    return text


def method_name(config: TrainConfig[Any]) -> str:
    """The name under which the method of these settings is known."""
    return next(name for name, method in METHODS.items() if method.Config is type(config.method))
