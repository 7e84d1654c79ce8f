"""A signal stops a run at a step, a second one at once; all processes of a job stop at the same step."""

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import nolabel
from nolabel.training import interrupts
from nolabel.training.interrupts import REPEATED, Stopped

LOOP = """
import sys, time
from nolabel.training.interrupts import catch_signals
with catch_signals() as number:
    print("ready", flush=True)
    while not number():
        time.sleep(0.01)
    print("first", number(), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_second_signal_acts_at_once(number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"first {number.value}\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


SCRIPT = """
import json, os, sys, time
import importlib
import nolabel
from nolabel.errors import NolabelError
from nolabel.training import loop
step = loop.training_step
def slow(job, views, clock):
    time.sleep(0.05)
    return step(job, views, clock)
loop.training_step = slow
try:
    nolabel.train("dino-small", **json.loads(sys.argv[1]))
except NolabelError as error:
    sys.exit(error.code)
"""


NOT_IGNORED = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
"""These tests may have been started with nohup, whose SIGHUP a process inherits as ignored."""


def wait_for(run: Path, step: int) -> None:
    end = time.monotonic() + 200
    while time.monotonic() < end:
        if (run / "metrics.jsonl").is_file() and any(r["step"] >= step for r in nolabel.Run(run).metrics()):
            return
        time.sleep(0.05)
    raise AssertionError("it never trained")


def stopped(run: Path, at_least: int) -> int:
    status = nolabel.Run(run).status()
    assert status["state"] == "stopped" and at_least <= status["step"] < 100_000
    newest = max((run / "checkpoints").glob("step-*"))
    assert int(newest.name.removeprefix("step-")) >= status["step"], "what was done is saved"
    return int(status["exit_code"])


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGHUP, 129),
        pytest.param(signal.SIGUSR1, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGXCPU, 152, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_run_stops_with_the_code_of_its_signal(
    number: signal.Signals, code: int, tiny: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    settings = tiny | {"data": str(pictures / "train"), "out": str(tmp_path / "run"), "steps": 100_000, "log_every": 1}
    settings |= {"eval_every": 100_000, "checkpoint_every": 100_000}
    process = subprocess.Popen([sys.executable, "-c", NOT_IGNORED + SCRIPT, json.dumps(settings)])
    try:
        wait_for(tmp_path / "run", 3)
        process.send_signal(number)
        if number in REPEATED:
            process.send_signal(number)
        assert process.wait(timeout=120) == code
    finally:
        process.kill()
        process.wait()
    assert stopped(tmp_path / "run", 3) == code


AGAIN = """
import os, signal, sys
from nolabel.training.interrupts import catch_signals
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if sys.argv[2] == "ignored":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
with catch_signals() as number:
    for _ in range(3):
        os.kill(os.getpid(), int(sys.argv[1]))
    print(number(), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_what_the_system_repeats_kills_no_save() -> None:
    """A terminal that closes sends SIGHUP twice, the limit of CPU time SIGXCPU each second; people still can insist."""
    for number, how, came in ((1, "", 1), (24, "", 24), (1, "ignored", 0)):
        found = subprocess.run(
            [sys.executable, "-c", AGAIN, str(number), how], capture_output=True, text=True, timeout=60
        )
        assert found.stdout == f"{came}\n"
        assert found.returncode == (-signal.SIGTERM if came else 0), "only the first signal is waited for"


def test_the_exit_code_is_that_of_the_signal() -> None:
    codes = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143, "SIGHUP": 129, "SIGXCPU": 152}
    for name, code in codes.items():
        if hasattr(signal, name):
            stopped = Stopped(getattr(signal, name), "runs/a")
            assert stopped.code == code and name in str(stopped)


def test_a_system_without_some_signals_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIGHUP", "SIGXCPU", "SIGUSR1"):
        monkeypatch.delattr(signal, name, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    try:
        importlib.reload(interrupts)
        assert interrupts.REPEATED == ()
        with interrupts.catch_signals() as number:
            assert number() == 0 and signal.getsignal(signal.SIGTERM) != before
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        monkeypatch.undo()
        importlib.reload(interrupts)
