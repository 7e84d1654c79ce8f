"""A run's folder is never left through a link: a stranger's run can lead nolabel nowhere else."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nolabel
from nolabel.cli import main
from nolabel.errors import StorageError
from nolabel.report import report
from nolabel.runs.folder import WRITTEN, locked
from nolabel.training.start import replay, resume

FILES = ("config.yaml", "status.json", "metrics.jsonl", "events.jsonl", "bad_files.jsonl", "report.html", ".lock")
FOLDERS = ("weights", "checkpoints", "capture", "eval", "eval/attention", "eval/cache", "tensorboard")
INNER = ("weights/model.safetensors", "checkpoints/step-00000004", "eval/attention/step-00000000.webp", "eval/knn.json")


@pytest.fixture(scope="module")
def trained(tiny: dict[str, Any], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("links") / "run"
    nolabel.train("dino-small", pictures / "train", out, **(tiny | {"steps": 4, "checkpoint_every": 2}))
    return out


def content(folder: Path) -> dict[str, bytes]:
    """Every file and link below a folder, by its path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = os.readlink(path).encode()
        elif path.is_file():
            found[str(path)] = path.read_bytes()
    return found


def plant(trained: Path, folder: Path, name: str) -> Path:
    """A copy of the run in which `name` is a link to the same outside."""
    (folder / "outside").mkdir()
    run, link, outside = folder / "run", folder / "run" / name, folder / "outside" / "there"
    shutil.copytree(trained, run)
    if link.exists():
        shutil.move(link, outside)
    elif name in FILES:
        outside.write_text("")
    else:
        outside.mkdir()
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)
    return run


def refused(run: Path, name: str, call: Callable[[], object]) -> None:
    before = content(run.parent)
    with pytest.raises(StorageError) as caught:
        call()
    message = str(caught.value)
    assert f"{run}/{name} is a link to {run.parent}/outside/there" in message and len(message.splitlines()) <= 5
    assert content(run.parent) == before, "nothing is written before it is refused"


@pytest.mark.parametrize("name", [*FILES, *FOLDERS, *INNER])
def test_a_run_with_a_link_is_refused(name: str, trained: Path, tmp_path: Path) -> None:
    run = plant(trained, tmp_path, name)
    refused(run, name, lambda: resume(run, {"steps": 6}))
    refused(run, name, lambda: replay(run))
    refused(run, name, lambda: report(nolabel.Run(run)))

    def hold() -> None:  # what --overwrite does before it removes
        with locked(run):
            pass

    refused(run, name, hold)


def test_the_command_reports_it(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = plant(trained, tmp_path, "events.jsonl")
    for arguments in (["resume", run, "--steps", "6"], ["report", run]):
        with pytest.raises(SystemExit) as left:
            main.main([str(a) for a in arguments])
        assert left.value.code == 74
        assert "events.jsonl is a link to" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["eval", "eval/cache", "eval/knn.json"])
def test_evaluations_leave_no_run(
    name: str, trained: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOLABEL_CACHE")
    run = plant(trained, tmp_path, name)
    refused(run, name, lambda: nolabel.evaluate("knn", run, pictures))
    refused(run, name, lambda: nolabel.evaluate("knn", run, pictures, out=tmp_path / "elsewhere.json"))

    def embed() -> None:
        try:
            main.main(["embed", str(run), str(pictures), "--out", str(tmp_path / "x.npz")])
        except SystemExit as left:
            assert left.code == 74
            raise StorageError(f"{run}/{name} is a link to {run.parent}/outside/there") from None

    refused(run, name, embed)


def test_weights_are_read_through_a_link(trained: Path, tmp_path: Path) -> None:
    run = plant(trained, tmp_path, "weights")
    assert nolabel.Run(run).backbone().num_features == 32


def test_a_link_to_a_run_is_a_run(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "disk")
    (tmp_path / "run").symlink_to("disk")
    (tmp_path / "disk" / "notes.txt").symlink_to("/etc/hosts")  # a name that nolabel does not write
    resume(tmp_path / "run", {"steps": 6})
    assert nolabel.Run(tmp_path / "disk").status() | {"step": 6} == nolabel.Run(tmp_path / "run").status()
    assert (tmp_path / "run").is_symlink() and (tmp_path / "disk" / "checkpoints" / "step-00000006").is_dir()


def test_the_copy_of_a_run_by_hard_links_goes_on_alone(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "original")
    shutil.copytree(tmp_path / "original", tmp_path / "copy", copy_function=os.link)
    before = content(tmp_path / "original")
    resume(tmp_path / "copy", {"steps": 6})
    assert content(tmp_path / "original") == before


def test_every_name_in_a_run_is_known(trained: Path) -> None:
    from fnmatch import fnmatchcase

    for path in trained.iterdir():
        assert any(fnmatchcase(path.name, pattern) for pattern in WRITTEN), f"{path.name} is not looked at for links"
