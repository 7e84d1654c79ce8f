"""The settings of a run: their schema, their files, and what `auto` means."""

from nolabel.config.changes import check_changes
from nolabel.config.resolve import check, check_pass, find_device, processors, resolve, resolved, split_over_processes
from nolabel.config.schema import TrainConfig
from nolabel.config.text import differences, local_path, local_paths, plain, shortened_warmups, to_yaml, update
from nolabel.files import read_yaml

__all__ = [
    "TrainConfig",
    "check",
    "check_changes",
    "check_pass",
    "differences",
    "find_device",
    "local_path",
    "local_paths",
    "plain",
    "processors",
    "read_yaml",
    "resolve",
    "resolved",
    "shortened_warmups",
    "split_over_processes",
    "to_yaml",
    "update",
]
