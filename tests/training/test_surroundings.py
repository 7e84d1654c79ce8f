"""Time zone, language, encoding of the system, no home and a clock that goes back change nothing of a run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PLACES = {
    "home": {},
    "far away": {  # and without a home, beside a secret
        "TZ": "Pacific/Apia",
        "LC_ALL": "tr_TR.UTF-8",
        "LANG": "tr_TR.UTF-8",
        "HOME": "/nonexistent",
        "XDG_CACHE_HOME": "/nonexistent/cache",
        "AWS_SECRET_ACCESS_KEY": "s3cret-canary",
    },
    "bäre": {  # file names are ASCII here, and the folder of this run is not
        "TZ": "UTC-14",
        "LC_ALL": "POSIX",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    },
}
PROGRAM = """
import json, sys, time
settings, back = json.loads(sys.argv[1]), int(sys.argv[2])
now, calls = time.time, [0]
def time_going_back():
    calls[0] += 1
    return now() - back * calls[0]
time.time = time_going_back
import nolabel
nolabel.train("dino-small", **settings)
"""


def trained(out: Path, settings: dict[str, Any], place: dict[str, str], back: int = 0) -> bytes:
    arguments = json.dumps(settings | {"out": str(out)})
    temporary = out.with_name("temporary")
    temporary.mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("TZ", "LANG", "LC_ALL", "PYTHONUTF8")} | place
    environment |= {"TMPDIR": str(temporary)}
    command = [sys.executable, "-c", PROGRAM, arguments, str(back)]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    left = [path for path in temporary.rglob("*") if path.is_file()]  # torch makes an empty folder there
    assert not left, "something is left outside the run"
    return (out / "weights" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_is_the_same_everywhere(tiny: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    settings = tiny | {"data": str(pictures / "train"), "steps": 2, "log_every": 1}
    weights = {name: trained(tmp_path / name, settings, place) for name, place in PLACES.items()}
    weights["clock going back"] = trained(tmp_path / "back", settings, PLACES["bäre"], back=3600)
    assert {name: data == weights["home"] for name, data in weights.items()} == dict.fromkeys(weights, True)
    assert trained(tmp_path / "seed", settings | {"seed": 1}, {}) != weights["home"]
    lines = [json.loads(line) for line in (tmp_path / "back" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert all(r["img_per_s"] > 0 for r in lines if "loss" in r)
    files = [path.read_bytes() for path in (tmp_path / "far away").rglob("*") if path.is_file()]
    assert len(files) > 8 and not any(b"s3cret-canary" in data for data in files)
    for name in PLACES:
        events = (tmp_path / name / "events.jsonl").read_text("utf-8").splitlines()
        assert all(json.loads(line)["time"].endswith("+00:00") for line in events)


@pytest.mark.parametrize("place", ["bäre"])
def test_the_command_line_speaks_plain_ascii_terminals(place: str, tmp_path: Path) -> None:
    environment = os.environ | PLACES[place]
    command = [sys.executable, "-m", "nolabel", "check", str(tmp_path / "nowhere")]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode == 65 and b"Traceback" not in done.stderr
