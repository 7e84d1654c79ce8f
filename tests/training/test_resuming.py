"""A resume that is not certain of its state is refused, and leaves everything as it was."""

import builtins
import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nolabel
from nolabel.config.load import config_yaml, from_mapping
from nolabel.errors import DataError, NolabelError, StorageError, UsageError
from nolabel.runs import checkpoint
from nolabel.runs.checkpoint import load_newest, save
from nolabel.training import loop, resuming, start

ERRORS = (errno.ESTALE, errno.EIO, errno.EACCES, errno.EMFILE)
FILES = ("manifest.json", "model.safetensors", "optim.safetensors", "state.json")


def tree(folder: Path) -> dict[str, bytes]:
    """The files below a folder but for the lock, with their content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture(scope="module")
def stopped(tiny: dict[str, Any], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps, killed after step 6: checkpoints of 2, 4 and 6."""
    out = tmp_path_factory.mktemp("resuming") / "run"
    settings = tiny | {"steps": 8, "checkpoint_every": 2, "keep_checkpoints": 4}
    nolabel.train("dino-small", pictures / "train", out, **settings)
    shutil.rmtree(out / "checkpoints" / "step-00000008")
    status = json.loads((out / "status.json").read_text()) | {"state": "running", "step": 6}
    (out / "status.json").write_text(json.dumps(status))
    return out


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "run")


def starts(run: Path) -> list[int]:
    return [e["step"] for e in nolabel.Run(run).events() if e["event"] == "start"]


def refused(run: Path, kind: type[NolabelError], match: str, **options: Any) -> str:
    """Resume; it must be refused without a trace. Gives the message."""
    before = tree(run)
    with pytest.raises(kind, match=match) as caught:
        nolabel.resume(run, **options)
    assert tree(run) == before
    assert len(str(caught.value).splitlines()) <= 5
    return str(caught.value)


def unreadable(monkeypatch: pytest.MonkeyPatch, path: Path, number: int, times: int = 10**9) -> list[str]:
    """Let the opening of one file fail; gives a list that grows with each failure."""
    failed: list[str] = []

    def around(real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, *arguments: Any, **more: Any) -> Any:
            if isinstance(file, (str, os.PathLike)) and os.fspath(file) == str(path) and len(failed) < times:
                failed.append(str(file))
                raise OSError(number, os.strerror(number), str(file))
            return real(file, *arguments, **more)

        return opened

    monkeypatch.setattr(builtins, "open", around(builtins.open))
    monkeypatch.setattr(io, "open", around(io.open))
    return failed


# ---- what cannot be read is not damaged


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
def test_a_checkpoint_that_cannot_be_read_is_left_alone(
    name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(tmp_path, step, checkpoint.Checkpoint({}, {}, {"step": step}), keep=3)
    before = tree(tmp_path)
    failed = unreadable(monkeypatch, tmp_path / "step-00000002" / name, number, times=1)
    with pytest.raises(StorageError, match=f"(?s){name} cannot be read.*nothing was renamed"):
        load_newest(tmp_path)
    assert len(failed) == 1 and tree(tmp_path) == before
    found, damaged = load_newest(tmp_path)  # the second time it can be
    assert found is not None and found.state["step"] == 2 and not damaged


@pytest.mark.parametrize("error", [FileNotFoundError("No such file or directory: x"), RuntimeError("cannot mmap")])
def test_tensors_that_cannot_be_opened_are_not_damaged(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors and torch have such errors, whatever the reason is; the hashes were right a moment before."""
    save(tmp_path, 1, checkpoint.Checkpoint({}, {}, {}), keep=3)

    def failing(path: Path) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "load_file", failing)
    with pytest.raises(StorageError, match="nothing was renamed"):
        load_newest(tmp_path)
    assert os.listdir(tmp_path) == ["step-00000001"]


def test_a_folder_that_cannot_be_listed_is_not_empty(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, folder = os.scandir, run / "checkpoints"

    def closed(path: Any = ".") -> Any:
        if os.fspath(path) == str(folder):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", closed)
        with pytest.raises(StorageError, match="checkpoints cannot be read"):
            nolabel.resume(run)
    assert starts(run) == [0] and len(nolabel.Run(run).metrics()) > 3
    assert nolabel.resume(run).status()["state"] == "done"
    assert starts(run) == [0, 6]


@pytest.mark.parametrize(
    "name", ["checkpoints/step-00000006/optim.safetensors", "checkpoints/step-00000006/state.json"]
)
def test_resume_stops_where_the_newest_cannot_be_read(name: str, run: Path) -> None:
    before = tree(run)
    with pytest.MonkeyPatch.context() as patch:
        failed = unreadable(patch, run / name, errno.ESTALE, times=1)
        with pytest.raises(StorageError, match="Stale file handle"):
            nolabel.resume(run)
    assert tree(run) == before
    assert failed and nolabel.resume(run).status()["state"] == "done"
    assert starts(run) == [0, 6]


@pytest.mark.parametrize("name", ["events.jsonl", "status.json", "metrics.jsonl", "bad_files.jsonl"])
def test_logs_that_cannot_be_read_end_a_resume_in_words(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "bad_files.jsonl").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        assert unreadable(patch, run / name, errno.EIO) == []
        with pytest.raises(StorageError, match=f"{name} cannot be read or written"):
            nolabel.resume(run)
    assert starts(run) == [0] and nolabel.Run(run).metrics()[-1]["step"] == 8


def test_a_save_deletes_nothing_because_it_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the one that it has written and cannot read back, nor an earlier one of the same step."""
    for step in (1, 2):
        save(tmp_path, step, checkpoint.Checkpoint({}, {}, {"step": step}), keep=2)
    with pytest.MonkeyPatch.context() as patch:
        assert not unreadable(patch, tmp_path / "step-00000003" / "manifest.json", errno.EIO)
        with pytest.raises(StorageError, match="step 3 could not be written"):
            save(tmp_path, 3, checkpoint.Checkpoint({}, {}, {"step": 3}), keep=2)
        assert sorted(os.listdir(tmp_path)) == [f"step-0000000{step}" for step in (1, 2, 3)]
        with pytest.raises(StorageError, match="step 3 could not be written"):
            save(tmp_path, 3, checkpoint.Checkpoint({}, {}, {"step": 30}), keep=2)
        save(tmp_path, 4, checkpoint.Checkpoint({}, {}, {"step": 4}), keep=2)
    assert sorted(os.listdir(tmp_path)) == [f"step-0000000{step}" for step in (2, 3, 4)], "3 takes nobody's place"
    for step in (4, 3, 2):
        found, _ = load_newest(tmp_path)
        assert found is not None and found.state["step"] == step
        shutil.rmtree(tmp_path / f"step-0000000{step}")


# ---- no checkpoint is left


def forget(run: Path) -> None:
    """As where the disk was too full for the event of a checkpoint."""
    events = [e for e in nolabel.Run(run).events() if e["event"] != "checkpoint"]
    (run / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))


def lose(how: str, run: Path) -> None:
    folder = run / "checkpoints"
    if how == "moved":
        folder.rename(run.parent / "away")
    elif how == "not mounted":
        shutil.rmtree(folder)
        folder.mkdir()
    elif how == "set aside":
        for path in list(folder.iterdir()):
            path.rename(path.with_name(path.name + ".corrupt"))
        forget(run)
        shutil.rmtree(run / "weights")
    elif how == "and the events do not say that there were some":
        shutil.rmtree(folder)
        forget(run)
    elif how == "and no events":
        shutil.rmtree(folder)
        (run / "events.jsonl").unlink()
    elif how == "and neither events nor weights":
        shutil.rmtree(folder)
        shutil.rmtree(run / "weights")
        (run / "events.jsonl").write_bytes(b"")


LOST = (
    "moved", "not mounted", "set aside", "and no events",
    "and neither events nor weights", "and the events do not say that there were some",
)  # fmt: skip


@pytest.mark.parametrize("how", LOST)
def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(how: str, run: Path) -> None:
    lose(how, run)
    message = refused(run, StorageError, "holds no checkpoint")
    assert f"nolabel train --config {run}/config.yaml --out OTHER" in message
    assert nolabel.Run(run).metrics()


def test_a_link_to_a_disk_that_is_away_is_refused(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").symlink_to("/nowhere/checkpoints")
    refused(run, StorageError, "checkpoints is a link to /nowhere/checkpoints")


def test_it_goes_on_once_they_are_back(run: Path) -> None:
    lose("moved", run)
    refused(run, StorageError, "was saved at step 8")
    (run.parent / "away").rename(run / "checkpoints")
    assert nolabel.resume(run).status()["state"] == "done"


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again(run: Path) -> None:
    for path in (run / "checkpoints").glob("*/optim.safetensors"):
        path.write_bytes(b"x")
    message = refused(run, DataError, "No checkpoint of .* is good")
    assert "step-00000006" in message and "--config" in message
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [f"step-0000000{s}" for s in (2, 4, 6)]


def test_a_finished_run_that_is_to_be_longer_does_not_begin_again(run: Path) -> None:
    (run / "status.json").write_text('{"state": "done", "step": 8}')
    shutil.rmtree(run / "checkpoints")
    refused(run, StorageError, "holds no checkpoint", changed={"steps": 9})


def test_what_was_killed_before_its_first_checkpoint_begins_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its events say that there was none; its metrics are of steps that come again. Other files stay."""
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "weights")
    forget(run)
    (run / "notes.jsonl").write_text("mine")
    before = nolabel.Run(run).metrics()
    assert nolabel.resume(run).status()["state"] == "done"
    assert "stopped before its first checkpoint" in capsys.readouterr().err
    assert (run / "notes.jsonl").read_text() == "mine"
    assert [r["step"] for r in nolabel.Run(run).metrics()] == [r["step"] for r in before]


def test_there_is_nothing_to_replay_without_a_capture(run: Path) -> None:
    before = tree(run)
    with pytest.raises(DataError, match="nothing to repeat"):
        start.replay(run)
    assert tree(run) == before


# ---- the settings of a checkpoint


def edit(run: Path, **values: Any) -> None:
    """Change config.yaml by hand."""
    settings = nolabel.Run(run).config()
    for name, value in values.items():
        group, _, field = name.rpartition("__")
        (settings[group] if group else settings)[field or name] = value
    (run / "config.yaml").write_text(config_yaml(from_mapping(settings, "config.yaml")))


EDITS = {
    "seed": ({"seed": 5}, "another seed: the saved state .*\nseed: 0 -> 5"),
    "batch_size": ({"batch_size": 4, "micro_batch": 4}, "another batch_size: .*\nbatch_size: 8 -> 4"),
    "network": ({"backbone": "vit_small_patch16_224"}, "another backbone: "),
    "mean": ({"mean": [0.5, 0.5, 0.5]}, "another mean: "),
    "head": ({"method__num_prototypes": 32}, r"another method\.num_prototypes: .*\nmethod\.num_prototypes: 64 -> 32"),
    "lr": ({"optim__lr": 0.9}, r"Another optim\.lr gives .*\noptim\.lr: .* -> 0\.9\nAdd --allow-change"),
    "temperature": ({"method__student_temp": 0.9}, r"Another method\.student_temp gives "),
    "micro_batch": ({"micro_batch": 4}, r"Another micro_batch gives "),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_config_is_a_change_like_any_other(name: str, run: Path) -> None:
    values, match = EDITS[name]
    edit(run, **values)
    refused(run, UsageError, match)
    if match.startswith("another"):
        refused(run, UsageError, match, allow_change=True)


def test_an_edited_config_that_is_allowed_is_recorded_and_asked_once(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until the next checkpoint events.jsonl remembers it; then the checkpoint does."""
    first = nolabel.Run(run).config()["optim"]["lr"]
    edit(run, optim__lr=0.9, workers=1, keep_checkpoints=9)
    refused(run, UsageError, r"optim\.lr: .* -> 0\.9")
    step = loop.training_step
    monkeypatch.setattr(loop, "training_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        nolabel.resume(run, allow_change=True)
    monkeypatch.setattr(loop, "training_step", step)
    lines = [e for e in nolabel.Run(run).events() if e["event"] == "start"][-1]["changed_on_resume"]
    assert [line.split(":")[0] for line in lines] == ["keep_checkpoints", "optim.lr", "workers"]
    assert "changed: optim.lr" in capsys.readouterr().err
    edit(run, optim__lr=0.7)
    refused(run, UsageError, r"optim\.lr: .* -> 0\.7")
    edit(run, optim__lr=0.9)
    assert nolabel.resume(run).status()["state"] == "done"
    newest = json.loads((run / "checkpoints" / "step-00000008" / "state.json").read_text())
    assert newest["settings"]["optim"]["lr"] == 0.9
    nolabel.resume(run, {"steps": 9, "optim": {"lr": first}}, allow_change=True)
    edit(run, optim__lr=0.9)
    refused(run, UsageError, r"optim\.lr: .* -> 0\.9", changed={"steps": 10})


def test_an_option_that_puts_an_edit_right_is_no_change(run: Path) -> None:
    edit(run, seed=5)
    assert nolabel.resume(run, {"seed": 0}).status()["state"] == "done"
    assert nolabel.Run(run).config()["seed"] == 0


def test_a_run_that_was_moved_has_not_changed(run: Path, tmp_path: Path, pictures: Path) -> None:
    other = run.rename(tmp_path / "elsewhere")
    data = shutil.copytree(pictures / "train", tmp_path / "data")
    edit(other, data=str(data))
    assert nolabel.resume(other).status()["state"] == "done"
    (line,) = [e for e in nolabel.Run(other).events() if e["event"] == "start"][-1]["changed_on_resume"]
    assert line == f"data: {pictures / 'train'} -> {data}"


def test_another_method_is_refused(run: Path, tiny: dict[str, Any]) -> None:
    settings = nolabel.Run(run).config() | {"method_name": "simclr", "method": {}}
    (run / "config.yaml").write_text(config_yaml(from_mapping(settings, "config.yaml")))
    refused(run, UsageError, "method_name: DINOConfig -> SimCLRConfig", allow_change=True)


def test_a_damaged_checkpoint_is_not_asked_for_its_settings(run: Path) -> None:
    """Its numbers are not what was written: those of the one before count."""
    path = run / "checkpoints" / "step-00000006" / "state.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))
    assert nolabel.resume(run).status()["state"] == "done"
    assert starts(run) == [0, 4]


def test_what_the_number_of_processes_changes_is_no_edit(run: Path) -> None:
    """A micro-batch that was the share of each of two processes is all of the batch in one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resuming, "processes_before", lambda _: 1)
        edit(run, micro_batch=4)
        nolabel.resume(run, allow_change=True)
        patch.setattr(resuming, "processes_before", lambda _: 2)
        nolabel.resume(run, {"steps": 9})
    assert nolabel.resume(run, {"steps": 10}).status()["step"] == 10


def test_data_that_moved(run: Path, pictures: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(pictures), str(pictures / "before")))
    refused(run, DataError, r"is not there any more(.|\n)*name its new place: nolabel resume .*run NEW_DATA")
