"""Fixtures of all tests. Nothing seeds a global generator: code that needs randomness takes a seed."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
OFFLINE = str(Path(__file__).with_name("offline"))

# Small tensors gain nothing from many threads, and processes that tests start must not compete.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # on a busy machine, waiting threads would spin in place of others
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (OFFLINE, os.environ.get("PYTHONPATH"))))
sys.path.insert(0, OFFLINE)

import loopback_only  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
loopback_only.install()


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    """Fail the test that asks for another machine, even where a library swallows the refusal."""
    loopback_only.attempts.clear()
    yield
    assert not loopback_only.attempts, f"network asked for: {loopback_only.attempts}"


@pytest.fixture(autouse=True)
def no_kept_features(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test finds the features of another, and none writes to the user's cache folder."""
    monkeypatch.setenv("NOLABEL_CACHE", str(tmp_path_factory.getbasetemp() / "features" / f"{id(request.node):x}"))


@pytest.fixture(scope="session")
def data_packs() -> Path:
    """The folder of the real image packs: $NOLABEL_DATA, by default ../shared/data beside the checkout."""
    folder = Path(os.environ.get("NOLABEL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no image packs at {folder}: set NOLABEL_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled pictures of 40 x 40 pixels: train (24) and val (12) of two classes, stripes and checks."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :40] // 5
    patterns = {"stripes": rows % 2, "checks": (rows + columns) % 2}
    for split, number in (("train", 12), ("val", 6)):
        for name, pattern in patterns.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                colors = rng.integers(0, 256, (2, 3))
                noise = rng.integers(-20, 21, (40, 40, 3))
                pixels = np.clip(colors[pattern] + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return root


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Settings that make a DINO run of a second: a ViT of width 32 on 32 and 16 px."""
    return {
        "backbone": "vit_tiny_patch16_224",
        "backbone_args": ["patch_size=8", "embed_dim=32", "depth=2", "num_heads=2"],
        "method": {"global_size": 32, "local_size": 16, "num_local": 2, "num_prototypes": 64, "hidden_dim": 32},
        "batch_size": 8,
        "workers": 0,
        "threads": 1,
        "precision": "fp32",
        "device": "cpu",
        "log_every": 2,
    }
