"""Folders that nolabel replaces or takes for data: only its own is removed, nothing of its own is trained on."""

import errno
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import nolabel
from nolabel import marks
from nolabel.cli import demo, main
from nolabel.data.images import fingerprint, scan, scan_labelled
from nolabel.data.packing import Packing, pack
from nolabel.errors import DataError, StorageError, UsageError
from nolabel.evals.shared.results import check_place, result_path
from nolabel.runs import folder as folder_module

LEGACY = Path(__file__).with_name("legacy")


def tree(folder: Path) -> dict[str, bytes]:
    """The files below a folder but for the lock, with their content; links as what they point to."""
    return {
        str(p.relative_to(folder)): os.readlink(p).encode() if p.is_symlink() else p.read_bytes()
        for p in folder.rglob("*")
        if (p.is_symlink() or p.is_file()) and p.name != ".lock"
    }


@pytest.fixture(scope="module")
def trained(tiny: dict[str, Any], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("marks") / "run"
    settings = tiny | {"steps": 4, "checkpoint_every": 2, "labels": str(pictures)}
    nolabel.train("dino-small", pictures / "train", out, **settings)
    (out / "tensorboard").mkdir()
    written = "tensorboard/events.out.tfevents.1764000000.host.1.0"  # as the tracker names it
    for name in ("bad_files.jsonl", "bad_files.1.jsonl", ".status.json.12.tmp", written):
        (out / name).touch()
    shutil.copytree(out / "checkpoints" / "step-00000004", out / "checkpoints" / "step-00000002.corrupt")
    nolabel.evaluate("knn", out, pictures, floor=False)
    return out


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def again(tiny: dict[str, Any], pictures: Path) -> Callable[..., nolabel.Run]:
    """Train one step into a folder, replacing what is there."""

    def train(out: Path, data: Path | None = None, **more: Any) -> nolabel.Run:
        settings = tiny | {"steps": 1, "overwrite": True} | more
        return nolabel.train("dino-small", data or pictures / "train", out, **settings)

    return train


# ---- --overwrite


def test_everything_in_a_run_is_known(copy: Path, again: Callable[..., nolabel.Run]) -> None:
    assert any(name.startswith("tensorboard/") for name in tree(copy))
    assert marks.content(copy, marks.RUN_NAMES).strange == []
    assert again(copy).status()["step"] == 1
    left = tree(copy)
    assert not any("tensorboard" in name or "corrupt" in name or "bad_files" in name for name in left)
    assert "eval/knn.json" not in left and len(list((copy / "checkpoints").iterdir())) == 1


STRANGE: dict[str, Callable[[Path], object]] = {
    "notes.txt": lambda p: p.write_text("mine"),
    "notes.jsonl": lambda p: p.write_text("mine"),
    "images/": lambda p: p.mkdir(),
    "checkpoints/best/": lambda p: shutil.copytree(p.parent / "step-00000004", p),
    "checkpoints/step-00000004/notes": lambda p: p.write_text("mine"),
    "weights/model.onnx": lambda p: p.write_text("mine"),
    "eval/mine.json": lambda p: p.write_text("{}"),
    "eval/knn/": lambda p: p.mkdir() or marks.put_mark(p, marks.MARK),  # type: ignore[func-returns-value]
    "pictures/": lambda p: p.symlink_to("/"),
    "capture": lambda p: p.symlink_to("/nowhere"),
    "report.html/": lambda p: p.unlink() or p.mkdir(),  # type: ignore[func-returns-value]
    "metrics.jsonl": lambda p: p.unlink() or os.mkfifo(p),  # type: ignore[func-returns-value]
    "bad_files.jsonl": lambda p: p.unlink() or p.symlink_to(__file__),  # type: ignore[func-returns-value]
    "config.yaml~": lambda p: p.write_text("mine"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_not_of_nolabel_keeps_a_run(name: str, copy: Path, again: Callable[..., nolabel.Run]) -> None:
    path = copy / name.rstrip("/")
    STRANGE[name](path)
    before = sorted(p for p in copy.rglob("*"))
    with pytest.raises(UsageError, match=re.escape(name.rstrip("/") if path.is_symlink() else name)) as caught:
        again(copy)
    assert "Nothing was removed" in str(caught.value) and len(str(caught.value).splitlines()) <= 5
    assert sorted(p for p in copy.rglob("*")) == before


def test_a_foreign_config_is_no_run(tmp_path: Path, again: Callable[..., nolabel.Run]) -> None:
    out = tmp_path / "project"
    out.mkdir()
    for text in ("trainer: hydra", "method_name: dino", ""):
        (out / "config.yaml").write_text(text)
        (out / "status.json").write_text('{"state": "running", "step": 3}')
        with pytest.raises(UsageError, match="nolabel never replaces what is not a run"):
            again(out)
    assert len(tree(out)) == 2


@pytest.mark.parametrize("day", [p.name for p in sorted(LEGACY.iterdir())])
def test_a_run_from_before_the_mark_is_known(day: str, tmp_path: Path, again: Callable[..., nolabel.Run]) -> None:
    out = shutil.copytree(LEGACY / day, tmp_path / "run")
    assert not (out / marks.MARK).exists() and marks.is_run(out)
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        again(out)
    (out / "thesis.tex").unlink()
    assert again(out).status()["step"] == 1 and (out / marks.MARK).is_file()
    for damage in ("config.yaml", "status.json"):
        other = shutil.copytree(LEGACY / day, tmp_path / damage)
        (other / damage).write_text("[" * 50)
        assert not marks.is_run(other)


def test_data_in_the_run_that_would_be_replaced(copy: Path, pictures: Path, again: Callable[..., nolabel.Run]) -> None:
    """By any path, also where all of it has names of nolabel."""
    inside, beside = copy / "eval" / "attention", copy.parent / "link"
    beside.symlink_to(inside)
    odd = copy.parent / "nowhere" / ".." / "run" / "eval" / "attention"
    before = tree(copy)
    for data in (inside, beside, copy / "weights" / ".." / "eval", Path(os.path.relpath(inside)), copy, odd):
        with pytest.raises(UsageError, match=r"DATA .* is in --out"):
            again(copy, data=data)
        with pytest.raises(UsageError, match=r"--labels .* is in --out"):
            again(copy, labels=str(data))
    (copy.parent / "out").symlink_to(copy)
    with pytest.raises(UsageError, match=r"DATA .* is in --out"):
        again(copy.parent / "out", data=inside)
    assert tree(copy) == before


def test_the_settings_in_the_run_that_would_be_replaced(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(copy)
    with pytest.raises(SystemExit) as left:
        main.main(["train", "--config", str(copy / "config.yaml"), "--out", str(copy), "--overwrite"])
    assert left.value.code == 2 and "--config" in capsys.readouterr().err
    assert tree(copy) == before


def test_out_is_a_link(copy: Path, again: Callable[..., nolabel.Run]) -> None:
    link = copy.parent / "link"
    link.symlink_to(copy)
    assert again(link).status()["step"] == 1
    assert link.is_symlink() and nolabel.Run(copy).status()["step"] == 1
    link.unlink()
    link.symlink_to("nowhere")
    with pytest.raises(UsageError, match="is no folder"):
        again(link)


def test_out_cannot_be_made(tmp_path: Path, again: Callable[..., nolabel.Run]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is no folder"):
        again(tmp_path / "file")
    with pytest.raises(StorageError, match="Not a directory"):
        again(tmp_path / "file" / "run")


def test_a_run_that_was_killed_before_its_settings_is_begun_again(
    tmp_path: Path, again: Callable[..., nolabel.Run]
) -> None:
    out = tmp_path / "run"
    with folder_module.claimed(out, overwrite=False):
        (out / ".config.yaml.77.tmp").write_text("method_na")
    assert (out / marks.MARK).is_file()
    assert again(out, overwrite=False).status()["state"] == "done"


def test_a_replacement_that_was_killed_can_be_repeated(copy: Path, again: Any, monkeypatch: Any) -> None:
    """Half of the files are gone; what is left is still a run of nolabel."""

    def dying(root: Path, names: list[str]) -> None:
        whole(root, names[len(names) // 2 :])
        raise OSError(errno.EIO, "Input/output error")

    whole = marks.remove
    monkeypatch.setattr(marks, "remove", dying)
    with pytest.raises(StorageError, match="Input/output error"):
        again(copy)
    monkeypatch.undo()
    assert again(copy).status()["state"] == "done"


def test_the_second_of_two_starts_is_refused(tmp_path: Path) -> None:
    """It had looked when the folder was free; the first one has begun and ended since."""
    out, looked = tmp_path / "run", folder_module.check_new
    calls: list[bool] = []

    def late(path: Path, overwrite: bool) -> None:
        looked(path, overwrite)
        if not calls:
            calls.append(True)
            with folder_module.claimed(path, False):
                (path / "config.yaml").write_text("first")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_module, "check_new", late)
        with pytest.raises(UsageError, match="exists and is not empty"), folder_module.claimed(out, False):
            pass
    assert (out / "config.yaml").read_text() == "first"


@pytest.fixture
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "NUM_TRAIN", 10)
    monkeypatch.setattr(demo, "NUM_VAL", 10)
    monkeypatch.setattr(demo, "SIZE", 8)


def test_a_world_of_the_demo_is_replaced_where_nothing_else_lies_in_it(tmp_path: Path, small_world: None) -> None:
    folder = demo._world(tmp_path / "demo-world", 0)
    before = tree(folder)
    demo._world(folder, 1)
    assert tree(folder).keys() == before.keys() and tree(folder) != before
    for name in ("train/mine.jpg", "train/fish/mine.png", "notes", "other/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
        before = tree(folder)
        with pytest.raises(UsageError, match="holds what nolabel has not written"):
            demo._world(folder, 0)
        assert tree(folder) == before
        (folder / name).unlink()
        if name.startswith("other"):
            (folder / "other").rmdir()
    shutil.move(folder / "train", tmp_path / "moved")
    (folder / "train").symlink_to(tmp_path / "moved")
    with pytest.raises(UsageError, match="train"):
        demo._world(folder, 0)
    assert len(tree(tmp_path / "moved")) == 10


def test_the_demo_starts_in_an_empty_folder_that_is_the_current_one(
    tmp_path: Path, small_world: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made: list[Path] = []
    monkeypatch.setattr(demo, "_world", lambda folder, seed: made.append(folder) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        demo.demo(Path("."), "simclr-small", 1, 0, False)
    assert made == [tmp_path / "here-world"]


# ---- other commands that replace


def test_a_result_replaces_results_alone(tmp_path: Path, trained: Path, pictures: Path) -> None:
    out = tmp_path / "thesis.json"
    for text in ("chapter 1", '{"name": "paper"}', "[]", "", "\x00\xff"):
        out.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match="is no result of nolabel"):
            nolabel.evaluate("knn", trained, pictures, out, floor=False)
        assert out.read_text(encoding="utf-8") == text
    out.unlink()
    for _ in range(2):
        nolabel.evaluate("knn", trained, pictures, out, floor=False)
    with pytest.raises(StorageError):
        check_place(tmp_path)


def test_a_result_that_cannot_be_read_is_not_replaced(copy: Path, pictures: Path, monkeypatch: Any) -> None:
    before = (copy / "eval" / "knn.json").read_bytes()

    def stale(path: Path) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "read_bytes", stale)
    with pytest.raises(StorageError, match="Stale file handle"):
        result_path(copy, "knn", pictures)
    monkeypatch.undo()
    assert (copy / "eval" / "knn.json").read_bytes() == before
    assert result_path(copy, "knn", pictures) == copy / "eval" / "knn.json"


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_features_replace_features_alone(
    suffix: str, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"f.{suffix}"
    out.write_bytes(b"years of work")
    arguments = ["embed", "random:test_vit", str(pictures / "val"), "--out", str(out), "--overwrite", "--no-cache"]
    with pytest.raises(SystemExit) as left:
        main.main([*arguments, "--image-size", "32"])
    assert left.value.code == 2 and "was not written by nolabel embed" in capsys.readouterr().err
    assert out.read_bytes() == b"years of work"
    out.unlink()
    for _ in range(2):
        main.main([*arguments, "--image-size", "32"])


def test_pictures_replace_pictures_alone(
    trained: Path, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = shutil.copytree(pictures / "val" / "checks", tmp_path / "photos")
    before, mark = scan(photos), fingerprint(scan(photos))
    mine, arguments = tmp_path / "mine", ["show", "pca", str(trained), str(photos), "--size", "64", "--out"]
    mine.mkdir()
    (mine / "pca.png").write_bytes(b"mine")
    for folder in (mine, photos):
        with pytest.raises(SystemExit) as left:
            main.main([*arguments, str(folder)])
        assert left.value.code == 2 and "choose another --out" in capsys.readouterr().err
    assert (mine / "pca.png").read_bytes() == b"mine"
    for _ in range(2):
        main.main([*arguments, str(photos / "drawn")])
    (photos / "drawn" / "pca.png").stat()
    assert scan(photos).names == before.names and fingerprint(scan(photos)) == mark
    assert [one[:3] for one in scan(photos).skipped] == [("drawn/", "made by nolabel", "pictures")]
    assert len(scan(photos / "drawn").names) == 1, "named itself, it is data as any other"
    (mine / "pca.png").unlink()
    (mine / "other.txt").touch()
    main.main([*arguments, str(mine)])
    assert not (mine / marks.PICTURES).exists(), "a folder of the user's is not marked"


# ---- a run below its own DATA


@pytest.mark.parametrize("where", ["run", "deep/er/run", "images", "stripes/run"])
def test_a_run_below_its_own_data_goes_on(where: str, tiny: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    """The same weights as beside them; its pictures are no data, whatever it is called."""
    data = shutil.copytree(pictures / "train", tmp_path / "data")
    before = fingerprint(scan(data))
    settings = tiny | {"steps": 2, "eval_every": 1}
    nolabel.train("dino-small", data, data / where, **settings)
    nolabel.train("dino-small", data, data / "second", **settings)
    assert list((data / where / "eval" / "attention").glob("*.webp"))
    assert fingerprint(scan(data)) == before
    out = nolabel.resume(data / where, {"steps": 4})
    assert out.status()["step"] == 4
    nolabel.train("dino-small", pictures / "train", tmp_path / "beside", **settings)
    nolabel.resume(tmp_path / "beside", {"steps": 4})
    weights = [p / "weights" / "model.safetensors" for p in (data / where, tmp_path / "beside")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_runs_are_left_out_of_every_scan(copy: Path, pictures: Path, tmp_path: Path) -> None:
    data = shutil.copytree(pictures, tmp_path / "data")
    names = {key: part.images.names for key, part in scan_labelled(data).items()}
    whole = fingerprint(scan(data))
    for place in ("run", "train/run", "val/stripes/run"):
        shutil.copytree(copy, data / place)
    shutil.copytree(LEGACY / "2026-11-24", data / "old")
    Image.new("RGB", (9, 9)).save(data / "old" / "eval.png")
    (data / "link").symlink_to(copy)
    assert {key: part.images.names for key, part in scan_labelled(data).items()} == names
    assert fingerprint(scan(data)) == whole
    found = {one.name: one.detail for one in scan(data).skipped if one.reason == "made by nolabel"}
    assert found == dict.fromkeys(["run/", "train/run/", "val/stripes/run/", "old/", "link/"], "a run")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in sorted(data.rglob("*")):
            if path.is_file() and "old" not in path.parts and "link" not in path.parts:
                archive.write(path, path.relative_to(data))
    assert fingerprint(scan(tmp_path / "data.zip")) == whole
    assert {key: len(part.images.names) for key, part in scan_labelled(tmp_path / "data.zip").items()} == {
        key: len(part) for key, part in names.items()
    }
    pack(data, data / "shards", Packing())
    assert fingerprint(scan(data / "shards")) == fingerprint(scan(data)) == whole
    for place in (copy, data / "run"):
        with pytest.raises(DataError, match="1 made by nolabel"):
            scan(place)
    with pytest.raises(DataError, match="1 made by nolabel"):
        scan(data, "run")


@pytest.mark.parametrize("top", ["images", "frames"])
def test_a_run_is_not_the_folder_of_images(top: str, copy: Path, pictures: Path, tmp_path: Path) -> None:
    data = shutil.copytree(pictures / "train", tmp_path / "data")
    shutil.move(copy, data / top)
    assert len(scan(data).names) == 24
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in sorted(data.rglob("*")):
            archive.write(path, path.relative_to(data))
    assert fingerprint(scan(tmp_path / "data.zip")) == fingerprint(scan(data))


def test_a_folder_with_settings_is_data(tmp_path: Path, pictures: Path) -> None:
    """A config.yaml beside images, as many data sets have it, marks no run."""
    data = shutil.copytree(pictures / "train", tmp_path / "data")
    (data / "stripes" / "config.yaml").write_text(yaml.safe_dump({"method_name": "dino"}))
    (data / "stripes" / "status.json").write_text("{}")
    assert len(scan(data).names) == 24


@pytest.mark.parametrize("link", [False, True])
def test_out_is_data(link: bool, tmp_path: Path, pictures: Path, again: Callable[..., nolabel.Run]) -> None:
    data = shutil.copytree(pictures / "train", tmp_path / "data")
    out = tmp_path / "link" if link else data / "." / "stripes" / ".."
    if link:
        out.symlink_to(data)
    before = tree(data)
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"DATA .* is in --out"):
            again(out, data=data, overwrite=overwrite)
    assert tree(data) == before


def test_only_what_nolabel_names_so_is_removed_as_unfinished(tmp_path: Path) -> None:
    mine = [".thesis.tmp", ".notes.12.tmp", ".status.json.old.tmp", ".weights.tmp", "status.json.12.tmp"]
    own = [".status.json.12.tmp", ".metrics.jsonl.0123456789abcdef.tmp", ".weights.0123456789abcdef.tmp"]
    for name in (*mine, *own):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    marks.remove_temporary(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(mine)
