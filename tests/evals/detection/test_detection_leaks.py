"""Pictures of train among those that a detector is tested on are noted."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from nolabel.evals.detection.box_layouts import scan_boxed
from nolabel.evals.detection.detection import _leaks


def test_pictures_of_train_in_val(tmp_path: Path) -> None:
    for split, seeds in (("train", (0, 1, 2)), ("val", (2, 3))):
        for i, seed in enumerate(seeds):
            pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            for folder in ("images", "labels"):
                (tmp_path / folder / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "images" / split / f"{split}{i}.png")
            (tmp_path / "labels" / split / f"{split}{i}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("names: [ring]\n")
    boxed = scan_boxed(tmp_path)
    task: Any = SimpleNamespace(boxed=boxed, train=boxed.splits["train"], test=boxed.splits["val"])
    assert _leaks(task, "val") == ["1 of 2 images of val are in train, too, byte for byte"]
