"""The frame of a protocol: order of the work, keys of the result, floor and files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nolabel.errors import DataError, UsageError
from nolabel.evals.protocol import EvalConfig, Folders, Measured, Protocol, refusal, run
from nolabel.weights.load import Loaded

KEYS = ["protocol", "version", "metrics", "floor", "settings", "data", "seed", "notes"]


class Toy:
    """A protocol that records the calls."""

    def __init__(self, **more: Any) -> None:
        self.calls, self.more = list[str](), more

    def measure(self, loaded: Loaded, _data: str | Path, _config: EvalConfig, folders: Folders) -> Measured:
        self.calls.append(f"measure {loaded.name}")
        self.folders = folders
        values = {"floor": self.floor, "settings": {"k": 3, "interpolation": "none"}, "data": {"num_images": 2}}
        return Measured({"score": 1.0}, **(values | self.more))

    def floor(self, random: Loaded) -> dict[str, Any]:
        self.calls.append(f"floor {random.name}")
        return {"random_weights": {"score": 0.5}}

    def write(self, folder: Path) -> None:
        self.calls.append(f"write {folder.name}, result {folder.with_suffix('.json').exists()}")

    @property
    def protocol(self) -> Protocol:
        return Protocol("toy", 4, "toy, %", EvalConfig, self.measure, dict)


def test_the_result(loaded: Loaded, tmp_path: Path) -> None:
    toy, out = Toy(notes=["few images"]), tmp_path / "deep" / "toy.json"
    result = run(toy.protocol, loaded, "some/pets.zip", EvalConfig(seed=5, workers=2), out)
    assert list(result) == KEYS
    assert (result["protocol"], result["version"], result["seed"]) == ("toy", 4, 5)
    assert result["metrics"] == {"score": 1.0} and result["floor"] == {"random_weights": {"score": 0.5}}
    assert result["settings"]["weights"] == "tiny" and result["settings"]["image_size"] == 16
    assert (result["settings"]["interpolation"], result["settings"]["k"]) == ("none", 3)
    assert result["data"] == {"name": "pets", "num_images": 2}
    assert result["notes"] == ["few images"]
    assert list(json.loads(out.read_text())) == KEYS
    times = json.loads(out.with_suffix(".time.json").read_text())
    assert times.keys() == {"seconds", "device", "workers"} and times["workers"] == 2
    assert times["seconds"].keys() == {"weights", "floor"} and min(times["seconds"].values()) >= 0


def test_the_floor_is_measured_after_the_network_unless_it_is_off(loaded: Loaded) -> None:
    toy = Toy()
    run(toy.protocol, loaded, "pets", EvalConfig())
    assert toy.calls == ["measure some/where/tiny", "floor random:resnet18"]
    toy = Toy()
    assert run(toy.protocol, loaded, "pets", EvalConfig(floor=False))["floor"] == {}
    assert toy.calls == ["measure some/where/tiny"]


def test_rows_and_notes_of_the_floor(loaded: Loaded) -> None:
    def notes(floor: Mapping[str, Any]) -> list[str]:
        return [f"{name} has {row['score']}" for name, row in floor.items()]

    assert run(Toy(floor={"pixels": {"score": 2.0}}).protocol, loaded, "pets", EvalConfig())["floor"] == {
        "pixels": {"score": 2.0}
    }
    result = run(Toy(notes=["few"], floor_notes=notes).protocol, loaded, "pets", EvalConfig())
    assert result["notes"] == ["few", "random_weights has 0.5"]


def test_files_and_times(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLABEL_CACHE", str(tmp_path / "kept"))
    toy = Toy(times={"seconds": {"all": 1.0}})
    toy.more["write_files"] = toy.write
    run(toy.protocol, loaded, "pets", EvalConfig(), tmp_path / "toy.json")
    assert toy.folders == Folders(tmp_path / "kept", tmp_path / "toy")
    assert toy.calls[-1] == "write toy, result True"
    assert json.loads((tmp_path / "toy.time.json").read_text()) == {"seconds": {"all": 1.0}}
    toy.calls.clear()
    run(toy.protocol, loaded, "pets", EvalConfig(cache=False))
    assert toy.folders == Folders(None, None)
    assert [call for call in toy.calls if call.startswith("write")] == []


@pytest.mark.parametrize("settings", [{"image_size": 0}, {"batch_size": 0}, {"workers": -1}])
def test_common_settings_are_refused_at_once(loaded: Loaded, settings: dict[str, Any]) -> None:
    toy = Toy()
    with pytest.raises(UsageError, match=f"{next(iter(settings))} must be at least"):
        run(toy.protocol, loaded, "pets", EvalConfig(**settings))
    assert toy.calls == []


def test_a_refusal_is_one_line() -> None:
    def check(data: str | Path) -> None:
        if data == "bad":
            raise DataError("no masks\nExpected masks/")

    toy = Toy().protocol._replace(check_data=check)
    assert refusal(toy, "bad") == "no masks"
    assert refusal(toy, "good") is None
