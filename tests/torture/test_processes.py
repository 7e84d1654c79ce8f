"""Real jobs of several processes: resumed by another number of them, and stopped by a signal to one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import nolabel

STEPS, KILLED_AT = 8, 5
SCRIPT = """
import importlib, json, os, sys
import nolabel
from nolabel.errors import NolabelError

from nolabel.training import loop
step, settings, dies_at = loop.training_step, json.loads(sys.argv[1]), int(sys.argv[2])

def dying(job, views, clock):
    if clock.step == dies_at:
        os._exit(9)
    return step(job, views, clock)

loop.training_step = dying
try:
    if os.path.exists(settings["out"] + "/config.yaml"):
        nolabel.resume(settings["out"])
    else:
        nolabel.train("dino-small", **settings)
except NolabelError as error:
    sys.exit(error.code)
"""


def start(settings: dict[str, Any], processes: int, dies_at: int = -1) -> list["subprocess.Popen[str]"]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps(settings), str(dies_at)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def ended(started: list["subprocess.Popen[str]"]) -> list[int]:
    try:
        for process in started:
            print(process.communicate(timeout=250)[1])
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [process.returncode for process in started]


def settings(tiny: dict[str, Any], pictures: Path, out: Path, **more: Any) -> dict[str, Any]:
    """Without drop path, whose draws are those of a process."""
    method = tiny["method"] | {"drop_path": 0.0}
    paths = {"data": str(pictures / "train"), "out": str(out)}
    return tiny | paths | {"method": method, "steps": STEPS, "checkpoint_every": 2, "log_every": 1} | more


def losses(run: Path) -> list[float]:
    return [r["loss"] for r in nolabel.Run(run).metrics() if "loss" in r]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on(
    first: int, second: int, tiny: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    nolabel.train("dino-small", **settings(tiny, pictures, tmp_path / "whole"))
    out = tmp_path / "run"
    codes = ended(start(settings(tiny, pictures, out), first, KILLED_AT))
    assert 9 in codes and 0 not in codes
    assert len(losses(out)) in (KILLED_AT - 1, KILLED_AT)
    assert ended(start(settings(tiny, pictures, out), second)) == [0] * second
    assert losses(out) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    nolabel.train("dino-small", **settings(tiny, pictures, tmp_path / "seed", seed=1))
    assert losses(tmp_path / "seed") != pytest.approx(losses(tmp_path / "whole"), rel=1e-3), (
        "the tolerance says nothing"
    )


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step(tiny: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    started = start(settings(tiny, pictures, out, steps=100_000, checkpoint_every=100_000, eval_every=100_000), 2)
    end = time.monotonic() + 200
    while time.monotonic() < end and not ((out / "metrics.jsonl").is_file() and len(losses(out)) > 3):
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    assert ended(started) == [143, 143]
    status = nolabel.Run(out).status()
    newest = max((out / "checkpoints").glob("step-*"))
    assert (status["state"], status["exit_code"]) == ("stopped", 143)
    assert newest.name == f"step-{status['step']:08d}" and status["step"] < 100_000


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps(tiny: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    """At most 1 MB in 1,000 steps once everything is warm; the history of a run is small."""
    pages, size = [], os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    from nolabel.training import loop

    step = loop.training_step
    method = tiny["method"] | {"num_local": 0}

    def counted(job: Any, views: Any, clock: Any) -> Any:
        pages.append(int(Path("/proc/self/statm").read_text().split()[1]) * size)
        return step(job, views, clock)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", counted)
        more = {"steps": 2_500, "log_every": 10, "checkpoint_every": 500, "eval_every": 500, "method": method}
        nolabel.train("dino-small", **settings(tiny, pictures, tmp_path / "run", **more))
    early, late = sorted(pages[500:1000])[250], sorted(pages[2000:2500])[250]
    assert late - early < 1.5 * 2**20, f"{(late - early) / 2**20:.1f} MiB in 1,500 steps"
