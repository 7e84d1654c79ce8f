"""`nolabel --help`, `nolabel list` and wrong names answer at once, for none of them imports torch."""

import os
import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "timm", "safetensors", "numpy", "PIL"}
TORCH_FREE = (["--help"], ["list", "recipes"], ["list", "backbones"], ["list", "protocols"])


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=clean)


def imported(log: str) -> set[str]:
    """The packages named in what `-X importtime` wrote: lines of "import time: self | cumulative | name"."""
    lines = (line for line in log.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_the_log_of_imports_is_read() -> None:
    assert "numpy" in imported(python("-X", "importtime", "-c", "import numpy").stderr)


def test_importing_the_package_is_light() -> None:
    assert not HEAVY & imported(python("-X", "importtime", "-c", "import nolabel").stderr)


@pytest.mark.parametrize("arguments", TORCH_FREE, ids=" ".join)
def test_answers_without_torch(arguments: list[str]) -> None:
    done = python("-X", "importtime", "-m", "nolabel", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not HEAVY & imported(done.stderr)


@pytest.mark.parametrize(
    "arguments", [["trian"], ["train", "dinoo", "photos", "--out", "run"], ["list", "recipe"]], ids=" ".join
)
def test_refuses_a_wrong_name_without_torch(arguments: list[str]) -> None:
    done = python("-X", "importtime", "-m", "nolabel", *arguments)
    assert done.returncode == 2, done.stderr
    assert not HEAVY & imported(done.stderr)
