"""Training runs that are killed end as if nobody had touched them. `make torture` is the long form."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nolabel
from nolabel.training import state as training_state


def program(name: str, *options: str, seconds: float) -> "subprocess.CompletedProcess[str]":
    """Run one of the programs beside this file: they fork, which a process with threads must not."""
    arguments = [sys.executable, str(Path(__file__).with_name(name)), *options]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=seconds, check=False)
    print(ended.stdout, ended.stderr)
    return ended


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")
def test_a_dozen_kills() -> None:
    ended = program("kills.py", "--kills", "12", "--runs", "2", seconds=280)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")
def test_two_hundred_kills() -> None:
    kills, minutes = os.environ.get("KILLS", "200"), os.environ.get("MINUTES", "20")
    ended = program("kills.py", "--kills", kills, "--runs", "9", "--minutes", minutes, seconds=90 * float(minutes))
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")
def test_a_resume_that_forgets_the_optimizer_is_noticed() -> None:
    ended = program("kills.py", "--kills", "1", "--runs", "1", "--methods", "dino", "--sabotage", seconds=120)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "0 of    1" in ended.stdout and "optim.safetensors" in ended.stdout


@pytest.mark.parametrize("options", [[], ["--sabotage"]])
def test_a_kill_at_every_system_call_of_a_save(options: list[str]) -> None:
    if sys.platform != "linux":
        pytest.skip("needs strace")
    ended = program("syscalls.py", *options, seconds=200)
    if ended.returncode == 77:
        pytest.skip(ended.stdout.strip())
    assert ended.returncode == len(options), ended.stdout + ended.stderr


def state(run: Path) -> list[bytes]:
    newest = run / "checkpoints" / "step-00000006"
    files = [newest / "model.safetensors", newest / "optim.safetensors", run / "weights" / "model.safetensors"]
    return [file.read_bytes() for file in files]


@pytest.mark.parametrize("place", ["save_weights", "record_event"])
def test_death_between_the_last_checkpoint_and_the_end(
    place: str, tiny: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is there, the weights or the last words are not."""

    class Death(BaseException):
        pass

    settings = tiny | {"data": pictures / "train", "steps": 6, "checkpoint_every": 3, "eval_every": 100}
    nolabel.train("dino-small", **settings, out=tmp_path / "whole")
    call = getattr(training_state, place)

    def dying(*arguments: Any, **named: Any) -> None:
        if (tmp_path / "run" / "checkpoints" / "step-00000006").exists():
            raise Death
        call(*arguments, **named)

    monkeypatch.setattr(training_state, place, dying)
    with pytest.raises(Death):
        nolabel.train("dino-small", **settings, out=tmp_path / "run")
    monkeypatch.undo()
    (tmp_path / "run" / ".weights.1.tmp").mkdir()
    assert nolabel.resume(tmp_path / "run").status()["state"] == "done"
    assert state(tmp_path / "run") == state(tmp_path / "whole")
    assert not list((tmp_path / "run").glob(".*.tmp"))
