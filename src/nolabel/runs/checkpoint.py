"""Checkpoints that survive a kill at any instant, and never return damaged bytes.

A checkpoint is a folder `step-00000042` with tensors in safetensors and numbers in JSON. It is written aside, every
file is flushed to the disk, a manifest with the SHA-256 of each file comes last, and only then the folder gets its
name. A checkpoint that doesn't verify is set aside, and the one before is used; one that cannot be read stays as it is.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nolabel.errors import StorageError

FORMAT = 1


MIN_KEPT = 2
"""Good checkpoints that are never deleted: the newest may turn out damaged when it is needed."""


_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # errors on opening a file that is not there


_NAME = re.compile(r"step-([0-9]+)(\.old)?")  # `.old`: replaced by one of the same step, and not yet deleted


_TEMPORARY = re.compile(r"\.tmp-([0-9a-f]+-)?(step-)?[0-9]+(\.old)?")  # what is being written or deleted


class Checkpoint(NamedTuple):
    """Content of a checkpoint: tensors of model and optimizer, and the numbers of the run."""

    model: dict[str, Tensor]
    optim: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, step: int, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `folder`/step-XXXXXXXX, check it, then delete all but the newest `keep` (two at least) that are good.

    After a StorageError the old ones are still there. Folders with other names, such as `best`, are never touched.
    """
    temporary = folder / f".tmp-{secrets.token_hex(8)}-{step}"
    final = folder / f"step-{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_debris(folder)
        temporary.mkdir()
        _write(temporary, step, checkpoint)
        _flush(temporary)
        if final.exists():  # the same step again, after a resume
            _move_aside(final)
        os.rename(temporary, final)
        _flush_folder(folder)
        problem = verify(final)
        if problem is not None:
            _delete(final)
            raise OSError(errno.EIO, f"what was read back differs: {problem}")
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(f"The checkpoint of step {step} could not be written to {folder}: {error}") from error
    with contextlib.suppress(OSError):
        _purge(folder, final, max(keep, MIN_KEPT))
    return final


def load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Load the newest checkpoint that verifies, or None, and return a line for each newer one that is damaged.

    The damaged ones are set aside once a good one is found. Raises StorageError where something cannot be read: it may
    be good, so nothing is renamed.
    """
    damaged: list[tuple[Path, str]] = []
    with _readable(folder):
        for path in _newest_first(folder):
            problem = verify(path)
            if problem is None:
                try:
                    checkpoint = _read(path)
                except (ValueError, RecursionError, SafetensorError) as error:  # foreign files with right hashes
                    problem = f"{type(error).__name__}: {error}"
                else:
                    return checkpoint, [f"{p.name} is damaged ({what}) and {_set_aside(p)}" for p, what in damaged]
            damaged.append((path, problem))
    return None, [f"{path.name} is damaged ({what})" for path, what in damaged]


def _set_aside(path: Path) -> str:
    """Rename a damaged checkpoint; returns the outcome in words."""
    aside = path.with_name(path.name + ".corrupt")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
    except OSError as error:  # a folder that cannot be written may still hold a good one
        return f"could not be set aside ({error.strerror})"
    return f"was set aside as {aside.name}"


def newest_state(folder: Path) -> dict[str, Any] | None:
    """The numbers of the newest checkpoint whose state.json is whole, None where there is none. Raises StorageError."""
    with _readable(folder):
        for path in _newest_first(folder):
            with contextlib.suppress(*_ABSENT, ValueError, KeyError, TypeError, RecursionError):
                data = (path / "state.json").read_bytes()
                expected = json.loads((path / "manifest.json").read_bytes())["files"]["state.json"]["sha256"]
                state = json.loads(data)
                if hashlib.sha256(data).hexdigest() == expected and isinstance(state, dict):
                    return state
    return None


def has_traces(folder: Path) -> bool:
    """Whether there are traces of a checkpoint in `folder`, such as one that was set aside or kept. StorageError."""
    with _readable(folder), contextlib.suppress(*_ABSENT):
        return any(re.match(r"(step|kept)-[0-9]+", name) for name in os.listdir(folder))
    return False


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn a failed read into a StorageError: an unreadable checkpoint may be good, so nothing is decided."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch has a RuntimeError for a file that it cannot map
        where, why = getattr(error, "filename", None) or folder, getattr(error, "strerror", None) or error
        raise StorageError(
            f"{where} cannot be read ({why}).\n"
            "The checkpoint may be good: nothing was renamed and nothing removed.\n"
            "Repair the disk or the permissions, then resume."
        ) from error


def has_good(folder: Path) -> bool:
    """Whether `load_newest` would find a good checkpoint."""
    with contextlib.suppress(OSError):
        return any(_is_good(path) for path in _newest_first(folder))
    return False


def keep_newest(folder: Path, step: int) -> Path | None:
    """Keep the newest good checkpoint up to `step` as `kept-XXXXXXXX`, which no save deletes; the one kept before goes.

    Its files are the same ones, so it takes room only when the checkpoint itself is gone. Raises OSError.
    """
    for path in _newest_first(folder):
        if _step(path) > step or verify(path) is not None:
            continue
        kept = folder / f"kept-{_step(path):08d}"
        if not kept.exists():
            for earlier in folder.glob("kept-*"):
                if re.fullmatch(r"kept-[0-9]+", earlier.name):
                    shutil.rmtree(earlier)
            shutil.copytree(path, kept, copy_function=_link)
        return kept
    return None


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def verify(path: Path) -> str | None:
    """Check that the manifest is of this step and that every file has its size and hash; None, or what is wrong.

    Raises OSError where a file is there and cannot be read.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        files = manifest["files"]
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}, this nolabel reads {FORMAT}"
        if manifest["step"] != _step(path):
            return f"its manifest is that of step {manifest['step']}"
        for name in ("model.safetensors", "optim.safetensors", "state.json"):
            if (path / name).stat().st_size != files[name]["bytes"] or _sha256(path / name) != files[name]["sha256"]:
                return f"{name} has changed"
    except (*_ABSENT, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _is_good(path: Path) -> bool:
    try:
        return verify(path) is None
    except OSError:
        return False


def _read(path: Path) -> Checkpoint:
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if not isinstance(state, dict):
        raise ValueError("state.json holds no mapping")
    if state.get("step", _step(path)) != _step(path):
        raise ValueError(f"its state is that of step {state['step']!r:.20}")
    return Checkpoint(load_file(path / "model.safetensors"), load_file(path / "optim.safetensors"), state)


def _write(folder: Path, step: int, checkpoint: Checkpoint) -> None:
    save_file(checkpoint.model, folder / "model.safetensors")
    save_file(checkpoint.optim, folder / "optim.safetensors")
    (folder / "state.json").write_text(json.dumps(checkpoint.state, indent=1), encoding="utf-8")
    for path in folder.glob("*.safetensors"):  # safetensors writes 0600: colleagues could not read it
        shutil.copymode(folder / "state.json", path)
    files = {f.name: {"bytes": f.stat().st_size, "sha256": _sha256(f)} for f in sorted(folder.iterdir())}
    manifest = {"format": FORMAT, "step": step, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _newest_first(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, newest first, damaged ones too; none where it does not exist. Raises OSError."""
    try:
        with os.scandir(folder) as entries:
            paths = [folder / entry.name for entry in entries if _NAME.fullmatch(entry.name) and entry.is_dir()]
    except FileNotFoundError:
        return []
    return sorted(paths, key=lambda p: (_step(p), p.suffix != ".old"), reverse=True)


def _move_aside(final: Path) -> None:
    """Free the name; a good checkpoint stays where `load_newest` finds it until the new one is there."""
    if verify(final) is None:
        aside = final.with_name(final.name + ".old")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(final, aside)
    else:
        _delete(final)


def _purge(folder: Path, new: Path, keep: int) -> None:
    """Delete all but `new`, which is good, and the newest other good ones: a damaged one does not count as kept."""
    kept = set[int]()
    for path in _newest_first(folder):
        step, full = _step(path), len(kept) >= keep
        good = path == new or len(kept) >= MIN_KEPT or full or _is_good(path)  # two are read again, not all
        if path != new and (full or step in kept):
            _delete(path)
        elif good:
            kept.add(step)


def _delete(path: Path) -> None:
    """Rename, then delete, so that nothing half deleted ever looks like a checkpoint."""
    gone = path.with_name(f".tmp-{secrets.token_hex(8)}-{path.name}")
    os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _remove_debris(folder: Path) -> None:
    """Remove the leftovers of a killed save; a checkpoint that it had moved aside gets its name back."""
    for path in folder.glob(".tmp-*"):
        if _TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("step-*.old"):
        if not path.with_suffix("").exists():
            os.rename(path, path.with_suffix(""))


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
