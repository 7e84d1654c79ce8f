"""`--augment auto`: what is decided from which times, and that a run keeps it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import nolabel
from nolabel.config import resolve
from nolabel.config.load import load_recipe
from nolabel.data.images import scan
from nolabel.data.loader import Batch, Stream
from nolabel.training import view_placement
from nolabel.training.view_placement import Times, choose, measure, place
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


CPU = torch.device("cpu")


def test_real_views_take_time(pictures: Path) -> None:
    views = (View(32, (0.4, 1)), View(16, (0.1, 0.4)))
    stream = Stream(scan(pictures, "train"), views, seed=0, batch_size=20)
    one = measure(stream, CPU, (0, 0, 0), (1, 1, 1))
    many = measure(stream._replace(views=views * 30), CPU, (0, 0, 0), (1, 1, 1))
    assert 0 < 3 * one.cut < many.cut and 0 < 3 * one.render < many.render


@pytest.mark.parametrize(("batch_size", "processes", "asked"), [(100, 1, 32), (20, 1, 20), (100, 2, 64)])
def test_the_second_batch_is_measured(
    batch_size: int, processes: int, asked: int, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of its own: 3 ms to draw and cut an image, 0.5 of it to draw; 0.2 s and the wait for the device."""
    now, sizes, rendering = [0.0], [], [9.0, 0.2]

    def batches(stream: Stream, steps: range, _: int) -> Iterator[Batch]:
        sizes.append(stream.batch_size)
        for step in steps:
            yield Batch([], [], (), object(), 0.0, ((70.0, 0.5) if stream.whole else (90.0, 3.0))[step])  # type: ignore[arg-type]

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(view_placement, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(view_placement, "batches", batches)
    monkeypatch.setattr(view_placement, "render", lambda *_: pass_by(rendering.pop(0)))
    monkeypatch.setattr(view_placement, "_wait", lambda _: pass_by(0.12))
    monkeypatch.setattr(view_placement.distributed, "world_size", lambda: processes)
    stream = Stream(scan(pictures, "train"), (View(8, (0.4, 1)),), seed=0, batch_size=batch_size)
    found = measure(stream, CPU, (0, 0, 0), (1, 1, 1))
    assert found == pytest.approx((2.5, 320 / (asked / processes))) and sizes == [asked, asked]


@pytest.mark.parametrize("main", [True, False])
def test_the_first_process_decides_for_all(main: bool, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`any_process`, without others, gives what this process says: another than the first says nothing."""
    stream = Stream(scan(pictures, "train"), (View(8, (0.4, 1)),), seed=0, batch_size=20)
    monkeypatch.setattr(view_placement, "measure", lambda *_: Times(2, 1))
    monkeypatch.setattr(view_placement.distributed, "is_main", lambda: main)
    assert place(stream, CPU, 1, (0, 0, 0), (1, 1, 1)) == ("device" if main else "cpu")


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
    from nolabel.training import start

    monkeypatch.setattr(start, "resolve", lambda *given: replace(resolve(*given), augment="auto"))  # as on CUDA
    monkeypatch.setattr(view_placement, "measure", lambda *_: asked.append(1) or times)
    settings = tiny | {"data": pictures / "train", "steps": 2}
    nolabel.train("dino-small", **settings, out=tmp_path / "run")
    assert nolabel.Run(tmp_path / "run").config()["augment"] == expected
    nolabel.resume(tmp_path / "run", {"steps": 3})
    assert len(asked) == 1 and nolabel.Run(tmp_path / "run").config()["augment"] == expected


def test_only_cuda_is_measured() -> None:
    config = load_recipe("dino-small")
    found = [resolve(config, 100_000, 1, torch.device(name)).augment for name in ("cpu", "mps", "cuda")]
    assert found == ["cpu", "cpu", "auto"]
