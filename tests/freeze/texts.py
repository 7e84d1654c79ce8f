"""Files as text to hash: exact, in a fixed order, and without times, paths and versions.

Left out: the metrics in TIMES, the events in TIMED_EVENTS, the time of an event, the versions and the open log window
in state.json, all of status.json but state, step and health, `*.time.json`, the report. Paths are relative, for every
item runs in its own folder; where a command prints the path of this folder, `worker.py` writes HERE.

A tensor is its name, type, shape and the SHA-256 of its bytes; a number is its `float.hex`, with six digits for people.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

TIMES = {"img_per_s", "data_wait", "step_ms", "decode_ms", "crop_ms", "seconds", "waited"}
"""Metrics that are measured with a clock."""
TIMED_EVENTS = {"start", "slow loader", "restart"}
"""Events that say what machine it is, or that come when it is slow."""


def run_text(run: Path) -> str:
    """All that a finished run leaves, and that a resumed one must leave too."""
    checkpoint = max((run / "checkpoints").glob("step-*"))
    state = json.loads((checkpoint / "state.json").read_text("utf-8"))
    kept = {key: value for key, value in state.items() if key not in ("versions", "window")}
    status = json.loads((run / "status.json").read_text("utf-8"))
    bad = [path.read_text("utf-8") for path in sorted(run.glob("bad_files*.jsonl"))]
    return "\n".join(
        [
            *_records(run / "metrics.jsonl"),
            checkpoint.name,
            *tensor_lines(checkpoint / "model.safetensors"),
            *tensor_lines(checkpoint / "optim.safetensors"),
            json.dumps(kept, indent=1),
            json.dumps({key: status.get(key) for key in ("state", "step", "health")}, indent=1),
            *bad,
            *folder_lines(run / "weights"),
            *folder_lines(run / "eval"),
        ]
    )


def event_text(run: Path) -> str:
    """The events of a run, but for those that the clock makes."""
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text("utf-8").splitlines()]
    kept = [line for line in lines if line["event"] not in TIMED_EVENTS]
    return "\n".join(json.dumps({k: v for k, v in line.items() if k != "time"}) for line in kept)


def folder_lines(folder: Path) -> Iterator[str]:
    """Every file below `folder`: JSON, YAML and text as they are, tensors one by one, others as a hash of their bytes.

    Left out is what lies in `cache`, and `*.time.json`, which holds durations.
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.endswith(".time.json") or name.startswith("cache/"):
            continue
        yield f"file {name} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        if path.suffix in (".json", ".yaml", ".txt"):
            yield path.read_text("utf-8")
        elif path.suffix == ".safetensors":
            yield from tensor_lines(path)
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                yield from (_line(key, str(value.dtype), value.shape, value.tobytes()) for key, value in arrays.items())


def tensor_lines(path: Path) -> Iterator[str]:
    """A line per tensor of a safetensors file."""
    for name, tensor in sorted(load_file(path).items()):
        data = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        yield _line(name, str(tensor.dtype), tuple(tensor.shape), data)


def _line(name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> str:
    return f"{name} {dtype} {shape} {hashlib.sha256(data).hexdigest()}"


def _records(path: Path) -> Iterator[str]:
    for line in path.read_text("utf-8").splitlines():
        record: dict[str, Any] = json.loads(line)
        yield f"step {record['step']}"
        yield from _values((name, value) for name, value in record.items() if name not in TIMES)


def _values(items: Iterable[tuple[str, Any]]) -> Iterator[str]:
    for name, value in items:
        yield f"  {name} {value.hex()} {value:.6g}" if isinstance(value, float) else f"  {name} {json.dumps(value)}"
