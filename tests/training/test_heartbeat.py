"""A process that is killed, stopped or caught in a loop ends the whole job, with a code and a name."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nolabel.errors import DEAD_PROCESS
from nolabel.runs.folder import Run
from nolabel.training import heartbeat as heartbeat_module

SCRIPT = """
import importlib, json, os, sys
import nolabel
from nolabel.training import heartbeat as heartbeat_module

heartbeat_module.BEAT, heartbeat_module.SILENCE, heartbeat_module.STANDSTILL = 0.3, 6.0, 15.0
from nolabel.training import loop
step, settings, hang = loop.training_step, json.loads(sys.argv[1]), sys.argv[2] == "hang"

def hanging(job, views, clock):
    while hang and clock.step == 5 and os.environ["RANK"] == "1":
        pass
    return step(job, views, clock)

loop.training_step = hanging
try:
    nolabel.train("dino-small", **settings)
except RuntimeError as error:  # the collective noticed before the heartbeat did
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def pair(tiny: dict[str, Any], pictures: Path, tmp_path: Path) -> Iterator[Any]:
    """Starts a job of two processes that would run for minutes."""
    started: list[subprocess.Popen[str]] = []

    def start(mode: str) -> list[subprocess.Popen[str]]:
        settings = tiny | {"data": str(pictures / "train"), "out": str(tmp_path / "run"), "steps": 100_000}
        settings |= {"log_every": 1, "checkpoint_every": 100_000, "eval_every": 100_000}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        started.extend(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, json.dumps(settings), mode],
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        )
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def trains(run: Path, processes: list[subprocess.Popen[str]]) -> None:
    """Wait until steps are being made."""
    end = time.monotonic() + 120
    while time.monotonic() < end and all(p.poll() is None for p in processes):
        if (run / "metrics.jsonl").is_file() and len(Run(run).metrics()) > 5:
            return
        time.sleep(0.2)
    codes = [p.poll() for p in processes]
    raise AssertionError(f"the job never started, or ended: codes {codes}, {Run(run).status()}")


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_stopped_process_ends_the_job(rank: int, pair: Any, tmp_path: Path) -> None:
    processes = pair("train")
    trains(tmp_path / "run", processes)
    processes[rank].send_signal(signal.SIGSTOP)
    said = processes[1 - rank].communicate(timeout=60)[1]
    assert processes[1 - rank].returncode == DEAD_PROCESS
    assert f"Process {rank} gives no sign of life since step" in said and "nolabel resume" in said
    status = Run(tmp_path / "run").status()
    assert (status["state"], status["exit_code"]) == ("failed", DEAD_PROCESS)
    assert f"Process {rank}" in status["reason"]


def test_a_hanging_process_ends_the_job(pair: Any, tmp_path: Path) -> None:
    processes = pair("hang")
    said = [p.communicate(timeout=150)[1] for p in processes]
    codes = [p.returncode for p in processes]
    assert DEAD_PROCESS in codes and 0 not in codes
    assert any("No process has finished a step for" in text and "process 1: step 5" in text for text in said)


@pytest.mark.slow
def test_a_killed_process_ends_the_job(pair: Any, tmp_path: Path) -> None:
    processes = pair("train")
    trains(tmp_path / "run", processes)
    processes[1].kill()
    processes[0].communicate(timeout=60)
    assert processes[0].returncode not in (0, None)


Beat = tuple[float, float, str, float]  # seconds since the heartbeat, since the last step, doing, longest step


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        ((1, 1, "training", 0), None),
        ((60, 60, "training", 0), "Process 1 gives no sign of life since step 7"),
        ((60, 60, "ended", 0), None),
        ((1, 100, "training", 0), "No process has finished a step"),
        ((1, 100, "evaluating", 0), None),
        ((1, 100, "training", 30), None),
    ],
)
def test_what_counts_as_a_problem(second: Beat, problem: str | None) -> None:
    def seen(beat_ago: float, moved_ago: float, doing: str, longest: float) -> Any:
        now = time.monotonic()
        return heartbeat_module._Seen(json.dumps([7, doing, 7, longest, 0.0]), now - beat_ago, now - moved_ago)

    first = seen(1, second[1] if second[0] < 10 else 1, "training", 0)
    found = heartbeat_module._problem({0: first, 1: seen(*second)}, heartbeat_module.Pulse(0))
    assert found is None if problem is None else problem in str(found)
