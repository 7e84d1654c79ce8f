"""Run folders: their files, lock and checkpoints."""
