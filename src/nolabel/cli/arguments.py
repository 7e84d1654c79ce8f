"""Helpers that read the command line."""

from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from nolabel.catalog import describe_sources
from nolabel.errors import UsageError

Weights = Annotated[str, Positional, tyro.conf.arg(metavar="WEIGHTS")]


Data = Annotated[str, Positional, tyro.conf.arg(metavar="DATA")]


_ANY_IMAGES = describe_sources()
AnyImages = Annotated[
    str, Positional, tyro.conf.arg(metavar="DATA", help=f"{_ANY_IMAGES[0].upper()}{_ANY_IMAGES[1:]}.")
]
"""DATA without classes; its help lists the sources."""


def parse(kind: Any, args: Sequence[str], program: str, default: Any = None, help: str | None = None) -> Any:
    given = {} if default is None else {"default": default}
    return tyro.cli(kind, prog=program, args=args, description=help, **given)


def take_flag(args: list[str], flag: str) -> bool:
    given = flag in args
    if given:
        args.remove(flag)
    return given


def take_value(args: list[str], option: str) -> str | None:
    for i, arg in enumerate(args):
        if arg.startswith(option + "="):
            return args.pop(i).partition("=")[2]
        if arg == option:
            if i + 1 == len(args):
                raise UsageError(f"{option} takes a file.")
            args.pop(i)
            return args.pop(i)
    return None


def only_argument(args: Sequence[str], usage: str) -> str:
    if len(args) != 1 or args[0].startswith("-"):
        raise UsageError(f"Usage: {usage}")
    return args[0]
