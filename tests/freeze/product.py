"""Every import that the freeze makes from nolabel. A refactoring that moves one of these names edits this file alone.

Everything else goes through what stays: the command line, `nolabel.train`, `nolabel.resume`, `nolabel.evaluate`, and
the files of a run folder.
"""

import contextlib
import io
import runpy
import sys
from collections.abc import Iterator
from unittest import mock

import torch

from nolabel import evaluate, resume, train
from nolabel.config import resolve
from nolabel.config.load import config_yaml, load_recipe
from nolabel.data.demo.world import clip, render, write
from nolabel.errors import NolabelError
from nolabel.evals.detection import networks
from nolabel.methods import METHODS

__all__ = [
    "METHODS",
    "NolabelError",
    "clip",
    "command",
    "evaluate",
    "narrow_detectors",
    "render",
    "resolved",
    "resume",
    "train",
    "write",
]

NUM_IMAGES = 100_000


def resolved(recipe: str) -> str:
    """The config.yaml of a recipe for 100,000 images and one process on the CPU; `auto` is that of this machine."""
    return config_yaml(resolve(load_recipe(recipe), NUM_IMAGES, 1, torch.device("cpu")))


@contextlib.contextmanager
def narrow_detectors() -> Iterator[None]:
    """Detectors of few channels and regions: two steps of the real ones take a minute on a CPU."""
    with mock.patch.multiple(networks, FPN_DIM=8, HIDDEN=16, REGIONS=16):
        yield


def command(*arguments: str) -> str:
    """Output of `nolabel ARGUMENTS` on stdout, run in this process. RuntimeError where it fails."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), mock.patch.object(sys, "argv", ["nolabel", *arguments]):
        try:
            runpy.run_module("nolabel", run_name="__main__")
        except SystemExit as left:
            if left.code:
                raise RuntimeError(f"nolabel {' '.join(arguments)} exits with {left.code}") from left
    return out.getvalue()
