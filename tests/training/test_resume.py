"""A run that is stopped, killed or crashed and then resumed ends bit-equal to one that was never interrupted."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nolabel
from nolabel.data import loader
from nolabel.data.images import scan
from nolabel.data.packing import Packing, pack
from nolabel.errors import DataError, UsageError
from nolabel.health.diagnosis import diagnose
from nolabel.health.facts import RunFacts
from nolabel.runs import folder
from nolabel.training import job, loop, resuming, start
from nolabel.training.interrupts import Stopped

STEPS = 8  # of 3 per epoch: the third epoch is left unfinished


class Crash(BaseException):
    """Stands for a killed process: nothing in the product catches it to save something."""


def settings(tiny: dict[str, Any], pictures: Path, out: Path, **more: Any) -> dict[str, Any]:
    return tiny | {"data": pictures / "train", "out": out, "steps": STEPS, "checkpoint_every": 2} | more


def weights(run: Path) -> bytes:
    return (run / "weights" / "model.safetensors").read_bytes()


def losses(run: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in nolabel.Run(run).metrics() if "loss" in r]


def state(run: Path) -> list[bytes]:
    newest = max((run / "checkpoints").glob("step-*"))
    return [(newest / name).read_bytes() for name in ("model.safetensors", "optim.safetensors")]


@pytest.fixture(scope="module")
def whole(tiny: dict[str, Any], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    nolabel.train("dino-small", **settings(tiny, pictures, out))
    return out


@pytest.fixture
def crash_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the loop die at the beginning of a step."""
    step = loop.training_step

    def arrange(number: int) -> None:
        def dying(job: Any, views: Any, clock: Any) -> Any:
            if clock.step == number:
                raise Crash
            return step(job, views, clock)

        monkeypatch.setattr(loop, "training_step", dying)

    return arrange


def test_a_run_on_shards_is_that_on_the_folder(
    whole: Path, tiny: dict[str, Any], pictures: Path, tmp_path: Path, crash_at: Callable[[int], None], monkeypatch: Any
) -> None:
    """Started on the folder, gone on with from shards in the middle of the second epoch."""
    data, out = shutil.copytree(pictures / "train", tmp_path / "data"), tmp_path / "run"
    crash_at(4)
    with pytest.raises(Crash):
        nolabel.train("dino-small", **settings(tiny, pictures, out) | {"data": data})
    monkeypatch.undo()
    pack(data, tmp_path / "shards", Packing())
    shutil.rmtree(data)
    (tmp_path / "shards").rename(data)
    nolabel.resume(out)
    assert weights(out) == weights(whole)
    assert losses(out) == losses(whole)


@pytest.mark.parametrize("number", [0, 1, 3, 4, 7])
def test_crash_and_resume_is_bit_equal(
    number: int,
    whole: Path,
    tiny: dict[str, Any],
    pictures: Path,
    tmp_path: Path,
    crash_at: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    crash_at(number)
    with pytest.raises(Crash):
        nolabel.train("dino-small", **settings(tiny, pictures, out))
    assert nolabel.Run(out).status()["state"] == "failed"
    monkeypatch.undo()
    nolabel.resume(out)
    assert weights(out) == weights(whole)
    assert state(out) == state(whole)
    assert losses(out) == losses(whole)
    assert nolabel.Run(out).status()["state"] == "done"


def test_the_comparison_can_fail(whole: Path, tiny: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    nolabel.train("dino-small", **settings(tiny, pictures, out, seed=1))
    assert weights(out) != weights(whole)
    assert losses(out) != losses(whole)


def test_resume_repeats_the_drawing_of_a_lost_checkpoint(
    whole: Path, tiny: dict[str, Any], pictures: Path, tmp_path: Path, crash_at: Callable[[int], None], monkeypatch: Any
) -> None:
    out = tmp_path / "run"
    crash_at(7)
    with pytest.raises(Crash):
        nolabel.train("dino-small", **settings(tiny, pictures, out))
    monkeypatch.undo()
    newest = max((out / "checkpoints").glob("step-*"))
    tensors = bytearray((newest / "model.safetensors").read_bytes())
    tensors[-5] ^= 1
    (newest / "model.safetensors").write_bytes(tensors)
    nolabel.resume(out)
    assert (newest.parent / (newest.name + ".corrupt")).is_dir()
    assert any(e["event"] == "damaged" for e in nolabel.Run(out).events())
    assert weights(out) == weights(whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(
    workers: int, whole: Path, tiny: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    nolabel.train("dino-small", **settings(tiny, pictures, out, workers=workers))
    assert weights(out) == weights(whole)


@pytest.mark.parametrize(("recipe", "size"), [("simclr-small", {"method": {"size": 32}}), ("dino-small", {})])
def test_batchnorm_networks_resume_too(
    recipe: str, size: dict[str, Any], tiny: dict[str, Any], pictures: Path, tmp_path: Path,
    crash_at: Callable[[int], None], monkeypatch: Any,
) -> None:  # fmt: skip
    net = {"backbone": "resnet18", "backbone_args": ["layers=[1,1,1,1]", "channels=[8,16,24,32]"]}
    first, second = (settings(tiny, pictures, tmp_path / name, **net, **size) for name in ("a", "b"))
    nolabel.train(recipe, **first)
    crash_at(5)
    with pytest.raises(Crash):
        nolabel.train(recipe, **second)
    monkeypatch.undo()
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    nolabel.resume(tmp_path / "b")
    assert state(tmp_path / "a") == state(tmp_path / "b")
    fresh = torch.nn.Module.load_state_dict  # a resume that forgets what BatchNorm has seen is noticed
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda net, s: fresh(net, without_statistics(net, s)))
    nolabel.resume(tmp_path / "c")
    assert state(tmp_path / "c") != state(tmp_path / "b")


def without_statistics(net: torch.nn.Module, saved: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return saved | {name: value for name, value in net.state_dict().items() if "running_" in name}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "nolabel", *map(str, arguments)]


def options(tiny: dict[str, Any]) -> list[str]:
    return [
        "--backbone", tiny["backbone"], "--backbone-args", *tiny["backbone_args"],
        *(f"--method.{k.replace('_', '-')}={v}" for k, v in tiny["method"].items()),
        *(f"--{k.replace('_', '-')}={tiny[k]}" for k in ("batch_size", "workers", "threads", "precision", "log_every")),
        "--checkpoint-every", "2", "--eval-every", "1000", "--device", "cpu",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "code", "left"), [(signal.SIGKILL, -9, "running"), (signal.SIGTERM, 143, "stopped")]
)
def test_a_real_process_is_killed(
    number: int, code: int, left: str, tiny: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    steps = 240
    out, twin = tmp_path / "run", tmp_path / "twin"
    arguments = command("train", "dino-small", pictures / "train", "--out", out, "--steps", steps, *options(tiny))
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (out / "checkpoints" / "LATEST").exists() and time.monotonic() < deadline:
            if (out / "checkpoints").is_dir() and any((out / "checkpoints").glob("step-*")):
                break
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert nolabel.Run(out).status()["state"] == left
    assert 0 < nolabel.Run(out).status()["step"] < steps
    # A shorter twin shows that the interrupted run goes on as the uninterrupted one would.
    for path in (out, twin):
        if path == twin:
            nolabel.train("dino-small", **settings(tiny, pictures, twin, steps=steps, eval_every=1000))
        else:
            nolabel.resume(path)
    assert state(out) == state(twin)


def test_a_finished_run_is_left_alone(whole: Path) -> None:
    before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    nolabel.resume(whole)
    assert {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()} == before


def test_changed_data_are_refused(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, crash_at: Callable[[int], None], monkeypatch: Any
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i, source in enumerate(sorted((pictures / "train").rglob("*.png"))):
        (data / f"{i:02}.png").write_bytes(source.read_bytes())
    crash_at(4)
    with pytest.raises(Crash):
        nolabel.train("dino-small", **settings(tiny, pictures, tmp_path / "run", data=data))
    monkeypatch.undo()
    (data / "00.png").unlink()
    with pytest.raises(DataError, match="has changed since the run started"):
        nolabel.resume(tmp_path / "run")


def test_the_sizes_of_the_images_are_read_once(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """And not at each of the four checkpoints: with a million files that takes seconds."""
    asked, real = list[int](), job.fingerprint
    monkeypatch.setattr(job, "fingerprint", lambda images: asked.append(1) or real(images))
    out = tmp_path / "run"
    nolabel.train("dino-small", **settings(tiny, pictures, out))
    assert len(asked) == 1
    nolabel.resume(out, {"steps": STEPS + 1})
    assert len(asked) == 2


def test_a_run_in_use_is_refused(whole: Path, tiny: dict[str, Any], pictures: Path) -> None:
    with folder.locked(whole), pytest.raises(UsageError, match="in use"):
        nolabel.train("dino-small", **settings(tiny, pictures, whole), overwrite=True)
    assert weights(whole)


def test_a_safe_change_is_taken_and_recorded(
    whole: Path, tiny: dict[str, Any], pictures: Path, tmp_path: Path, crash_at: Callable[[int], None], monkeypatch: Any
) -> None:
    out = tmp_path / "run"
    crash_at(5)
    with pytest.raises(Crash):
        nolabel.train("dino-small", **settings(tiny, pictures, out))
    monkeypatch.undo()
    nolabel.resume(out, {"workers": 1, "eval_every": 500, "keep_less": True})
    assert weights(out) == weights(whole)
    assert nolabel.Run(out).config()["eval_every"] == 500
    start = [e for e in nolabel.Run(out).events() if e["event"] == "start"][-1]
    before = nolabel.Run(whole).config()["eval_every"]
    assert start["changed_on_resume"] == [
        f"eval_every: {before} -> 500",
        "keep_less: False -> True",
        "workers: 0 -> 1",
    ]


@pytest.mark.parametrize(("asked", "expected"), [({}, 8), ({"micro_batch": 4}, 4)])
def test_a_micro_batch_that_is_asked_for_on_resume_is_kept(
    asked: dict[str, Any], expected: int, tiny: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Also where it was the share of each of two processes, which one process alone would not keep."""
    out, built = tmp_path / "run", list[int]()
    nolabel.train("dino-small", **settings(tiny, pictures, out, steps=2, micro_batch=4))
    build = start.build

    def seen(config: Any, *rest: Any) -> Any:
        built.append(config.micro_batch)
        return build(config, *rest)

    monkeypatch.setattr(start, "build", seen)
    monkeypatch.setattr(resuming, "processes_before", lambda _: 2)
    nolabel.resume(out, {"steps": 4} | asked)
    assert built == [expected]


def test_a_finished_run_goes_on_when_it_is_to_be_longer(tiny: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    nolabel.train("dino-small", **settings(tiny, pictures, out, steps=2))
    before = weights(out)
    run = nolabel.resume(out, {"steps": 4})
    assert run.status() | {"state": "done", "step": 4} == run.status()
    assert weights(out) != before


def test_a_change_of_the_method_needs_permission(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, crash_at: Callable[[int], None], monkeypatch: Any
) -> None:
    out = tmp_path / "run"
    crash_at(5)
    with pytest.raises(Crash):
        nolabel.train("dino-small", **settings(tiny, pictures, out))
    monkeypatch.undo()
    before = (out / "config.yaml").read_bytes()
    for changed, message in (
        ({"optim": {"lr": 1e-3}, "method": {"teacher_temp": 0.02}}, "Another method.teacher_temp and optim.lr gives"),
        ({"method": {"num_prototypes": 512}}, "cannot be resumed with another method.num_prototypes"),
        ({"seed": 7}, "cannot be resumed with another seed"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            nolabel.resume(out, changed)
        assert len(str(caught.value).splitlines()) <= 5
    with pytest.raises(UsageError, match="num_prototypes"):
        nolabel.resume(out, {"method": {"num_prototypes": 512}}, allow_change=True)
    assert (out / "config.yaml").read_bytes() == before
    assert nolabel.resume(out, {"optim": {"lr": 1e-3}}, allow_change=True).status()["state"] == "done"
    assert nolabel.Run(out).config()["optim"]["lr"] == 1e-3


def test_changed_images_may_be_allowed(
    tiny: dict[str, Any], tmp_path: Path, pictures: Path, crash_at: Callable[[int], None], monkeypatch: Any,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(pictures / "train", data)
    crash_at(5)
    with pytest.raises(Crash):
        nolabel.train("dino-small", **settings(tiny, pictures, out) | {"data": data})
    monkeypatch.undo()
    one = next(data.rglob("*.png"))
    shutil.copy(one, one.with_name("another.png"))
    with pytest.raises(DataError, match="--allow-change"):
        nolabel.resume(out)
    assert nolabel.resume(out, allow_change=True).status()["state"] == "done"
    assert "the order of the images is another one from here on" in capfd.readouterr().err


def without_settings(path: Path) -> None:
    """Make a checkpoint as earlier versions wrote them."""
    state, manifest = (json.loads((path / name).read_text()) for name in ("state.json", "manifest.json"))
    del state["settings"]
    (path / "state.json").write_text(text := json.dumps(state))
    facts = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest | {"files": manifest["files"] | {"state.json": facts}}))


def test_a_checkpoint_of_another_run_is_reported(
    whole: Path, tiny: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    method = tiny["method"] | {"num_prototypes": 32}
    nolabel.train("dino-small", **settings(tiny, pictures, out, steps=2) | {"method": method})
    shutil.copytree(whole / "checkpoints" / "step-00000006", out / "checkpoints" / "step-00000006")
    before = weights(out)
    with pytest.raises(UsageError, match=r"(?s)method.num_prototypes: 64 -> 32.*that of another run") as refused:
        nolabel.resume(out, {"steps": 8})
    without_settings(out / "checkpoints" / "step-00000006")
    with pytest.raises(DataError, match=r"(?s)does not fit the settings of this run.*another run") as caught:
        nolabel.resume(out, {"steps": 8})
    assert max(len(str(error.value).splitlines()) for error in (refused, caught)) <= 5
    assert weights(out) == before
    shutil.rmtree(out / "checkpoints" / "step-00000006")
    assert nolabel.resume(out, {"steps": 4}).status()["state"] == "done"


def test_damaged_logs_do_not_keep_a_run_from_going_on(
    whole: Path, tiny: dict[str, Any], pictures: Path, tmp_path: Path, crash_at: Callable[[int], None], monkeypatch: Any
) -> None:
    out = tmp_path / "run"
    crash_at(5)
    with pytest.raises(Crash):
        nolabel.train("dino-small", **settings(tiny, pictures, out))
    monkeypatch.undo()
    (out / "status.json").write_bytes(b"")  # as after a power cut
    for name in ("metrics", "events", "bad_files"):
        with open(out / f"{name}.jsonl", "ab") as file:
            file.write(b'{"step": "x"}\n{"name": 3}\n{"name": "a"}\n{"event": "alarm"}\n\xff\n{"step":')
    assert nolabel.resume(out).status()["state"] == "done"
    assert state(out) == state(whole) and losses(out) == losses(whole)
    assert [e["event"] for e in nolabel.Run(out).events() if "event" in e].count("start") == 2


def test_signal_codes() -> None:
    assert Stopped(signal.SIGINT, "r").code == 130
    assert Stopped(signal.SIGTERM, "r").code == Stopped(signal.SIGUSR1, "r").code == 143


def test_no_image_before_the_step_is_read(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 90 % of an epoch: the position is a number, not something to be replayed."""
    stream = loader.Stream(scan(pictures, "train"), (loader.View(16, (0.3, 1.0)),), 0, 2)
    whole = list(loader.batches(stream, range(12), 0))
    asked: list[int] = []
    read = loader.read

    def counted(images: Any, index: int) -> bytes:
        asked.append(index)
        return read(images, index)

    monkeypatch.setattr(loader, "read", counted)
    rest = list(loader.batches(stream, range(11, 12), 0))
    assert len(asked) == 2
    assert torch.equal(rest[0].views[0], whole[11].views[0])
    assert not torch.equal(rest[0].views[0], whole[10].views[0])


def test_two_processes_do_not_share_a_run(tiny: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    """The first one holds it until it is killed; then another may go on."""
    out = tmp_path / "run"
    nolabel.train("dino-small", **settings(tiny, pictures, out, steps=2))
    hold = "import sys; from pathlib import Path; from nolabel.runs.folder import locked\n"
    hold += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    first = subprocess.Popen([sys.executable, "-c", hold, out], stdin=-1, stdout=-1, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=r"in use by another nolabel process \(pid \d+ on .+\)"):
            nolabel.resume(out, {"steps": 4})
        first.kill()
        first.wait()
        assert nolabel.resume(out, {"steps": 4}).status()["step"] == 4
    finally:
        first.kill()
        first.communicate()


STRANGE: dict[str, dict[str, Any]] = {
    "no window": {"window": None},
    "a text as window": {"window": "abc"},
    "other records": {"window": [{"loss": 1.0}]},
    "no numbers": {"window": [{"ok": "x", "seconds": 1.0, "waited": 0.0}]},
    "a text as offset": {"offset": "x"},
    "below zero": {"rollbacks": -1},
    "texts as steps": {"bad_steps": ["x"]},
    "a step of its own": {"step": 3},
    "a text as step": {"step": "4"},
}


@pytest.mark.parametrize("strange", STRANGE)
def test_a_state_with_right_hashes_and_strange_numbers_is_refused(strange: str, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for path in (out / "checkpoints").iterdir():
        text = json.dumps(json.loads((path / "state.json").read_text()) | STRANGE[strange])
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"]["state.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        (path / "state.json").write_text(text)
        (path / "manifest.json").write_text(json.dumps(manifest))
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    with pytest.raises(DataError) as refused:
        nolabel.resume(out, {"steps": 20})
    assert len(str(refused.value).splitlines()) <= 5
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == names


def test_values_that_are_no_numbers_do_not_reach_the_verdict(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    lines = (
        b'{"step": 1, "loss": "x", "weight_norm": "abc", "lr": [1]}\n{"step": true}\n'
        b'{"step": 2, "distinct_images": "x", "knn_untrained": {}, "weight_norm": ' + b"9" * 4000 + b"}\n"
    )
    (tmp_path / "run" / "metrics.jsonl").write_bytes(lines)
    run = nolabel.Run(tmp_path / "run")
    assert run.metrics() == [{"step": 1}, {"step": 2}]
    diagnose(run.metrics(), RunFacts({}, {}, 64, 512, 0, 1000))
