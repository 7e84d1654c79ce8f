"""A file system that fails or dies at a chosen call of a save, without root and without ptrace."""

import builtins
import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nolabel.runs import checkpoint

CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "chmod", "fsync", "open")


class Death(BaseException):
    """Stands for SIGKILL: nothing in the product catches it."""


class Faults:
    """Counts the calls, and raises `error` at number `at` (from 0), before the call or, with `after`, behind it.

    With `lasting` every later call fails as well, as on a disk that stays full.
    """

    def __init__(self, at: int, error: Callable[[], BaseException], after: bool = False, lasting: bool = False) -> None:
        self.at, self.error, self.after, self.lasting = at, error, after, lasting
        self.seen: list[str] = []

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*args: Any, **kwargs: Any) -> Any:
            number = len(self.seen)
            self.seen.append(name)
            hit = number == self.at or (self.lasting and number > self.at)
            if hit and not self.after:
                raise self.error()
            result = None
            try:
                result = call(*args, **kwargs)
            finally:
                if hit:
                    if isinstance(result, io.IOBase):
                        result.close()
                    raise self.error()
            return result

        return faulty

    @property
    def struck(self) -> bool:
        return len(self.seen) > self.at


def torn(tensors: Any, path: Path) -> None:
    """Rest of a write that a fault has cut: the first half of the file."""
    whole(tensors, path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


whole = checkpoint.save_file


@contextlib.contextmanager
def injected(faults: Faults) -> Iterator[Faults]:
    """The calls that `checkpoint.save` makes, with faults: of `os`, the opening of files, the writing of tensors."""
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, faults.around(name, getattr(os, name)))
        patch.setattr(io, "open", faults.around("open file", io.open))
        patch.setattr(builtins, "open", faults.around("open file", builtins.open))

        def save_file(tensors: Any, path: Path) -> None:
            number = len(faults.seen)
            if number == faults.at and faults.after:
                torn(tensors, path)  # its own opening of the file counts for nothing: the fault is here
            faults.around("save_file", whole)(tensors, path)

        patch.setattr(checkpoint, "save_file", save_file)
        yield faults
