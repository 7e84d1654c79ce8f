"""Bytes of strangers, changed at random: whatever is read is refused in words or taken, nothing else happens."""

import os
import random
from pathlib import Path

import pytest
from fuzz import TARGETS, fuzz, mutated
from safetensors import SafetensorError

from nolabel import files
from nolabel.runs import checkpoint

CASES = {"run folders": 60, "settings": 60, "weights": 30}
"""Where a case takes more than a few milliseconds; 80 of the others, 550 in all."""
LONG = 2_000


@pytest.mark.parametrize("name", TARGETS)
def test_noise_is_refused_in_words(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    assert fuzz(TARGETS[name], tmp_path, CASES.get(name, 80)) > 25
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole"], "something was written elsewhere"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", TARGETS)
def test_much_noise_is_refused_in_words(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    tried = fuzz(TARGETS[name], tmp_path, LONG, seed=1)
    print(f"bad inputs tried: {tried} {name}")
    assert tried > 0.9 * LONG


def blind(path: Path) -> None:
    """A check that finds everything good."""


BUGS = {
    "checkpoints": (checkpoint, "verify", blind),
    "forged checkpoints": (checkpoint, "SafetensorError", ZeroDivisionError),
    "run folders": (files, "is_step", lambda _: True),
}


@pytest.mark.parametrize("name", BUGS)
def test_the_noise_finds_bugs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, attribute, bug = BUGS[name]
    monkeypatch.setattr(module, attribute, bug)
    with pytest.raises((AssertionError, KeyError, SafetensorError)) as caught:
        fuzz(TARGETS[name], tmp_path, 400)
    assert "of seed 0" in caught.value.__notes__[0], "the case can be repeated"


def test_noise_is_the_same_every_time() -> None:
    found = {mutated(b"some bytes: 12", random.Random(3)) for _ in range(3)}
    assert len(found) == 1 and found != {mutated(b"some bytes: 12", random.Random(4))}
