"""Fixtures of all tests. Nothing seeds a global generator: code that needs randomness takes a seed."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OFFLINE = str(Path(__file__).with_name("offline"))

# Small tensors gain nothing from many threads, and processes that tests start must not compete.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
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


@pytest.fixture(scope="session")
def data_packs() -> Path:
    """The folder of the real image packs: $NOLABEL_DATA, by default ../shared/data beside the checkout."""
    folder = Path(os.environ.get("NOLABEL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no image packs at {folder}: set NOLABEL_DATA to their folder")
    return folder
