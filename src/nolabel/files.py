"""Files: write JSON, JSON lines and text in one step; read untrusted YAML with suspicion."""

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from nolabel.errors import StorageError, UsageError


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a torn last line is left out, a missing file is empty. Raises OSError."""
    records = []
    for line in _bytes(path).split(b"\n"):
        record = parse_mapping(line)
        if record is not None:
            records.append(record)
    return records


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None where it is missing, damaged, or holds something else. Raises OSError."""
    return parse_mapping(_bytes(path))


def _bytes(path: Path) -> bytes:
    """The content of a file; empty where there is no file. Raises OSError where it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return b""


def parse_mapping(data: bytes) -> dict[str, Any] | None:
    """The mapping in some JSON; None for anything else."""
    try:
        loaded = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return loaded if isinstance(loaded, dict) else None


def is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line. NaN and infinity, which browsers refuse, become null. Raises StorageError for a link, OSError."""
    line = json.dumps(_finite(record), ensure_ascii=True, allow_nan=False).encode("ascii")
    with open_to_append(path) as file:
        if end := file.tell():  # a kill may have torn the last line: keep it apart from the new one
            file.seek(end - 1)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line + b"\n")


def cut_jsonl(path: Path, last_step: int) -> None:
    """Drop the records after `last_step`, and a torn last line: a resumed run writes them again.

    Every other line stays as it is, also one that cannot be read.
    """
    if not path.is_file():
        return
    *lines, _torn = path.read_bytes().split(b"\n")
    with replacing(path) as file:
        file.writelines(line + b"\n" for line in lines if not _is_after(parse_mapping(line), last_step))


def _is_after(record: Mapping[str, Any] | None, last_step: int) -> bool:
    return record is not None and is_step(record.get("step")) and record["step"] > last_step


def write_json(path: Path, value: Any) -> None:
    """Write JSON, replacing the file in one step."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, replacing it in one step."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


MAX_BYTES = 1_000_000


MAX_DEPTH = 20


MAX_LENGTH = 2_000


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file; UsageError for anything else, for duplicate keys and for files over 1 MB."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) <= MAX_BYTES:
            loaded = yaml.load(data.decode("utf-8"), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader that refuses more
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:  # the middle two: `2024-99-99`, `? [1]`
        raise UsageError(f"{path} cannot be read as settings: {' '.join(str(error).split())[:500]}") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is larger than 1 MB: that is no config.yaml of nolabel.")
    if not isinstance(loaded, dict):
        raise UsageError(f"{path} holds no settings: expected `name: value` lines as in RUN/config.yaml.")
    return loaded


class _StrictLoader(yaml.SafeLoader):
    """Loader that refuses YAML which no config.yaml of nolabel holds."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it uses aliases (*name): write the value out")
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if len(getattr(event, "value", None) or "") > MAX_LENGTH:
            raise yaml.YAMLError(f"one of its values has more than {MAX_LENGTH} characters")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"its values are nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(k, deep=True) for k, _ in node.value]
        twice = {k for k in keys if keys.count(k) > 1}
        if twice:
            raise yaml.YAMLError(f"{sorted(map(str, twice))} given more than once")
        return super().construct_mapping(node, deep)


def temporary_name(path: Path) -> Path:
    """A random name beside `path`, for the file that replaces `path` once it is whole."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing; at the end of the block it takes the place of `path`.

    A link at `path` is replaced, not followed. After an error `path` is as before. Raises OSError.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "xb") as file:  # exclusively: an existing file is not opened, a link least of all
            yield file
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def open_to_append(path: Path) -> BinaryIO:
    """Open a file to read and to add to its end. Raises StorageError if it is a link, OSError.

    A file that has other names (hard links, as `cp -al` makes them) is copied first: the others stay as they are.
    """
    with contextlib.suppress(FileNotFoundError):
        facts = os.lstat(path)
        if stat.S_ISREG(facts.st_mode) and facts.st_nlink > 1:
            with replacing(path) as own:
                own.write(path.read_bytes())
    try:
        return open(path, "ab+", opener=_open_no_link)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StorageError(_refusal(path)) from error
        raise


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that is possible; of a link only the link is removed."""
    with contextlib.suppress(OSError, RecursionError):  # RecursionError: folders nested too deep
        shutil.rmtree(path, ignore_errors=True)
        path.unlink()


def check_no_links(folder: Path, names: Iterable[str]) -> None:
    """Raise StorageError if one of `names` (patterns) in `folder`, or anything below, is a link or no file or folder.

    `folder` itself may be a link.
    """
    patterns, root = tuple(names), os.path.realpath(folder)
    todo = [path for path in _entries(root) if any(fnmatchcase(os.path.basename(path), p) for p in patterns)]
    while todo:
        path = todo.pop(0)
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:  # a run that goes on has just replaced it
            continue
        if stat.S_ISDIR(mode):
            todo += _entries(path)
        elif not stat.S_ISREG(mode):
            raise StorageError(_refusal(Path(path)))


def _entries(folder: str) -> list[str]:
    """The paths in a folder in order of their names; none where it cannot be listed."""
    with contextlib.suppress(OSError):
        return [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    return []


def _refusal(path: Path) -> str:
    if not path.is_symlink():
        return f"{path} is a pipe, a socket or a device, not a file. Remove it: nolabel writes there."
    return (
        f"{path} is a link to {os.readlink(path)}. nolabel writes there, and never through a link.\n"
        "Remove the link, or put what it leads to in its place. To keep a run on another disk, move the whole folder\n"
        "there; the run folder itself may be a link."
    )


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
