"""All protocols that the data allows, in one table."""

import json
from pathlib import Path
from typing import Any

import pytest

from nolabel import catalog
from nolabel.cli import main
from nolabel.errors import DataError, UsageError
from nolabel.evals import all as every
from nolabel.evals.all import EVERY, AllConfig, format_all
from nolabel.evals.classification import knn
from nolabel.evals.protocol import EvalConfig, Folders, Measured, Protocol, anything, refusal, run
from nolabel.weights.load import Loaded
from nolabel.weights.timm import save_weights

KEYS = {"protocol", "version", "metrics", "floor", "settings", "data", "seed", "notes"}


def protocol(values: dict[str, float], **more: Any) -> Protocol:
    """A protocol that gives `values` for the network, and one less for its floor."""

    def measure(loaded: Loaded, data: str | Path, config: EvalConfig, _folders: Folders) -> Measured:
        if data == "bad":
            raise DataError("not with this data\nlook elsewhere")
        if loaded.name == "other" and "acc" not in values:
            raise UsageError("the baseline has no attention")
        own = {key: value + 10 * (loaded.name == "other") for key, value in values.items()}
        floor = {"random_weights": {key: value - 1 for key, value in own.items()}}
        notes = ["k is too large"] if own.get("acc") == 70 else []
        return Measured(own, {}, {}, lambda _random: floor, notes)

    return Protocol("fake", 1, "%", EvalConfig, measure, lambda metrics: dict(metrics), **more)


def refuse(_data: str | Path) -> None:
    raise DataError("no gnd.json")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {
        "knn": protocol({"acc": 70.0}),
        "video": protocol({"J": 50.0, "F": 40.0}),
        "retrieval": protocol({"acc": 1.0}, check_data=refuse),
        "finetune": protocol({"acc": 90.0}, unasked=False),
    }
    monkeypatch.setattr(every, "PROTOCOLS", fakes)
    monkeypatch.setattr(every, "load_weights", lambda spec, backbone: LOADED._replace(name="other"))


LOADED: Loaded


@pytest.fixture(autouse=True)
def _loaded(loaded: Loaded) -> None:
    global LOADED
    LOADED = loaded


@pytest.mark.usefixtures("few")
def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.json"
    result = run(EVERY["all"], LOADED, "pets", AllConfig(seed=3), out)
    assert result["metrics"] == {"knn": {"acc": 70.0}, "video": {"J": 50.0, "F": 40.0}}
    assert result["floor"] == {"random_weights": {"knn": {"acc": 69.0}, "video": {"J": 49.0, "F": 39.0}}}
    assert result["notes"] == ["retrieval is left out: no gnd.json", "knn: k is too large"]
    assert result.keys() - {"baseline"} == KEYS
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    assert json.loads((tmp_path / "table" / "video.json").read_text())["seed"] == 3
    assert capsys.readouterr().err == "knn ...\nvideo ...\n"
    lines = format_all(result).splitlines()
    assert lines[0].split() == ["trained", "random", "weights"]
    assert [line.split() for line in lines[1:4]] == [
        ["knn", "acc", "70.0", "69.0"],
        ["video", "J", "50.0", "49.0"],
        ["F", "40.0", "39.0"],
    ]
    assert lines[-2:] == ["note: retrieval is left out: no gnd.json", "note: knn: k is too large"]


@pytest.mark.usefixtures("few")
def test_a_baseline_that_cannot_do_everything(tmp_path: Path) -> None:
    config = AllConfig(baseline="net.safetensors", baseline_backbone="resnet18")
    result = run(EVERY["all"], LOADED, "pets", config, tmp_path / "table.json")
    assert json.loads((tmp_path / "table" / "knn.json").read_text())["metrics"] == {"acc": 70.0}
    assert result["baseline"] == {"knn": {"acc": 80.0}}
    assert result["metrics"].keys() == {"knn", "video"}
    assert "the baseline's video is left out: the baseline has no attention" in result["notes"]
    assert format_all(result).splitlines()[1].split() == ["knn", "acc", "70.0", "80.0", "69.0"]


@pytest.mark.usefixtures("few")
def test_only_and_skip() -> None:
    trained = run(EVERY["all"], LOADED, "pets", AllConfig(only=("finetune", "knn")))
    assert trained["metrics"].keys() == {"knn", "finetune"}
    assert run(EVERY["all"], LOADED, "pets", AllConfig(skip=("knn",)))["metrics"].keys() == {"video"}
    with pytest.raises(UsageError, match=r"no protocol 'videos'\. Did you mean: video"):
        run(EVERY["all"], LOADED, "pets", AllConfig(only=("videos",)))
    with pytest.raises(
        DataError, match=r"No protocol fits the data\.\nretrieval is left out: no gnd\.json\nknn is left out: not"
    ):
        run(EVERY["all"], LOADED, "bad", AllConfig())


@pytest.mark.usefixtures("few")
def test_a_runs_results_lie_where_each_protocol_puts_its_own(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    out = tmp_path / "eval" / "all.json"
    run(EVERY["all"], LOADED, "pets", AllConfig(), out)
    assert sorted(path.name for path in out.parent.iterdir()) == [
        f"{name}.{suffix}" for name in ("all", "knn", "video") for suffix in ("json", "time.json")
    ]


def test_the_list_names_every_protocol() -> None:
    assert catalog.PROTOCOLS.keys() == EVERY.keys()
    root = Path(__file__).parents[2]
    assert [name for name in EVERY if not (root / "docs" / "evals" / f"{name}.md").is_file()] == []


def test_class_folders_are_distinguished_from_pictures_with_masks(splits_folder: Path, tmp_path: Path) -> None:
    assert refusal(knn.PROTOCOL, splits_folder) is None
    assert refusal(knn.PROTOCOL, splits_folder / "train") is None
    assert "two class folders" in (refusal(knn.PROTOCOL, splits_folder / "train" / "cat") or "")
    pack = tmp_path / "pack"
    (splits_folder / "val").rename(splits_folder / "semantic")
    (splits_folder / "test").rename(splits_folder / "images")
    (splits_folder / "train").rename(tmp_path / "gone")
    splits_folder.rename(pack)
    assert refusal(knn.PROTOCOL, pack) == "no class folders: images/ holds pictures of all kinds"
    anything(pack)


def test_real_protocols(splits_folder: Path, tmp_path: Path) -> None:
    save_weights(LOADED.backbone, tmp_path / "weights", 24, LOADED.mean, LOADED.std)
    config = AllConfig(only=("knn", "retrieval", "copies"), baseline=str(tmp_path / "weights"), cache=False)
    result = run(EVERY["all"], LOADED, splits_folder / "val", config)
    assert result["metrics"].keys() == result["baseline"].keys() == {"knn", "copies"}
    assert result["notes"][0] == "retrieval is left out: no gnd.json with queries and their answers"
    assert result["notes"][1].startswith("knn: k = 20, 100, 200: all 14 training images")
    assert "baseline" in format_all(result) and "k = 20" in format_all(result)


def test_a_bare_file_as_baseline_needs_its_backbone(splits_folder: Path, tmp_path: Path) -> None:
    save_weights(LOADED.backbone, tmp_path / "weights", 16, LOADED.mean, LOADED.std)
    config = AllConfig(only=("knn",), baseline=str(tmp_path / "weights" / "model.safetensors"))
    with pytest.raises(UsageError, match=r"^--baseline: .* --baseline-backbone NAME"):
        run(EVERY["all"], LOADED, splits_folder, config)


def test_the_commands(splits_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(LOADED.backbone, tmp_path / "weights", 16, LOADED.mean, LOADED.std)
    start = ["eval", "all", str(tmp_path / "weights"), str(splits_folder / "val"), "--no-floor", "--no-cache"]
    main.main([*start, "--only", "copies", "--out", str(tmp_path / "table.json")])
    assert "mean_map" in (tmp_path / "table" / "copies.json").read_text()
    assert (tmp_path / "table" / "copies" / "attacks.png").is_file()
    assert capsys.readouterr().out.split()[:3] == ["trained", "copies", "strong"]
    main.main([*start, "--only", "retrieval", "knn", "--json"])
    assert json.loads(capsys.readouterr().out)["metrics"].keys() == {"knn"}
    with pytest.raises(SystemExit) as left:
        main.main([*start, "--only", "retrieval"])
    assert left.value.code == DataError.code
    assert "retrieval is left out: no gnd.json" in capsys.readouterr().err
