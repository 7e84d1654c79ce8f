"""nolabel: self-supervised visual pre-training that people trust.

Importing this package imports no torch; the functions below load it when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from nolabel.version import __version__

if TYPE_CHECKING:
    from nolabel.api import evaluate, train
    from nolabel.runs.folder import Run
    from nolabel.training.start import resume

__all__ = ["Run", "__version__", "evaluate", "resume", "train"]

_HOMES = {
    "train": "nolabel.api",
    "evaluate": "nolabel.api",
    "resume": "nolabel.training.start",
    "Run": "nolabel.runs.folder",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nolabel' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
