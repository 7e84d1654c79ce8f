"""Training: the loop and everything that happens between its steps. Read `loop.py` first."""
