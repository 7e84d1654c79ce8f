"""Engines of views on the CPU: torch and numpy, or machine code by numba where the extra `fast` is installed."""

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from nolabel.errors import UsageError
from nolabel.views import cpu_torch
from nolabel.views.draw import Drawn
from nolabel.views.spec import View

Apply = Callable[[Tensor, View, Drawn], Tensor]
Name = Literal["torch", "numba"]


@cache
def view_function(name: Name) -> Apply:
    """The function of an engine that makes a view, as `cpu_torch.apply` does. UsageError where numba is absent.

    Code for numba is compiled here, before processes are forked that shall share it.
    """
    if name == "torch":
        return cpu_torch.apply
    try:
        from nolabel.views.cpu_numba import apply
    except ImportError as error:
        raise UsageError(
            f"Views are to be made by numba, and it cannot be imported here: {error}.\n"
            "Install it (pip install 'nolabel[fast]'), or use --view-engine torch;\n"
            "in a run that is resumed this changes a few pixels by a level: add --allow-change."
        ) from error
    apply(torch.zeros(3, 8, 8, dtype=torch.uint8), View(4, (1, 1)), _NOTHING._replace(sigma=1.0))
    return apply


def fastest() -> Name:
    """Name of the fastest engine: numba if it can be imported."""
    try:
        view_function("numba")
    except UsageError:
        return "torch"
    return "numba"


_NOTHING = Drawn((0, 0, 8, 8), False, (), False, 0.0, False)
