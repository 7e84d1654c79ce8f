"""A module imports from lower layers and, within its layer, from its own folder; methods import no method."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "nolabel"
LAYERS = (
    ("errors", "version", "console", "randomness", "catalog", "settings", "health"),
    ("files", "recipes", "distributed", "views"),
    ("marks",),
    ("progress", "data", "losses", "networks", "optim"),
    ("methods", "weights", "plots"),
    ("config", "runs", "evals"),
    ("report",),
    ("training",),
    ("api",),
    ("cli",),
    ("__init__", "__main__"),
)
"""Folders and the few modules beside them, from the ground up. This is the only list of them."""
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}

Module = tuple[str, ...]  # ("methods", "dino") is nolabel.methods.dino; the package itself is ("__init__",)


def module(file: str) -> Module:
    """`methods/dino.py` -> ("methods", "dino"), `views/__init__.py` -> ("views",)."""
    names = tuple(file.removesuffix(".py").split("/"))
    return names[:-1] if names[-1] == "__init__" and len(names) > 1 else names


FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))


def imports(source: str, file: str) -> Iterator[Module]:
    """Imports of nolabel in `file`, names included: at its top, inside functions, for types only."""
    package = ("nolabel", *file.split("/")[:-1])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            targets = [(*base, alias.name) for alias in node.names]
        else:
            continue
        for target in targets:
            if target[0] == "nolabel":
                yield target[1:] if set(target[1:2]) & LAYER.keys() else ("__init__",)


def folder(module: Module) -> str:
    return module[0] if (SOURCE / module[0]).is_dir() else ""


def allowed(here: Module, there: Module) -> bool:
    if here[0] == there[0] == "methods" and len(here) > 1:
        return there[:2] == ("methods", "base")
    here_layer, there_layer = LAYER[here[0]], LAYER[there[0]]
    return there_layer < here_layer or (there_layer == here_layer and folder(here) == folder(there))


def forbidden(source: str, file: str) -> list[str]:
    here = module(file)
    return [
        f"{'.'.join(here)} imports {'.'.join(there)}" for there in imports(source, file) if not allowed(here, there)
    ]


def test_every_module_has_a_layer() -> None:
    assert FILES
    assert {module(file)[0] for file in FILES} <= LAYER.keys(), "say in LAYERS where the new module belongs"


@pytest.mark.parametrize("file", FILES)
def test_layers(file: str) -> None:
    assert forbidden((SOURCE / file).read_text(encoding="utf-8"), file) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("errors.py", "from nolabel.optim import schedules"),
        ("optim/schedules.py", "import nolabel.errors as e, nolabel.data"),
        ("optim/schedules.py", "def f():\n    from nolabel.methods import dino"),
        ("views/spec.py", "from ..networks.teacher import move_teacher"),
        ("data/loader.py", "from nolabel.training.start import train"),
        ("networks/heads.py", "from nolabel.losses.products import product_dtype"),
        ("methods/dino.py", "from . import simclr"),
        ("methods/dino.py", "from nolabel.methods.simclr import SimCLR"),
        ("methods/dino.py", "from nolabel.methods import METHODS"),
        ("evals/classification/knn.py", "from nolabel.runs import folder"),
        ("training/loop.py", "import nolabel"),
        ("data/loader.py", "from nolabel import __version__"),
    ],
)
def test_a_forbidden_import_is_found(file: str, source: str) -> None:
    assert len(forbidden(source, file)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("optim/schedules.py", "import math, torch\nfrom nolabel.errors import UsageError"),
        ("optim/schedules.py", "from nolabel.version import __version__\nfrom nolabel import distributed"),
        ("views/draw.py", "from .spec import View"),
        ("methods/dino.py", "from nolabel.methods.base import Method\nfrom nolabel.networks import heads"),
        ("methods/__init__.py", "from . import base, simclr"),
        ("__init__.py", "from nolabel.training.start import train"),
    ],
)
def test_a_downward_import_is_allowed(file: str, source: str) -> None:
    assert forbidden(source, file) == []
