"""`--augment auto`: what is decided from which times, and that a run keeps it."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nolabel
from nolabel import placement
from nolabel.config import resolve
from nolabel.data.images import scan
from nolabel.data.loader import Stream
from nolabel.job import recipe_config
from nolabel.placement import Times, choose, measure
from nolabel.views import View


@pytest.mark.parametrize(
    ("times", "workers", "expected"),
    [
        (Times(cut=3.0, render=0.3), 1, "device"),
        (Times(cut=3.0, render=0.3), 9, "device"),  # 0.33 saved
        (Times(cut=3.0, render=0.3), 10, "cpu"),
        (Times(cut=3.0, render=0.3), 0, "device"),  # the training process itself cuts
        (Times(cut=3.0, render=4.0), 1, "cpu"),
    ],
)
def test_the_device_has_to_be_faster_than_all_workers(times: Times, workers: int, expected: str) -> None:
    assert choose(times, workers) == expected


def test_what_is_measured(pictures: Path) -> None:
    views = (View(32, (0.4, 1)), View(16, (0.1, 0.4)))
    stream = Stream(scan(pictures, "train"), views, seed=0, batch_size=20)
    one = measure(stream, torch.device("cpu"), (0, 0, 0), (1, 1, 1))
    many = measure(stream._replace(views=views * 30), torch.device("cpu"), (0, 0, 0), (1, 1, 1))
    assert 0 < 3 * one.cut < many.cut and 0 < 3 * one.render < many.render


@pytest.mark.parametrize(("times", "expected"), [(Times(2, 1), "device"), (Times(1, 2), "cpu")])
def test_a_run_decides_once(
    times: Times,
    expected: str,
    tiny: dict[str, Any],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    loop = importlib.import_module("nolabel.train")
    monkeypatch.setattr(loop, "resolve", lambda *given: replace(resolve(*given), augment="auto"))  # as on CUDA
    monkeypatch.setattr(placement, "measure", lambda *_: asked.append(1) or times)
    settings = tiny | {"data": pictures / "train", "steps": 2}
    nolabel.train("dino-small", **settings, out=tmp_path / "run")
    assert nolabel.Run(tmp_path / "run").config()["augment"] == expected
    nolabel.resume(tmp_path / "run", {"steps": 3})
    assert len(asked) == 1 and nolabel.Run(tmp_path / "run").config()["augment"] == expected


def test_only_cuda_is_measured() -> None:
    config = recipe_config("dino-small")
    found = [resolve(config, 100_000, 1, torch.device(name)).augment for name in ("cpu", "mps", "cuda")]
    assert found == ["cpu", "cpu", "auto"]
