"""Runs whose views are made on the device: the same run as on the CPU within rounding, and exact to resume."""

from pathlib import Path
from typing import Any

import pytest

import nolabel
from nolabel.training import loop, start
from nolabel.views import fastest

STEPS = 4


class Crash(BaseException):
    """Stands for a killed process."""


def losses(out: Path) -> list[float]:
    return [r["loss"] for r in nolabel.Run(out).metrics() if "loss" in r]


def test_a_run_on_the_device_is_the_run_on_the_cpu_and_resumes_exactly(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = tiny | {"data": pictures / "train", "steps": STEPS, "checkpoint_every": 2, "log_every": 1}
    nolabel.train("dino-small", **more, out=tmp_path / "cpu")
    nolabel.train("dino-small", **more | {"out": tmp_path / "device", "augment": "device"})
    cpu, device = losses(tmp_path / "cpu"), losses(tmp_path / "device")
    assert len(cpu) == STEPS and cpu != device  # other pixels, so it was not cut on the CPU again
    assert device == pytest.approx(cpu, rel=1e-3)
    assert nolabel.Run(tmp_path / "cpu").config()["augment"] == "cpu"  # auto, resolved

    step = loop.training_step

    def dying(job: Any, views: Any, clock: Any) -> Any:
        if clock.step == 3:
            raise Crash
        return step(job, views, clock)

    monkeypatch.setattr(loop, "training_step", dying)
    with pytest.raises(Crash):
        nolabel.train("dino-small", **more | {"out": tmp_path / "again", "augment": "device", "workers": 1})
    monkeypatch.setattr(loop, "training_step", step)
    nolabel.resume(tmp_path / "again")
    assert losses(tmp_path / "again") == device
    weights = [tmp_path / name / "weights" / "model.safetensors" for name in ("again", "device", "cpu")]
    again, straight, other = (path.read_bytes() for path in weights)
    assert again == straight != other


def test_a_run_from_before_the_setting_goes_on_with_torch(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, build, engines = tmp_path / "run", start.build, []

    def seen(*arguments: Any) -> Any:
        job = build(*arguments)
        engines.append(job.stream.engine)
        return job

    monkeypatch.setattr(start, "build", seen)
    monkeypatch.setattr("nolabel.training.state.settings", lambda config: None)  # checkpoints of before hold none
    nolabel.train("dino-small", **tiny | {"data": pictures / "train", "out": out, "steps": 1})
    config = out / "config.yaml"
    kept = [line for line in config.read_text(encoding="utf-8").splitlines(True) if "view_engine" not in line]
    config.write_text("".join(kept), encoding="utf-8")
    nolabel.resume(out, {"steps": 2})
    assert engines == [fastest(), "torch"]
