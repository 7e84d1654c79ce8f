"""Checkpoints that survive a kill at any instant, and never give back damaged bytes.

A checkpoint is a folder `step-00000042` with tensors in safetensors and numbers in JSON. It is written aside, every
file is flushed to the disk, a manifest with the SHA-256 of each file comes last, and only then the folder gets its
name. What doesn't verify is set aside, and the one before is used.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nolabel.errors import StorageError

FORMAT = 1


class Checkpoint(NamedTuple):
    """What a checkpoint holds."""

    model: dict[str, Tensor]
    optim: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, step: int, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `folder`/step-XXXXXXXX, then delete all but the newest `keep`. Raises StorageError; the old ones stay."""
    temporary = folder / f".tmp-{os.getpid()}-{step}"
    final = folder / f"step-{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_debris(folder)
        temporary.mkdir()
        save_file(checkpoint.model, temporary / "model.safetensors")
        save_file(checkpoint.optim, temporary / "optim.safetensors")
        (temporary / "state.json").write_text(json.dumps(checkpoint.state, indent=1), encoding="utf-8")
        files = {f.name: {"bytes": f.stat().st_size, "sha256": _sha256(f)} for f in sorted(temporary.iterdir())}
        manifest = {"format": FORMAT, "step": step, "files": files}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _flush(temporary)
        if final.exists():  # the same step again, after a resume: the new one is as good
            shutil.rmtree(final)
        os.rename(temporary, final)
        _flush_folder(folder)
    except (OSError, RuntimeError, ValueError) as error:  # safetensors raises its own kinds of the last two
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(f"The checkpoint of step {step} could not be written to {folder}: {error}") from error
    for old in list(_newest_first(folder))[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, or None, and a line for each one that was damaged and set aside."""
    damaged: list[str] = []
    for path in list(_newest_first(folder)):
        problem = verify(path)
        if problem is None:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            return Checkpoint(
                load_file(path / "model.safetensors"), load_file(path / "optim.safetensors"), state
            ), damaged
        aside = path.with_name(path.name + ".corrupt")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
        damaged.append(f"{path.name} is damaged ({problem}) and was set aside as {aside.name}")
    return None, damaged


def verify(path: Path) -> str | None:
    """None if every file of the checkpoint has the size and hash of its manifest, else what is wrong."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        files = manifest["files"]
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}, this nolabel reads {FORMAT}"
        for name in ("model.safetensors", "optim.safetensors", "state.json"):
            if (path / name).stat().st_size != files[name]["bytes"] or _sha256(path / name) != files[name]["sha256"]:
                return f"{name} has changed"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as flat `parameter/slot` tensors."""
    names: dict[Tensor, str] = {p: n for n, p in module.named_parameters()}
    return {
        f"{names[p]}/{slot}": value.detach().clone()
        for p, slots in optimizer.state.items()
        for slot, value in slots.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = dict(module.named_parameters())
    optimizer.state.clear()
    for key, value in tensors.items():
        name, slot = key.rsplit("/", 1)
        p = parameters[name]
        optimizer.state[p][slot] = value.to(p.device)


def _newest_first(folder: Path) -> Iterator[Path]:
    found = [p for p in folder.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdigit()]
    return iter(sorted(found, key=lambda p: int(p.name.removeprefix("step-")), reverse=True))


def _remove_debris(folder: Path) -> None:
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
