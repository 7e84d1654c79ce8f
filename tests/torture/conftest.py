"""Lets the tests of this folder import its programs, which also run by themselves, and the corpus of bad files."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
