"""Settings to YAML and back. People edit these files: every value is converted by the type of its field or refused."""

import dataclasses
import math
import os
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

import yaml

from nolabel.errors import UsageError, nearest


def to_yaml(config: Any, names: Sequence[str] | None = None) -> str:
    """The settings as YAML, in the order of the fields; with `names` only these, in the order of `names`."""
    values = plain(config)
    chosen = values if names is None else {name: values[name] for name in names}
    return yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)


def local_path(path: str) -> str:
    """`path` as this system can open it: where file names are ASCII, `é` becomes its bytes in UTF-8."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        try:
            return os.fsdecode(path.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError:
            raise UsageError(f"{path!a} is no path: it holds half a character.") from None
    return path


def local_paths(config: Any) -> Any:
    """Settings of a run with paths that this system can open."""
    paths = {name: getattr(config, name) for name in ("data", "out", "labels")}
    return dataclasses.replace(config, **{name: local_path(path) for name, path in paths.items() if path})


def update(config: Any, values: dict[str, Any], where: str = "") -> Any:
    """`config` with `values` (nested mappings), converted to the types of the fields. Unknown names are refused."""
    hints = typing.get_type_hints(type(config))
    names = {f.name for f in dataclasses.fields(config)}
    changed: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise UsageError(f"There is no setting {where}{key}.{nearest(str(key), names)}")
        current = getattr(config, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise UsageError(f"{where}{key} is a group of settings, not {value!r}.")
            changed[key] = update(current, value, f"{where}{key}.")
        else:
            changed[key] = _convert(value, hints[key], where + key)
    return dataclasses.replace(config, **changed)


def differences(config: Any, default: Any) -> dict[str, Any]:
    """The default's values of all settings that `config` changes, by dotted name. An `auto` default doesn't count."""
    now, before = _flat(plain(config)), _flat(plain(default))
    return {name: old for name, old in before.items() if old != "auto" and now.get(name) != old}


def shortened_warmups(before: Any, after: Any) -> list[str]:
    """A line for each warm-up that `resolve` has made shorter, because it was longer than the run."""
    now = _flat(plain(after))
    return [
        f"{name} is longer than the run: it shrinks from {old:g} to {now[name]:g} epochs"
        for name, old in _flat(plain(before)).items()
        if "warmup" in name and isinstance(old, (int, float)) and now[name] < old
    ]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key in value for k, v in _flat(value[key], f"{name}.{key}" if name else key).items()}


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for option in options:
            try:
                return _convert(value, option, where)
            except UsageError:
                continue
    elif origin is Literal:
        if value in options:
            return value
    elif origin is tuple and isinstance(value, (list, tuple)):
        item = [options[0]] * len(value) if len(options) == 2 and options[1] is Ellipsis else list(options)
        if len(item) == len(value):
            return tuple(_convert(v, h, where) for v, h in zip(value, item, strict=True))
    elif hint is type(None):
        if value is None:
            return None
    elif hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)  # YAML 1.1 reads 1e-3 as a string
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise UsageError(f"{where} cannot be {value!r}: expected {_describe(hint)}.")


def _describe(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def plain(value: Any) -> Any:
    """Settings as mappings, lists and plain values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value
