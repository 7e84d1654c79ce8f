"""Files of evaluations: a JSON file per protocol and data, durations beside it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from nolabel.data.images import fingerprint, scan, scan_labelled
from nolabel.errors import DataError, StorageError, UsageError
from nolabel.files import read_json, replacing, write_json


def result_path(run: Path, protocol: str, data: str | Path) -> Path:
    """RUN/eval/PROTOCOL.json, or PROTOCOL-DATA.json where that holds the result on other data.

    Two data sets may have one name: then it is PROTOCOL-DATA-FINGERPRINT.json. No result on other data is replaced.
    """
    plain, name = run / "eval" / f"{protocol}.json", data_name(data)
    for path in (plain, plain.with_name(f"{protocol}-{name}.json")):
        if not _is_of_other_data(path, data):
            return path
    return plain.with_name(f"{protocol}-{name}-{data_fingerprint(data)[:8] or 'other'}.json")


def data_fingerprint(data: str | Path) -> str:
    """The fingerprint of all images in DATA, with masks and all others; empty where there is none."""
    try:
        return fingerprint(scan(data, ""))
    except DataError:
        return ""


def _is_of_other_data(path: Path, data: str | Path) -> bool:
    """Whether a file holds a result on data of another name, or of the same name and another content."""
    try:
        about = json.loads(_read(path))["data"]
        if about["name"] != data_name(data):
            return True
    except (ValueError, KeyError, TypeError):
        return False
    times = read_json(path.with_suffix(".time.json")) or {}
    if isinstance(known := times.get("data"), str):
        return known != data_fingerprint(data)
    try:  # a result of an earlier version
        there = {fingerprint(part.images) for part in scan_labelled(data).values()}
    except DataError:
        there = set()
    splits = about.get("splits")
    parts = splits.values() if isinstance(splits, dict) else ()
    return not any(isinstance(part, dict) and part.get("fingerprint") in there for part in parts)


def check_place(out: Path) -> None:
    """UsageError where there is a file at `out` that is no result: only what nolabel has written is replaced."""
    if not os.path.lexists(out):
        return
    try:
        stored = json.loads(_read(out))
    except (ValueError, RecursionError):
        stored = None
    if not (isinstance(stored, dict) and {"protocol", "version"} <= stored.keys()):
        raise UsageError(f"{out} exists and is no result of nolabel, so it is not replaced: choose another --out.")


def _read(path: Path) -> str:
    """A result as text, empty where there is none. What cannot be read is not replaced: StorageError."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}). Choose another --out.") from error


def data_name(data: str | Path) -> str:
    """The name of the data in results: the last part of its path, without `.zip` (never the path)."""
    return Path(data).resolve().name.removesuffix(".zip")


def write_result(path: Path, result: Mapping[str, Any], times: Mapping[str, Any]) -> None:
    """Write `path`, equal bytes for equal results, and what differs from run to run in NAME.time.json beside it.

    Raises StorageError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
        write_json(path.with_suffix(".time.json"), times)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}). Choose another --out.") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file in one step, readable to whom the folder is. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = save(dict(tensors), None if facts is None else dict(facts))
    with replacing(path) as file:
        file.write(data if facts is None else _in_order(data))


def _in_order(data: bytes) -> bytes:
    """The same safetensors file with its metadata sorted: the library writes it in an order of chance."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[end:]
