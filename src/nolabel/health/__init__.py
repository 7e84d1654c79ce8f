"""Health: what a run's signals say about collapse, stagnation and learning."""
