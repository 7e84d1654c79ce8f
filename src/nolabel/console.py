"""Output of the program: results to stdout, notes to stderr. No stream ends a run. Imports no torch."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any


class Kept:
    """A text stream whose writes never raise; `lost` is the first error, None while every write went through.

    With `gives_up` everything after the first error goes nowhere. Without, each write is tried: a full disk may have
    room again. `stream` may be None, as `sys.stderr` is where the process was started without one.
    """

    def __init__(self, stream: Any, gives_up: bool = False) -> None:
        self.stream, self.gives_up = stream, gives_up
        self.lost: Exception | None = None

    def write(self, text: str) -> int:
        """Write `text` if that is possible; characters that the stream cannot encode are escaped."""
        self._try(lambda: self.stream.write(_encodable(text, getattr(self.stream, "encoding", None))))
        return len(text)

    def flush(self) -> None:
        """Flush the stream if that is possible."""
        self._try(lambda: self.stream.flush())

    def isatty(self) -> bool:
        """Whether the stream is a terminal; False for a closed one."""
        with contextlib.suppress(AttributeError, OSError, ValueError):
            return bool(self.stream.isatty())
        return False

    def close_buffer(self) -> None:
        """Flush for the last time, so that nothing is left in the buffer that fails when Python itself flushes it."""
        self.flush()
        if isinstance(self.lost, OSError):
            _send_nowhere(self.stream)

    def _try(self, call: Callable[[], object]) -> None:
        if self.stream is None:
            return
        try:
            call()
        except (OSError, ValueError) as error:  # a pipe without a reader, a full disk; a closed file
            self.lost = self.lost or error
            if self.gives_up:
                _send_nowhere(self.stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def kept_stderr() -> Iterator[None]:
    """Replace stderr within the block, so that no write to it raises, not even one of a library."""
    before = sys.stderr
    sys.stderr = Kept(_inner(before))
    try:
        yield
    finally:
        sys.stderr = before


@contextlib.contextmanager
def kept_streams() -> Iterator[Callable[[], str]]:
    """Replace both streams for a whole command. Gives a function that returns why the result did not reach stdout.

    The reason is empty where all was written, or the reader went away, as `head` does when it has seen enough.
    """
    _open_missing()
    before = sys.stdout, sys.stderr
    # A library may ask a stream for more than to write, so one that is missing leads to the null device.
    out, err = (_inner(stream) or open(os.devnull, "w", encoding="utf-8") for stream in before)  # noqa: SIM115
    out, err = Kept(out, gives_up=True), Kept(err)
    sys.stdout, sys.stderr = out, err

    def why_lost() -> str:
        out.flush()
        if out.lost is None or isinstance(out.lost, BrokenPipeError):
            return ""
        return getattr(out.lost, "strerror", None) or str(out.lost)

    try:
        yield why_lost
    finally:
        out.close_buffer()
        err.close_buffer()
        sys.stdout, sys.stderr = before


def note(line: str, end: str = "\n") -> None:
    """Write a line for people to stderr, control characters escaped; do nothing where that is not possible."""
    stream = Kept(_inner(sys.stderr))
    stream.write(_escaped(line) + end)
    stream.flush()


def result(text: str) -> None:
    """Write the result of a command to stdout, control characters escaped."""
    if sys.stdout is not None:
        sys.stdout.write(_escaped(text) + "\n")
        sys.stdout.flush()


def closing_words(text: str) -> None:
    """Write the closing lines of a run to stdout. A failed write is ignored, because the run is saved."""
    stream = Kept(_inner(sys.stdout), gives_up=True)
    stream.write(_escaped(text) + "\n")
    stream.flush()


def live() -> Kept:
    """The present stderr as a file on which a live line can be drawn."""
    return Kept(_inner(sys.stderr))


def _inner(stream: Any) -> Any:
    return stream.stream if isinstance(stream, Kept) else stream


def _escaped(text: str) -> str:
    """`text` with control characters escaped: foreign file names may hold commands for a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _encodable(text: str, encoding: str | None) -> str:
    """`text` with escapes for characters that `encoding` lacks, such as accents in ASCII."""
    encoding = encoding or "utf-8"
    try:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:
        return text


def _send_nowhere(stream: Any) -> None:
    """Let the descriptor of the stream lead to the null device, for the rest of the process."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def _open_missing() -> None:
    """Open the null device as each of the three standard descriptors that is closed.

    Otherwise the next file that is opened, such as a checkpoint, gets this number, and the text that libraries write.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
