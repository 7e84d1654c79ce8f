"""Weights: loaded from every WEIGHTS argument, saved in formats that other tools open.

A new format: its file beside this one, and a line in FORMATS.
"""

from nolabel.weights import timm
from nolabel.weights.format import Format

FORMATS: dict[str, Format] = {
    "timm": timm.FORMAT,
}
"""Formats of `nolabel export --to`, by name."""
