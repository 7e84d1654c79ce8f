"""Health: a row per number that a run logs, and rules that read collapse and stagnation from them."""
