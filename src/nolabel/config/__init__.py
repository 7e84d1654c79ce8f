"""The settings of a run: their schema, their files, and what `auto` means."""

from nolabel.config.files import differences, read_yaml, shrunk, to_yaml, update
from nolabel.config.resolve import check, find_device, known, resolve
from nolabel.config.schema import TrainConfig

__all__ = [
    "TrainConfig",
    "check",
    "differences",
    "find_device",
    "known",
    "read_yaml",
    "resolve",
    "shrunk",
    "to_yaml",
    "update",
]
