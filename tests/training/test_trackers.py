"""A tracker gets the lines of metrics.jsonl; one that raises or hangs costs the run nothing."""

import contextlib
import importlib
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nolabel
from nolabel.errors import UsageError
from nolabel.training import trackers

Taken = list[tuple[int, dict[str, float]]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "POLL", 0.02)


def install(monkeypatch: pytest.MonkeyPatch, write: Callable[[dict[str, float], int], object]) -> None:
    @contextlib.contextmanager
    def start(out: Path) -> Iterator[trackers.Write]:
        yield write

    monkeypatch.setattr("nolabel.training.start.check_tracker", lambda name: None)
    monkeypatch.setitem(trackers.START, "tensorboard", start)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    found: Taken = []
    install(monkeypatch, lambda values, step: found.append((step, values)))
    return found


@pytest.fixture
def settings(tiny: dict[str, Any], pictures: Path) -> dict[str, Any]:
    return tiny | {"data": pictures / "train", "steps": 4, "log_every": 1, "tracker": "tensorboard"}


def logged(run: Path, after: int = -1) -> list[int]:
    return [r["step"] for r in nolabel.Run(run).metrics() if r["step"] > after]


def test_it_gets_every_line_as_numbers(settings: dict[str, Any], tmp_path: Path, taken: Taken) -> None:
    nolabel.train("dino-small", **settings, out=tmp_path / "run")
    assert [step for step, _ in taken] == logged(tmp_path / "run")
    records = [r for r in nolabel.Run(tmp_path / "run").metrics() if "loss" in r]
    assert [v["loss"] for _, v in taken if "loss" in v] == [r["loss"] for r in records]
    assert all(isinstance(v, float) for _, values in taken for v in values.values())


def test_a_resumed_run_gives_what_it_writes_itself(settings: dict[str, Any], tmp_path: Path, taken: Taken) -> None:
    nolabel.train("dino-small", **settings | {"tracker": "none"}, out=tmp_path / "run")
    assert not taken
    nolabel.resume(tmp_path / "run", {"steps": 6, "tracker": "tensorboard"})
    assert [step for step, _ in taken] == logged(tmp_path / "run", after=4)


def raises(values: dict[str, float], step: int) -> None:
    raise OSError("no server")


def hangs(values: dict[str, float], step: int) -> None:
    time.sleep(3600)


@pytest.mark.parametrize(("fault", "said"), [(raises, "failed (OSError: no server)"), (hangs, "has not taken all")])
def test_one_that_fails_costs_the_run_nothing(
    fault: Callable[..., None], said: str, settings: dict[str, Any], tmp_path: Path, taken: Taken,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    nolabel.train("dino-small", **settings, out=tmp_path / "whole")
    monkeypatch.setattr(trackers, "PATIENCE", 0.3)
    install(monkeypatch, fault)
    capfd.readouterr()
    run = nolabel.train("dino-small", **settings, out=tmp_path / "run")
    assert run.status()["state"] == "done" and f"warning: tensorboard {said}" in capfd.readouterr().err
    weights = [path / "weights" / "model.safetensors" for path in (tmp_path / "whole", tmp_path / "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_file_that_was_cut_gives_no_step_twice(tmp_path: Path, taken: Taken) -> None:
    """As a roll-back cuts it; and half a line waits for its other half."""
    path = tmp_path / "metrics.jsonl"

    def lines(*steps: int) -> str:
        return "".join(json.dumps({"step": s, "loss": 1.0, "words": "x", "none": None}) + "\n" for s in steps)

    def wait(*steps: int) -> None:
        end = time.monotonic() + 20
        while [s for s, _ in taken] != list(steps):
            assert time.monotonic() < end, taken
            time.sleep(0.01)

    path.write_text(lines(1, 2))
    with trackers.tracked("tensorboard", tmp_path):
        with open(path, "a") as file:
            file.write(lines(3, 4) + lines(5)[:9])
        wait(3, 4)
        (tmp_path / "new").write_text(lines(1, 2))
        os.replace(tmp_path / "new", path)
        time.sleep(0.1)
        with open(path, "a") as file:
            file.write(lines(3, 4, 5, 6))
        wait(3, 4, 5, 6)
    assert taken[0][1] == {"loss": 1.0}


def test_a_missing_package_is_reported_before_the_run(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'nolabel\[tensorboard\]'"):
        nolabel.train("dino-small", **settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensorboard_reads_the_same_numbers(settings: dict[str, Any], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = nolabel.train("dino-small", **settings, out=tmp_path / "run")
    found = accumulator.EventAccumulator(str(run.path / "tensorboard")).Reload()
    expected = {r["step"]: r["loss"] for r in run.metrics() if "loss" in r}
    assert {e.step: e.value for e in found.Scalars("loss")} == pytest.approx(expected, rel=1e-6)
