"""Runs that earlier versions of nolabel have left, killed after step 5 of 6, go on to their end.

A new format brings a new folder of `tests/legacy`, named by its day: train on `plant`'s images as the start event in
its events.jsonl says, then keep config.yaml, metrics, events, weights and the checkpoint of step 4 alone.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import nolabel
from nolabel.errors import DataError, UsageError
from nolabel.report import report
from nolabel.training import state as training_state

LEGACY = Path(__file__).parents[1] / "legacy"
TOLERANCE = {"2026-11-22": 0.1, "2026-11-24": 1e-3, "2026-11-25": 1e-3}
"""Relative tolerance of the loss of the steps that are left. The first run cut its views with Pillow: other pixels."""


def plant(folder: Path) -> None:
    """Twelve images of 24 x 24 pixels that have the same bytes whatever the libraries are."""
    folder.mkdir()
    choice = np.random.Generator(np.random.Philox(key=5))
    for number in range(12):
        pixels = choice.integers(0, 256, (6, 6, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        (folder / f"{number:02}.ppm").write_bytes(b"P6 24 24 255\n" + pixels.tobytes())


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(LEGACY / request.param, tmp_path / "run")
    plant(tmp_path / "imgs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def losses(run: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in nolabel.Run(run).metrics() if "loss" in r}


def test_every_format_has_a_tolerance() -> None:
    assert {p.name for p in LEGACY.iterdir()} == TOLERANCE.keys()
    assert all(sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) < 200_000 for p in LEGACY.iterdir())


@pytest.mark.parametrize("run", TOLERANCE, indirect=True, ids=str)
def test_an_old_run_goes_on(
    run: Path, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    day, before = request.node.callspec.params["run"], losses(run)
    now = training_state.versions()
    monkeypatch.setattr(training_state, "versions", lambda: now | {"timm": "99.0"})
    assert nolabel.resume(run).status()["state"] == "done"
    after = losses(run)
    assert before.keys() == after.keys() == set(range(1, 7))
    assert all(after[step] == before[step] for step in range(1, 5)), "the past stays what it was"
    assert all(after[step] == pytest.approx(before[step], rel=TOLERANCE[day]) for step in (5, 6))
    assert before[5] != pytest.approx(before[4], rel=1e-3), "else the tolerance says little"
    warned = capfd.readouterr().err
    assert "warning: the checkpoint was written with timm 1.0.31, this is 99.0" in warned
    assert "damaged" not in warned


@pytest.mark.parametrize("run", TOLERANCE, indirect=True, ids=str)
def test_an_old_run_is_read(run: Path) -> None:
    found: Any = nolabel.Run(run)
    assert found.config()["method_name"] in ("dino", "msn") and len(found.events()) > 2
    assert report(found).stat().st_size > 10_000
    net = found.backbone()
    same = timm.create_model(f"local-dir:{run}/weights", pretrained=True)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(x).pooled, same.eval()(x))


@pytest.mark.parametrize("run", ["2026-11-24"], indirect=True)
def test_settings_of_a_newer_version_are_reported(run: Path) -> None:
    with open(run / "config.yaml", "a", encoding="utf-8") as file:
        file.write("telepathy: true\n")
    with pytest.raises(UsageError, match="There is no setting telepathy"):
        nolabel.resume(run)


@pytest.mark.parametrize("run", ["2026-11-24"], indirect=True)
def test_old_runs_know_their_images(run: Path) -> None:
    (run.parent / "imgs" / "13.ppm").write_bytes((run.parent / "imgs" / "01.ppm").read_bytes())
    with pytest.raises(DataError, match="has changed since"):
        nolabel.resume(run)
