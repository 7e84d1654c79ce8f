"""The example scripts run from beginning to end, in short."""

import subprocess
import sys
from pathlib import Path

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
