"""A save that fails or dies at any of its calls leaves what was good, and the next save cleans up."""

import errno
import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from faults import Death, Faults, injected

from nolabel.errors import StorageError
from nolabel.runs import checkpoint
from nolabel.runs.checkpoint import Checkpoint, load_newest, save

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.ESTALE)


def of(step: int, turn: int = 0) -> Checkpoint:
    """Something to save; `turn` tells two checkpoints of one step apart."""
    return Checkpoint({"a": torch.full((3,), step + turn / 10)}, {"a/step": torch.tensor(step)}, {"step": step})


def good(folder: Path) -> list[int]:
    """Steps of the checkpoints that are whole, newest first, judged without the code under test."""
    found = set()
    for path in folder.glob("step-*"):
        step, _, rest = path.name.removeprefix("step-").partition(".")
        if step.isdigit() and rest in ("", "old") and path.is_dir() and is_whole(path, int(step)):
            found.add(int(step))
    return sorted(found, reverse=True)


def is_whole(path: Path, step: int) -> bool:
    names = ("model.safetensors", "optim.safetensors", "state.json")
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        data = {name: (path / name).read_bytes() for name in names}
        files = {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in data.items()}
    except (OSError, ValueError):
        return False
    return bool(manifest == {"format": 1, "step": step, "files": files})


def newest(folder: Path) -> int | None:
    found, _ = load_newest(folder)
    if found is None:
        return None
    step = found.state["step"]
    assert int(found.optim["a/step"]) == step and int(found.model["a"][0]) == step
    return int(step)


def started(folder: Path) -> Path:
    for step in (10, 20):
        save(folder, step, of(step), keep=2)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def attempt(folder: Path, step: int, faults: Faults) -> str:
    """End of a save with faults."""
    try:
        with injected(faults):
            save(folder, step, of(step, turn=1), keep=2)
    except Death:
        return "died"
    except StorageError as error:
        assert len(str(error).splitlines()) <= 5
        return "refused"
    return "saved"


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def number_of_calls(folder: Path, step: int) -> int:
    faults = Faults(10**9, Death)
    assert attempt(started(folder), step, faults) == "saved"
    assert len(faults.seen) > 20 and {"rename", "mkdir", "fsync", "save_file", "open file"} <= set(faults.seen)
    return len(faults.seen)


@pytest.mark.parametrize("step", [20, 30])  # 20: the same step again, as after a resume
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_death_at_every_call(tmp_path: Path, step: int, after: bool) -> None:
    outcomes = set()
    for at in range(number_of_calls(tmp_path / "count", step)):
        folder = started(tmp_path / str(at))
        ended = attempt(folder, step, Faults(at, Death, after))
        assert ended == "died", f"call {at}"
        outcomes.add(good(folder)[0])
        assert newest(folder) == good(folder)[0] >= 20, f"call {at}: {names(folder)}"
        assert len(good(folder)) >= 2, f"call {at}: {names(folder)}"
        save(folder, 40, of(40), keep=2)
        assert names(folder) == [f"step-{s:08d}" for s in sorted(good(folder))], f"call {at}: debris is left"
        assert good(folder)[0] == 40 and len(good(folder)) == 2
    print(f"faults injected: {at + 1} deaths {'after' if after else 'before'} a call of a save")
    assert outcomes == {20, step}


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
def test_an_error_at_every_call(tmp_path: Path, number: int, lasting: bool) -> None:
    outcomes = set()
    for at in range(number_of_calls(tmp_path / "count", 30)):
        folder = started(tmp_path / str(at))
        faults = Faults(at, lambda: OSError(number, os.strerror(number)), lasting=lasting)
        ended = attempt(folder, 30, faults)
        outcomes.add(ended)
        assert faults.struck and ended != "died"
        assert newest(folder) == good(folder)[0] >= (30 if ended == "saved" else 20), f"call {at}: {names(folder)}"
        assert len(good(folder)) >= 2
        if not lasting and ended == "refused":
            assert not list(folder.glob(".tmp-*")), f"call {at}: {names(folder)}"
        save(folder, 40, of(40), keep=2)
        assert names(folder) == [f"step-{s:08d}" for s in sorted(good(folder))], f"call {at}: debris is left"
    print(f"faults injected: {at + 1} x {errno.errorcode[number]}{', lasting' if lasting else ''}")
    assert outcomes == {"saved", "refused"}


# ---- random histories


def history(folder: Path, seed: int, operations: int = 8) -> None:
    """Saves, crashed saves, damage and changes of `keep` in random order; asserts what must hold after each.

    A good checkpoint is only ever lost to damage, or because two newer ones are good.
    """
    choice = random.Random(seed)
    (folder / "best").mkdir(parents=True)
    (folder / "best" / "model.safetensors").write_bytes(b"mine")
    calls = 60  # about as many as a save makes
    for step in range(10, 10 * operations + 10, 10):
        before, keep = good(folder), choice.choice((1, 2, 3))
        action = choice.choices(("save", "again", "crash", "crash again", "damage"), (4, 1, 4, 2, 2))[0]
        step = before[0] if "again" in action and before else step
        if action == "damage" and len(before) > 1:
            damage(folder / f"step-{choice.choice(before[:2]):08d}", choice)
            assert newest(folder) == good(folder)[0]
            continue
        try:
            with injected(
                Faults(choice.randrange(calls) if "crash" in action else 10**9, Death, choice.random() < 0.5)
            ):
                save(folder, step, of(step), keep)
            expected = sorted({*before, step}, reverse=True)[:2]
            assert not list(folder.glob(".tmp-*")) and good(folder)[0] == expected[0]
        except Death:
            expected = sorted({*before, *good(folder)}, reverse=True)[:2]
        assert set(expected) <= set(good(folder)), f"{action} of {step}: {expected} became {good(folder)}"
        if before:
            assert newest(folder) == good(folder)[0]
        assert (folder / "best" / "model.safetensors").read_bytes() == b"mine"


def damage(path: Path, choice: random.Random) -> None:
    file = choice.choice(sorted(path.glob("*")) or [path])
    if file.is_file():
        data = bytearray(file.read_bytes())
        data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
        file.write_bytes(data)


def test_the_two_newest_good_ones_outlive_any_history(tmp_path: Path) -> None:
    for seed in range(40):
        history(tmp_path / str(seed), seed)


@pytest.mark.slow
def test_the_two_newest_good_ones_outlive_500_histories(tmp_path: Path) -> None:
    for seed in range(500):
        history(tmp_path / str(seed), seed, 12)


def counts_debris(folder: Path, new: Path, keep: int) -> None:
    for path in checkpoint._newest_first(folder)[keep:]:
        checkpoint._delete(path)


def deletes_first(final: Path) -> None:
    checkpoint.shutil.rmtree(final)


@pytest.mark.parametrize(("name", "bug"), [("_purge", counts_debris), ("_move_aside", deletes_first)])
def test_the_histories_find_bugs(
    tmp_path: Path, name: str, bug: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, name, bug)
    with pytest.raises(AssertionError):
        for seed in range(40):
            history(tmp_path / str(seed), seed)
