"""Masks beside photos are left out of a new run, named once, and stay in a run that began with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import nolabel
from nolabel.errors import DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight photos and a mask of each, in VOC's folders."""
    for i in range(8):
        noise = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        for name, pixels in ((f"JPEGImages/{i}.jpg", noise), (f"SegmentationClass/{i}.png", noise[..., 0] // 128)):
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "data" / name)
    return tmp_path / "data"


def test_masks_are_left_out_and_named(
    tiny: dict[str, Any], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nolabel.train("dino-small", photos, tmp_path / "run", **tiny | {"steps": 1, "view_engine": "torch"})
    line = "taken for masks and left out: SegmentationClass/ (8 files, the first is SegmentationClass/0.png)"
    assert capsys.readouterr().err.count(line) == 1
    (photos / "SegmentationClass" / "8.png").write_bytes((photos / "SegmentationClass" / "7.png").read_bytes())
    nolabel.resume(tmp_path / "run", {"steps": 2})  # one more mask is no other data
    assert line not in capsys.readouterr().err


def test_a_run_from_before_the_rule_keeps_its_images(
    tiny: dict[str, Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nolabel.training.state.settings", lambda config: None)  # checkpoints of before hold none
    out = tmp_path / "run"
    nolabel.train("dino-small", photos, out, **tiny | {"steps": 1, "view_engine": "torch", "keep_masks": True})
    text = (out / "config.yaml").read_text(encoding="utf-8")
    assert text.count("keep_masks: true\n") == 1
    (out / "config.yaml").write_text(text.replace("keep_masks: true\n", ""), encoding="utf-8")
    nolabel.resume(out, {"steps": 2})
    assert nolabel.Run(out).status()["step"] == 2
    with pytest.raises(DataError, match="files were added, removed or renamed"):
        nolabel.resume(out, {"steps": 3, "keep_masks": False})
