"""Optimizers and schedules: every schedule is a function of the clock."""
