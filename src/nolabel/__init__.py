"""nolabel: self-supervised visual pre-training that people trust.

Importing this package imports no torch; the functions below load it when they are first used.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nolabel.api import evaluate, train
    from nolabel.run import Run
    from nolabel.train import resume

__all__ = ["Run", "__version__", "evaluate", "resume", "train"]

_HOMES = {"train": "nolabel.api", "evaluate": "nolabel.api", "resume": "nolabel.train", "Run": "nolabel.run"}


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nolabel' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


class _Package(ModuleType):
    """Keeps `nolabel.train` the function when Python, on importing train.py, would set it to the module."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
