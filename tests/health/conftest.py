"""Lets the tests of this folder import `metrics_page`, and the tiny jobs of the methods' tests."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "methods")]
