"""Describe settings: mark, type and sentence of each field, read from the schema itself."""

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from typing import Any, Literal, NamedTuple

import tyro

from nolabel.settings import FIXED, Mark


class Setting(NamedTuple):
    """One setting, ready to be listed."""

    name: str
    """Dotted name, such as optim.lr."""
    type: str
    """Type in words, such as `int or auto`."""
    default: Any
    about: str
    mark: Mark
    hidden: bool
    """Whether nolabel fills the setting in, so that it is no option."""


def describe_settings(config: Any, prefix: str = "") -> list[Setting]:
    """Every setting of a dataclass and of its groups, in the order of the fields, with the values in `config`."""
    sentences, hints = read_sentences(type(config)), typing.get_type_hints(type(config))
    settings = []
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            settings += describe_settings(value, f"{name}.")
        else:
            about, kind, marks = (
                sentences.get(field.name, ""),
                name_type(hints[field.name]),
                marks_of(config, field.name),
            )
            mark = mark_of(config, field.name)
            settings.append(Setting(name, kind, value, about, mark, tyro.conf.Suppress in marks))
    return settings


def mark_of(config: Any, field: str) -> Mark:
    """The mark of a field of a dataclass; FIXED for a field without one, and for a name that it does not have."""
    return next((mark for mark in marks_of(config, field) if isinstance(mark, Mark)), FIXED)


def marks_of(config: Any, field: str) -> tuple[Any, ...]:
    """All annotations of a field of a dataclass: our mark, and those of the command line."""
    hint = typing.get_type_hints(type(config), include_extras=True).get(field)
    return getattr(hint, "__metadata__", ())


def read_sentences(config: type) -> dict[str, str]:
    """The string after each field of a dataclass, on one line; fields without one are left out."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    assert isinstance(body, ast.ClassDef)
    sentences = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            sentences[ast.unparse(field.target)] = " ".join(str(after.value.value).split())
    return sentences


def name_type(hint: Any) -> str:
    """A type in words: `int or auto`, `2 x float`, `true or false`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(name_type(argument) for argument in arguments)
    if origin is Literal:
        return ", ".join(str(value) for value in arguments)
    if origin is tuple:
        repeated = len(arguments) == 2 and arguments[1] is Ellipsis
        return f"list of {name_type(arguments[0])}" if repeated else f"{len(arguments)} x {name_type(arguments[0])}"
    return {bool: "true or false", str: "text", type(None): "none"}.get(hint, getattr(hint, "__name__", str(hint)))
