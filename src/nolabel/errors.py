"""The errors a user can meet. Each reports what happened, what was expected and what to do, in at most five lines.

The exit codes are those of `docs/reference/exit-codes.md`; a bug (any other exception) exits with 1.
"""

import difflib
from collections.abc import Iterable
from typing import Any

DEAD_PROCESS = 75
"""Exit code of a job in which one of several processes is dead or hangs."""


class NolabelError(Exception):
    """Base of every error meant for the user; `code` is the exit code of the command line."""

    code = 1


class UsageError(NolabelError, ValueError):
    """A wrong option, name, device or run folder (exit code 2)."""

    code = 2


class DataError(NolabelError):
    """The data cannot be trained or evaluated on (exit code 65)."""

    code = 65


class NumericError(NolabelError):
    """The loss or a gradient is not finite (exit code 70)."""

    code = 70


class StorageError(NolabelError):
    """The run folder cannot be written (exit code 74)."""

    code = 74


class ResultNotWritten(StorageError):
    """The file of a result cannot be written; `result` holds what was computed (exit code 74)."""

    def __init__(self, message: str, result: Any) -> None:
        self.result = result
        super().__init__(message)


def nearest(name: str, choices: Iterable[str]) -> str:
    """` Did you mean: a, b, c?` with up to three of `choices` that look like `name`, or an empty string."""
    similar = difflib.get_close_matches(name, list(choices), n=3, cutoff=0.5)
    return f" Did you mean: {', '.join(similar)}?" if similar else ""
