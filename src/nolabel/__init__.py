"""nolabel: self-supervised visual pre-training that people trust.

Importing this package imports no torch; the functions below load it when they are first used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nolabel.api import evaluate, train
    from nolabel.run import Run
    from nolabel.train import resume

__all__ = ["Run", "__version__", "evaluate", "resume", "train"]


def __getattr__(name: str) -> Any:
    """Load the public functions on first use."""
    import importlib

    homes = {
        "train": "nolabel.api",
        "evaluate": "nolabel.api",
        "Run": "nolabel.run",
        "resume": "nolabel.train",
    }
    if name not in homes:
        raise AttributeError(f"module 'nolabel' has no attribute {name!r}")
    return getattr(importlib.import_module(homes[name]), name)
