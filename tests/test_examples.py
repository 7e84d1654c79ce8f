"""The example scripts run from beginning to end, in short."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each example trains several networks

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_ablations(tmp_path: Path) -> None:
    arguments = [sys.executable, str(EXAMPLES / "ablations.py"), "--steps", "4", "--images", "160"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert [row[:20].strip() for row in rows[1:]] == [
        "DINO, 2 + 4 crops",
        "two crops",
        "no momentum teacher",
        "no centering",
        "no sharpening",
    ]
    for row in rows[1:]:
        loss, share, kl, *accuracies = (float(x) for x in row[22:].split())
        assert 0 <= share <= 1 and all(0 <= x <= 100 for x in accuracies)
        assert 0 < loss < 20 and kl > -1e-6


def test_msn_masking() -> None:
    sizes = {"backbone": "vit_tiny_patch16_224", "size": 64, "num-focal": 1, "batch-size": 2, "steps": 1}
    options = [f"--{name}={value}" for name, value in sizes.items()]
    arguments = [sys.executable, str(EXAMPLES / "msn_masking.py"), *options]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [row.split() for row in done.stdout.splitlines()[1:]]
    assert [(row[0], int(row[1])) for row in rows] == [
        (ratio, 1 + kept + 37) for ratio, kept in (("0.00", 16), ("0.15", 13), ("0.30", 11), ("0.50", 8), ("0.70", 4))
    ]
    activations = [float(row[3]) for row in rows]
    assert activations == sorted(activations, reverse=True) and activations[-1] > 0


def test_msn_ablations(tmp_path: Path) -> None:
    short = ["--steps", "2", "--images", "160", "--only", "MSN, 1 + 4 anchors", "neither"]
    arguments = [sys.executable, str(EXAMPLES / "msn_ablations.py"), *short]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()[1:]
    assert [row[:24].strip() for row in rows] == ["MSN, 1 + 4 anchors", "neither"]
    for row in rows:
        ce, gap, used, *accuracies, speed = (float(x) for x in row[24:].split())
        assert 0 < ce < 10 and -1e-3 < gap <= 1 and 1 <= used <= 128 and speed > 0
        assert all(0 <= x <= 100 for x in accuracies)


def test_densecl_ablations(tmp_path: Path) -> None:
    rows = ["share 0 (MoCo v2)", "share 1, warm-up"]
    short = ["--steps", "4", "--images", "160", "--keep", "runs"]
    arguments = [sys.executable, str(EXAMPLES / "densecl_ablations.py"), *short]
    done = subprocess.run([*arguments, "--only", *rows], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = done.stdout.splitlines()[1:]
    assert [row[:22].strip() for row in table] == rows
    for row in table:
        whole, dense, *percents = row[22:].split()
        assert 0 < float(whole) < 8 and (dense == "-") is ("MoCo" in row) is (percents[0] == "-")
        percents = [x for x in percents if x != "-"]
        assert len(percents) >= 4 and all(0 <= float(x) <= 100 for x in percents)
    assert len(list(tmp_path.glob("runs/*/weights"))) == 2
