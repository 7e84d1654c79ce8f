"""A new protocol and a new tracker, added by what CONTRIBUTING.md says and nothing else."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import nolabel
from nolabel import catalog
from nolabel.cli.main import main
from nolabel.data.images import scan
from nolabel.errors import UsageError
from nolabel.evals import all as evals_all
from nolabel.evals.protocol import EvalConfig, Folders, Measured, Protocol
from nolabel.training import trackers
from nolabel.weights.load import Loaded


@dataclass(frozen=True)
class ToyConfig(EvalConfig):
    """Settings of the toy."""

    factor: float = 2.0
    """Factor of the number."""


def measure(loaded: Loaded, data: str | Path, config: ToyConfig, folders: Folders) -> Measured:
    """The width of the network times the factor."""
    number = {"width": config.factor * loaded.backbone.num_features}
    num_images = len(scan(data).names)
    return Measured(
        number, {"num_images": num_images}, {"factor": config.factor}, lambda net: {"random_weights": number}
    )


def columns(metrics: Mapping[str, Any]) -> dict[str, float | str]:
    return {"width": metrics["width"]}


PROTOCOL = Protocol("toy", 1, "toy, px", ToyConfig, measure, columns)  # evals/FAMILY/NAME.py


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(evals_all.EVERY, "toy", PROTOCOL)  # evals/protocols.py: one line, of which EVERY is made
    monkeypatch.setitem(catalog.PROTOCOLS, "toy", "a toy")  # catalog.py: one line


def test_the_toy_runs_from_the_command_line(
    toy: None, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "toy.json"
    main(["eval", "toy", "random:test_vit", str(pictures), "--factor", "3", "--out", str(out), "--json"])
    result = json.loads(out.read_text())
    assert result == json.loads(capsys.readouterr().out)
    assert result["metrics"] == {"width": 192.0} == result["floor"]["random_weights"]
    assert (result["protocol"], result["settings"]["factor"], result["data"]["num_images"]) == ("toy", 3.0, 36)
    assert {"seconds", "device", "workers"} <= json.loads(out.with_suffix(".time.json").read_text()).keys()
    main(["list", "protocols"])
    assert "a toy" in capsys.readouterr().out


def test_the_toy_has_help_and_refuses_wrong_settings(
    toy: None, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "toy", "--help"])
    assert "Factor of the number." in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"There is no setting faktor\. Did you mean: factor"):
        nolabel.evaluate("toy", "random:test_vit", pictures, faktor=1.0)


def test_a_tracker_is_one_line(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    @contextlib.contextmanager
    def begin(out: Path) -> Iterator[trackers.Write]:
        yield lambda values, step: written.append(step)

    monkeypatch.setitem(trackers.START, "json", begin)  # named after a package that is there
    settings = tiny | {"steps": 2, "log_every": 1, "tracker": "json"}
    nolabel.train("dino-small", pictures / "train", tmp_path / "run", **settings)
    assert set(written) == {0, 1, 2}, "step 0 is the first evaluation"
    with pytest.raises(UsageError, match=r"There is no tracker 'jso'\. Did you mean: json"):
        nolabel.train("dino-small", pictures / "train", tmp_path / "other", **settings | {"tracker": "jso"})
