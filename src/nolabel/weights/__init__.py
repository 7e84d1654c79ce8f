"""Weights: loaded from every WEIGHTS argument, saved in layouts that other tools open."""
