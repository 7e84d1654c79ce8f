"""A new method, added by what CONTRIBUTING.md says and nothing else: it keeps the contract, trains, and is reported."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import sizes
import torch
from sizes import SIZES, SMALL, Small
from test_contract import (
    CONTRACT,
    Make,
    keeps_its_state_in_the_checkpoint,
    maker,
    sums_micro_batches_to_the_whole_batch,
)
from torch import Tensor

import nolabel
from nolabel import recipes
from nolabel.cli.help import format_help
from nolabel.config.load import load_recipe
from nolabel.health import signals
from nolabel.methods import METHODS
from nolabel.methods.base import MakeBackbone, Method, MethodConfig
from nolabel.networks.backbones import Backbone
from nolabel.networks.heads import mlp
from nolabel.networks.network import Network
from nolabel.networks.teacher import move_teacher
from nolabel.optim.schedules import Clock
from nolabel.recipes import Recipe
from nolabel.settings import CHANGEABLE
from nolabel.views import View

# 1. methods/NAME.py


@dataclass(frozen=True)
class ToyConfig(MethodConfig):
    """Settings of the toy: a student predicts the teacher's output of the other view."""

    size: int = 32
    """Side of both views in pixels."""
    output_dim: int = 16
    """Width of the outputs that are compared."""
    momentum: Annotated[float, CHANGEABLE] = 0.9
    """Momentum of the teacher."""

    @property
    def image_size(self) -> int:
        return self.size


class Toy(Method):
    """Student and teacher are each a backbone and a head."""

    Config: ClassVar[type[MethodConfig]] = ToyConfig

    def __init__(self, config: ToyConfig, make_backbone: MakeBackbone) -> None:
        super().__init__()
        self.config = config
        self.student = self._network(make_backbone(0.0))
        self.teacher = self._network(make_backbone(0.0)).requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())

    def _network(self, backbone: Backbone) -> Network[torch.nn.Sequential]:
        return Network(backbone, mlp([backbone.num_features, self.config.output_dim], batchnorm=False))

    @property
    def backbone(self) -> Backbone:
        return self.teacher.backbone

    def views(self) -> tuple[View, ...]:
        return (View(self.config.size, (0.2, 1.0)), View(self.config.size, (0.2, 1.0)))

    def forward(self, views: Sequence[Tensor], clock: Clock) -> Mapping[str, Tensor]:
        student = self.student.head(self.student.backbone(views[0]).pooled).float()
        with torch.no_grad():
            teacher = self.teacher.head(self.teacher.backbone(views[1]).pooled).float()
        return {"loss": (student - teacher - 1).square().mean(), "toy_spread": teacher.std(0).mean()}

    @torch.no_grad()
    def after_step(self, clock: Clock, ok: Tensor) -> None:
        move_teacher(self.teacher.parameters(), self.student.parameters(), self.config.momentum, ok)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """The toy in its five places: four files and a record for the tests."""
    monkeypatch.setitem(METHODS, "toy", Toy)  # 2. methods/__init__.py: one line
    recipe = Recipe("toy", "a toy", {"backbone": "resnet18"})
    monkeypatch.setitem(recipes.RECIPES, "toy", recipe)  # 3. recipes/NAME.py: its table RECIPES
    row = signals.Signal({"toy_spread": "spread"}, "Spread of the toy", "It is a toy's.")
    monkeypatch.setattr(signals, "SIGNALS", (*signals.SIGNALS, row))  # 4. health/signals.py: one row
    small = Small(ToyConfig(), "vit", "momentum", "size output_dim", ("teacher", "student"))
    monkeypatch.setitem(SIZES, "toy", small)  # 5. tests/methods/sizes.py: one record
    monkeypatch.setitem(SMALL, "toy", small.config)  # which follows from it
    monkeypatch.setitem(sizes.PAIRS, "teacher", "student")
    return "toy"


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda f: f.__name__)
def test_the_toy_keeps_the_contract(toy: str, promise: Callable[[Make], None]) -> None:
    promise(maker(toy))


def test_the_toy_keeps_its_state_and_sums_micro_batches(toy: str, tmp_path: Path) -> None:
    keeps_its_state_in_the_checkpoint(maker(toy), tmp_path)
    sums_micro_batches_to_the_whole_batch(maker(toy))


def test_a_broken_toy_is_noticed(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "after_step", lambda self, clock, ok: None)
    with pytest.raises(AssertionError):
        for promise in CONTRACT:
            promise(maker(toy))


def test_the_toy_trains_resumes_and_is_in_the_help(
    toy: str, tiny: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    settings = tiny | {"method": {"size": 32}, "steps": 4, "checkpoint_every": 2}
    run = nolabel.train(toy, pictures / "train", tmp_path / "run", **settings)
    assert run.status()["state"] == "done"
    assert all(r["toy_spread"] > 0 for r in run.metrics() if "loss" in r)
    assert nolabel.resume(run.path, {"steps": 6}).status()["step"] == 6
    page = format_help(load_recipe(toy), "nolabel train toy", "A toy.")
    assert "--method.output-dim" in page and "Momentum of the teacher." in page
