"""The methods. Adding one: its file, and a line here."""

from nolabel.methods.base import Method, MethodConfig
from nolabel.methods.dino import DINO
from nolabel.methods.simclr import SimCLR

METHODS: dict[str, type[Method]] = {
    "dino": DINO,
    "simclr": SimCLR,
}

__all__ = ["METHODS", "Method", "MethodConfig"]
