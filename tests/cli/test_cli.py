"""The commands end to end on small real files, and what wrong input gets: a short answer with the way out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

import nolabel
from nolabel.cli import main
from nolabel.config import read_yaml


def options(tiny: dict[str, Any]) -> list[str]:
    """`tiny` as command-line options."""
    args = ["--backbone", tiny["backbone"], "--backbone-args", *tiny["backbone_args"], "--eval-every", "3"]
    args += [f"--method.{k.replace('_', '-')}={v}" for k, v in tiny["method"].items()]
    plain = ("batch_size", "workers", "threads", "precision", "device", "log_every")
    return args + [f"--{k.replace('_', '-')}={tiny[k]}" for k in plain]


def call(*arguments: object) -> int:
    """Run a command in this process; gives its exit code."""
    try:
        main.main([str(a) for a in arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


@pytest.fixture(scope="module")
def trained(tiny: dict[str, Any], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with labels, made by the command line."""
    out = tmp_path_factory.mktemp("cli") / "run"
    arguments = ["train", "dino-small", pictures / "train", "--out", out, "--steps", 6, "--labels", pictures]
    assert call(*arguments, *options(tiny)) == 0
    return out


def test_train_leaves_the_run_folder(trained: Path) -> None:
    for name in ("config.yaml", "status.json", "metrics.jsonl", "events.jsonl", "weights/config.json", "report.html"):
        assert (trained / name).is_file(), name
    run = nolabel.Run(trained)
    assert run.status()["state"] == "done" and run.status()["exit_code"] == 0
    assert [r["step"] for r in run.metrics() if "loss" in r] == [2, 4, 6]
    assert [r["step"] for r in run.metrics() if "knn" in r] == [0, 3, 6]
    assert {"knn_raw", "knn_untrained"} <= run.metrics()[0].keys()
    assert "auto" not in (trained / "config.yaml").read_text().replace("auto_", "")
    assert {e["event"] for e in run.events()} >= {"start", "checkpoint", "eval", "done"}
    assert not list(trained.rglob("*.tmp")) and not list(trained.rglob(".*.tmp"))


def test_train_prints_where_the_weights_are(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert call("train", "dino-small", pictures / "train", "--out", out, "--steps", 1, *options(tiny)) == 0
    printed = capsys.readouterr().out
    assert f"{out}/weights" in printed
    block = [line.strip() for line in printed.splitlines() if line.startswith("    ")]
    assert len(block) == 3
    scope: dict[str, Any] = {}
    exec("\n".join(block), scope)  # the printed lines, as a user would paste them
    assert scope["model"].num_features == 32


def test_weights_open_in_timm(trained: Path) -> None:
    model = timm.create_model(f"local-dir:{trained}/weights", pretrained=True).eval()
    ours = nolabel.Run(trained).backbone()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), ours(x).pooled, rtol=0, atol=0)
    config = json.loads((trained / "weights" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert config["pretrained_cfg"]["mean"] == list(nolabel.Run(trained).config()["mean"])


def test_weights_are_those_of_the_teacher(trained: Path) -> None:
    from safetensors.torch import load_file

    newest = max((trained / "checkpoints").glob("step-*"))
    state = load_file(newest / "model.safetensors")
    shipped = load_file(trained / "weights" / "model.safetensors")
    for name, tensor in shipped.items():
        assert torch.equal(tensor, state[f"teacher.backbone.model.{name}"])
    assert any(not torch.equal(t, state[f"student.backbone.model.{n}"]) for n, t in shipped.items())


def test_a_warmup_that_does_not_fit_is_reported(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    arguments = ["train", "dino-small", pictures / "train", "--out", tmp_path / "run", "--steps", 3]
    assert call(*arguments, *options(tiny), "--optim.warmup-epochs", 10) == 0
    assert "optim.warmup_epochs is longer than the run: it shrinks from 10 to 0.1 epochs" in capsys.readouterr().err
    assert nolabel.Run(tmp_path / "run").config()["optim"]["warmup_epochs"] == pytest.approx(0.1)


def test_a_run_can_be_repeated_from_its_config(trained: Path, tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "again"
    assert call("train", "--config", trained / "config.yaml", "--out", out) == 0
    assert (out / "weights/model.safetensors").read_bytes() == (trained / "weights/model.safetensors").read_bytes()
    changed = {k for k, v in read_yaml(out / "config.yaml").items() if v != read_yaml(trained / "config.yaml")[k]}
    assert changed == {"out"}


def test_eval_knn(trained: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("eval", "knn", trained, pictures, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads((trained / "eval" / "knn.json").read_text()) == result
    assert set(result) >= {"protocol", "version", "metrics", "floor", "settings", "data", "seed"}
    before = (trained / "eval" / "knn.json").read_bytes()
    assert call("eval", "knn", trained, pictures) == 0
    assert (trained / "eval" / "knn.json").read_bytes() == before
    table = capsys.readouterr().out
    assert "raw pixels" in table and "untrained network" in table and "trained network" in table


def test_eval_of_random_weights(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("eval", "knn", "random:resnet18", pictures, "--image-size", 32, "--json") == 0
    assert json.loads(capsys.readouterr().out)["settings"]["backbone"] == "resnet18"


@pytest.mark.parametrize(("kind", "expected"), [("attention", 3), ("pca", 1)])
def test_show(kind: str, expected: int, trained: Path, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for i, size in enumerate([(40, 40), (70, 33), (20, 90)]):
        Image.new("RGB", size, (40 * i, 90, 200)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no image")
    assert call("show", kind, trained, folder, "--out", tmp_path / "out", "--size", 64) == 0
    drawn = sorted((tmp_path / "out").glob("*.png"))
    assert len(drawn) == expected
    for path in drawn:
        with Image.open(path) as image:
            assert image.width > 64 and len(image.convert("RGB").getcolors(10**6) or []) > 20


def test_check_and_report(trained: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", pictures, "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == 36
    (trained / "report.html").unlink()
    assert call("report", trained) == 0
    assert (trained / "report.html").is_file()


def test_dry_run_writes_nothing(tiny: dict[str, Any], pictures: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["train", "dino-small", pictures / "train", "--out", tmp_path / "run", "--steps", 50, "--dry-run"]
    assert call(*arguments, *options(tiny)) == 0
    assert "images/s" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_bad_files_are_skipped_and_listed(tiny: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures / "train", data)
    (data / "checks" / "00.png").write_bytes((data / "checks" / "01.png").read_bytes()[:60])
    assert call("train", "dino-small", data, "--out", tmp_path / "run", "--epochs", 2, *options(tiny)) == 0
    listed = {(r["name"], r["reason"]) for r in nolabel.Run(tmp_path / "run").bad_files()}
    assert listed == {("checks/00.png", "truncated")}


def test_gradient_accumulation_gives_the_same_losses(tiny: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    runs = {}
    for micro in (8, 2):
        arguments = {**tiny, "micro_batch": micro, "steps": 4, "log_every": 1}
        arguments["method"] = tiny["method"] | {"drop_path": 0.0, "head_batchnorm": False}
        run = nolabel.train("dino-small", pictures / "train", tmp_path / str(micro), **arguments)
        runs[micro] = [r["loss"] for r in run.metrics() if "loss" in r]
    assert runs[2] == pytest.approx(runs[8], rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_other_precisions_and_recomputation(
    precision: str, tiny: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    arguments = {**tiny, "precision": precision, "steps": 3, "log_every": 1, "grad_checkpointing": precision == "bf16"}
    run = nolabel.train("dino-small", pictures / "train", tmp_path / "run", **arguments)
    assert all(r["loss"] == pytest.approx(4.16, abs=0.3) for r in run.metrics() if "loss" in r)  # ln 64


@pytest.mark.parametrize("command", ["train", "eval", "show"])
def test_help_before_the_name_lists_the_names(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--help") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"nolabel {command} ") and "--help" in printed.out and printed.err == ""


def wrong(name: str, *arguments: str, code: int, says: tuple[str, ...]) -> Any:
    return pytest.param(arguments, code, says, id=name)


BASE = ("train", "dino-small", "{data}", "--out", "{new}", "--steps", "1", "--batch-size", "8", "--workers", "0")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        wrong("command", "trian", code=2, says=("trian", "Did you mean: train")),
        wrong("recipe", "train", "dinoo", "{data}", "--out", "{new}", code=2, says=("dinoo", "dino")),
        wrong("no recipe", "train", code=2, says=("RECIPE is missing",)),
        wrong("no out", "train", "dino", "{data}", code=2, says=("--out",)),
        wrong("missing data", "train", "dino", "{tmp}/nowhere", "--out", "{new}", code=65, says=("does not exist",)),
        wrong("empty folder", "train", "dino", "{empty}", "--out", "{new}", code=65, says=("image",)),
        wrong(
            "few images",
            "train",
            "dino",
            "{data}",
            "--out",
            "{new}",
            code=65,
            says=("24 images", "512", "--batch-size"),
        ),
        wrong("backbone", *BASE, "--backbone", "resnet19", code=2, says=("resnet19", "resnet18")),
        wrong("backbone arguments", *BASE, "--backbone-args", "patch=3", code=2, says=("resnet18",)),
        wrong("pair", *BASE, "--backbone-args", "patch", code=2, says=("key=value",)),
        wrong(
            "crop",
            *BASE,
            "--backbone",
            "vit_tiny_patch16_224",
            "--method.global-size",
            "100",
            code=2,
            says=("100", "96 or 112"),
        ),
        wrong("cuda", *BASE, "--device", "cuda", code=2, says=("--device cpu",)),
        wrong("device", *BASE, "--device", "abacus", code=2, says=("abacus", "cpu")),
        wrong(
            "run exists",
            "train",
            "dino",
            "{data}",
            "--out",
            "{full}",
            "--batch-size",
            "8",
            code=2,
            says=("another --out",),
        ),
        wrong("epochs and steps", *BASE, "--epochs", "3", code=2, says=("--epochs", "--steps")),
        wrong("no steps", *BASE[:-6], "--steps", "0", "--batch-size", "8", code=2, says=("1 or more",)),
        wrong("micro batch", *BASE, "--micro-batch", "3", code=2, says=("3", "8")),
        wrong("labels", *BASE, "--labels", "{tmp}/nowhere", code=65, says=("does not exist",)),
        wrong("config", "train", "--config", "{tmp}/no.yaml", "--out", "{new}", code=2, says=("no.yaml",)),
        wrong("resume", "resume", "{empty}", code=2, says=("is no run", "config.yaml")),
        wrong("resume without", "resume", code=2, says=("nolabel resume RUN",)),
        wrong("report", "report", "{empty}", code=2, says=("is no run",)),
        wrong("protocol", "eval", "knnn", "{data}", "{data}", code=2, says=("knnn", "knn")),
        wrong("weights", "eval", "knn", "{tmp}/nowhere", "{labelled}", code=2, says=("no weights", "random:")),
        wrong("damaged weights", "eval", "knn", "{damaged}", "{labelled}", code=65, says=("damaged",)),
        wrong("random", "eval", "knn", "random:resnet19", "{labelled}", code=2, says=("resnet18",)),
        wrong("bare file", "eval", "knn", "{damaged}/model.safetensors", "{labelled}", code=2, says=("--backbone",)),
        wrong("pth", "eval", "knn", "{pth}", "{labelled}", "--backbone", "resnet18", code=2, says=("--allow-pth",)),
        wrong("no classes", "eval", "knn", "random:resnet18", "{flat}", code=65, says=("class",)),
        wrong("list", "list", "recipe", code=2, says=("recipes",)),
        wrong("show", "show", "attentoin", code=2, says=("attention",)),
        wrong("show first", "show", "--size", "64", "pca", "{data}", code=2, says=("attention|pca|matches",)),
        wrong("protocol first", "eval", "--seed", "1", "knn", "{data}", code=2, says=("--seed", "knn|linear")),
        wrong(
            "show nothing",
            "show",
            "pca",
            "random:resnet18",
            "{tmp}/no.png",
            "--out",
            "{new}",
            code=65,
            says=("does not exist",),
        ),
        wrong("check", "check", "{tmp}/nowhere", code=65, says=("does not exist",)),
        wrong("minutes", "demo", "--minutes", "0", "--out", "{new}", code=2, says=("--minutes",)),
    ],
)
def test_wrong_input(
    arguments: tuple[str, ...],
    code: int,
    says: tuple[str, ...],
    trained: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty, full, damaged, flat = (tmp_path / n for n in ("empty", "full", "damaged", "flat"))
    for folder in (empty, full, flat):
        folder.mkdir()
    (full / "thesis.txt").write_text("years of work")
    shutil.copytree(trained / "weights", damaged)
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:1000])
    (tmp_path / "old.pth").write_bytes(b"\x80\x02]")
    Image.new("RGB", (8, 8)).save(flat / "a.png")
    places = {
        "data": pictures / "train", "labelled": pictures, "tmp": tmp_path, "new": tmp_path / "new", "empty": empty,
        "full": full, "damaged": damaged, "pth": tmp_path / "old.pth", "flat": flat,
    }  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert call(*(a.format(**places) for a in arguments)) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    message = printed.err.strip()
    assert message.startswith("nolabel: ") and len(message.splitlines()) <= 5, message
    assert all(part in message for part in says), message
    assert "Traceback" not in message
    assert [p for p in sorted(tmp_path.rglob("*")) if p not in before] == [], "something was written"
    assert (full / "thesis.txt").read_text() == "years of work"


def test_an_unknown_option_names_the_nearest(pictures: Path, tmp_path: Path, capsys: Any) -> None:
    assert call("train", "dino", pictures, "--out", tmp_path / "run", "--method.teacher-tmp", 0.1) == 2
    assert "--method.teacher-temp" in capsys.readouterr().err


def test_overwrite_replaces_runs_alone(trained: Path, tiny: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    arguments = ["train", "dino-small", pictures / "train", "--out", out, "--steps", 1, *options(tiny)]
    assert call(*arguments) == 2
    assert (out / "eval").is_dir()
    assert call(*arguments, "--overwrite") == 0
    assert nolabel.Run(out).status()["step"] == 1
    (out / ".nolabel-run").unlink()
    (out / "status.json").unlink()
    assert call(*arguments, "--overwrite") == 2


def test_python_gives_the_same(trained: Path, pictures: Path) -> None:
    result = nolabel.evaluate("knn", nolabel.Run(trained), pictures, floor=False, ks=(5,))
    assert result["metrics"]["top1"].keys() == {"5"}
    with pytest.raises(ValueError, match="Did you mean: method"):
        nolabel.train("dino", pictures, "nowhere", methd={})
