"""Losses: pure functions of outputs and targets."""
