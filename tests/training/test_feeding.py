"""The times of a run in metrics.jsonl, and what is said where the loader is the limit."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

import nolabel
from nolabel.config import TrainConfig
from nolabel.data import loader
from nolabel.data.images import scan
from nolabel.data.loader import Stream, batches
from nolabel.methods.dino import DINO
from nolabel.training.feeding import advice
from nolabel.views import View

SLEEP = 0.02


def slow(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = getattr(loader, name)

    def sleeping(*args: Any, **named: Any) -> Any:
        time.sleep(SLEEP)
        return real(*args, **named)

    if name == "apply":
        monkeypatch.setattr(loader, "view_function", lambda _: sleeping)
    else:
        monkeypatch.setattr(loader, name, sleeping)


@pytest.mark.parametrize("name", ["read", "open_image", "load", "draw", "apply"])
def test_each_part_of_the_loader_counts_as_what_it_is(
    name: str, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(scan(pictures, "train"), (View(16, (0.3, 1.0)),), 0, 4)
    torch.manual_seed(0)
    (quick,) = batches(stream, range(1), 0)
    slow(monkeypatch, name)
    (batch,) = batches(stream, range(1), 0)
    slept, other = batch.decode_ms, batch.crop_ms
    if name in ("draw", "apply"):
        slept, other = other, slept
    assert slept >= 1000 * SLEEP > other
    assert all(map(torch.equal, batch.views, quick.views))


def test_a_slow_loader_is_reported_once(
    tiny: dict[str, Any],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slow(monkeypatch, "load")
    settings = tiny | {"data": pictures / "train", "steps": 5, "eval_every": 100, "log_every": 1}
    run = nolabel.train("dino-small", **settings, out=tmp_path / "run")
    last = [line for line in run.metrics() if "loss" in line][-1]
    assert last["decode_ms"] >= 1000 * SLEEP and last["crop_ms"] > 0
    total = 1000 * tiny["batch_size"] / last["img_per_s"]
    assert last["step_ms"] == pytest.approx(total * (1 - last["data_wait"]))
    (event,) = [e for e in run.events() if e["event"] == "slow loader"]
    assert event["step"] == 3 and "--workers" in event["reason"] and " instead of 0" in event["reason"]
    assert capsys.readouterr().err.count(event["reason"]) == 1


@pytest.mark.parametrize(
    ("workers", "decode", "crop", "expected"),
    [
        (2, 12.0, 4.0, "use --workers 6 instead of 2"),  # 32 images of 16 ms are 5.1 steps of 100 ms
        (2, 50.0, 4.0, "use --workers 8 instead of 2"),  # no more than the processors
        (2, 2.0, 1.0, "use --workers 3 instead of 2"),
        (8, 12.0, 4.0, "store smaller photos"),
        (8, 4.0, 12.0, "cut fewer or smaller views"),
    ],
)
def test_the_advice(workers: int, decode: float, crop: float, expected: str) -> None:
    config = TrainConfig(method=DINO.Config(), batch_size=64, workers=workers)
    record = {"data_wait": 0.62, "step_ms": 100.0, "decode_ms": decode, "crop_ms": crop}
    line = advice(config, record, world_size=2, cpus=8)
    assert "62%" in line and line.endswith(expected)
