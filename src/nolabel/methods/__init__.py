"""The methods. Adding one: its file, and a line here."""

from nolabel.methods.base import Method, MethodConfig
from nolabel.methods.densecl import DenseCL
from nolabel.methods.dino import DINO
from nolabel.methods.msn import MSN
from nolabel.methods.simclr import SimCLR

METHODS: dict[str, type[Method]] = {
    "densecl": DenseCL,
    "dino": DINO,
    "msn": MSN,
    "simclr": SimCLR,
}

__all__ = ["METHODS", "Method", "MethodConfig"]
