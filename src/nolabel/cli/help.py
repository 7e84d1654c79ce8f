"""The help page of training: every setting under one of five headings, the everyday ones first."""

import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

from nolabel.config.describe import Setting, describe_settings
from nolabel.settings import HEADINGS, Heading

INDENT = 26
"""Columns for the option's name; a longer name has the sentence on the next line."""


_KINDS = {"text": "TEXT", "int": "N", "float": "X"}


def format_help(config: Any, usage: str, about: str) -> str:
    """The page for the settings `config`, whose values are the defaults."""
    width = max(60, min(shutil.get_terminal_size().columns, 120))
    lines = [f"usage: {usage}", "", *textwrap.wrap(about, width, break_on_hyphens=False)]
    for heading, settings in settings_by_heading(config).items():
        lines += ["", f"{heading}: {HEADINGS[heading]}"]
        for setting in settings:
            lines += _entry(setting, width)
    return "\n".join(lines)


def settings_by_heading(config: Any) -> dict[Heading, list[Setting]]:
    """Every option under its heading: everyday ones first, then those of the run, the optimizer and the method."""
    groups = ("", "optim", "method")

    def rank(setting: Setting) -> tuple[bool, int]:
        return not setting.mark.everyday, groups.index(setting.name.rpartition(".")[0])

    shown = sorted((one for one in describe_settings(config) if not one.hidden), key=rank)
    return {heading: [one for one in shown if one.mark.heading == heading] for heading in HEADINGS}


def _option(setting: Setting) -> str:
    return setting.name.replace("_", "-")


def _entry(setting: Setting, width: int) -> Iterator[str]:
    name = "DATA" if setting.name == "data" else f"--{_option(setting)}"
    if isinstance(setting.default, bool):
        default = "default: on, --no-... turns it off" if setting.default else "default: off"
    else:
        default = f"default: {_value(setting.default)}"
        name += "" if name == "DATA" else f" {_metavar(setting)}"
    text = f"{setting.about} ({default})".strip()
    wrapped = textwrap.wrap(text, width - INDENT - 2, break_on_hyphens=False)
    if len(name) + 3 > INDENT:
        yield f"  {name}"
    else:
        yield f"  {name:<{INDENT - 2}}{wrapped.pop(0)}"
    for line in wrapped:
        yield " " * INDENT + line


def _metavar(setting: Setting) -> str:
    """The type as it is typed: `N|auto`, `X X`, `TEXT ...`."""
    number, times, kind = setting.type.partition(" x ")
    if times:
        return " ".join([_KINDS.get(kind, kind)] * int(number))
    if setting.type.startswith("list of "):
        return f"{_KINDS[setting.type.removeprefix('list of ')]} ..."
    return "|".join(_KINDS.get(kind, kind) for kind in setting.type.replace(", ", "|").replace(" or ", "|").split("|"))


def _value(value: Any) -> str:
    if value is None or value in ("", ()):
        return "none"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
