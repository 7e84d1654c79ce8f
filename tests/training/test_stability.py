"""Bad steps are skipped, then a checkpoint is gone back to, then the run stops with what repeats the step."""

import errno
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import nolabel
from nolabel import files
from nolabel.errors import NumericError, StorageError, UsageError
from nolabel.training import loop, monitor, recovery, start
from nolabel.training import state as training_state
from nolabel.training import step as training_step
from nolabel.training.job import History, Job
from nolabel.training.stability import (
    SMALLEST_SCALE,
    SPIKE_STEPS,
    SPIKE_WINDOW,
    Unstable,
    decide,
    describe_bad_step,
    find_spike,
)

STEPS = 8
Poison = Callable[[Callable[[Job, int], bool]], None]


@pytest.mark.parametrize(
    ("bad", "rollbacks", "expected"),
    [
        ([7], 0, "go on"),
        ([5, 6, 7], 0, "go on"),
        ([4, 5, 6, 7], 0, "roll back"),
        ([4, 5, 6, 7], 1, "stop"),
        ([3, 4, 5, 7], 0, "go on"),
        (list(range(0, 2000, 200)), 0, "go on"),
        (list(range(0, 1000, 90))[:11], 0, "roll back"),
        (list(range(0, 1000, 90))[:10], 0, "go on"),
    ],
)
def test_verdicts(bad: list[int], rollbacks: int, expected: str) -> None:
    assert decide(bad, bad[-1], rollbacks) == expected


def test_the_facts_name_the_tensor_and_what_to_try() -> None:
    values: dict[str, Tensor | float] = {"loss": torch.tensor(torch.nan), "grad_norm": torch.tensor(2.0), "lr": 0.1}
    text = describe_bad_step(values, ["student.head.weight", "x"], 12, "bf16")
    assert "step 12" in text and "2 tensors, first student.head.weight" in text and "bf16" in text
    assert "--optim.lr" in text and len(text.splitlines()) <= 5


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Makes the images of chosen steps not a number."""
    step = loop.training_step

    def arrange(chosen: Callable[[Job, int], bool]) -> None:
        def poisoned(job: Job, views: list[Tensor], clock: Any) -> Any:
            spoilt = [v * torch.nan for v in views] if chosen(job, clock.step) else views
            return step(job, spoilt, clock)

        for user in (loop, start):
            monkeypatch.setattr(user, "training_step", poisoned)

    return arrange


def settings(tiny: dict[str, Any], pictures: Path, out: Path, **more: Any) -> dict[str, Any]:
    return tiny | {"data": pictures / "train", "out": out, "steps": STEPS, "checkpoint_every": 2, "log_every": 2} | more


def events(out: Path, name: str) -> list[dict[str, Any]]:
    return [e for e in nolabel.Run(out).events() if e["event"] == name]


def state(out: Path) -> list[bytes]:
    newest = max((out / "checkpoints").glob("step-*"))
    return [(newest / name).read_bytes() for name in ("model.safetensors", "optim.safetensors")]


def test_a_few_bad_steps_are_skipped_and_reported(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, poison: Poison
) -> None:
    poison(lambda _, step: step in (2, 5, 6))
    run = nolabel.train("dino-small", **settings(tiny, pictures, tmp_path / "run"))
    assert run.status()["state"] == "done"
    assert [e["step"] for e in events(run.path, "skipped")] == [2, 5, 6]
    logged = [r for r in run.metrics() if "loss" in r]
    assert {r["step"]: r.get("skipped", 0) for r in logged} == {2: 0, 4: 1, 6: 1, 8: 1}
    assert all(r["loss"] is not None for r in logged), "a bad step spoils the mean"


def test_four_in_a_row_go_back_to_the_checkpoint_and_leave_the_batches_out(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, poison: Poison, capfd: pytest.CaptureFixture[str]
) -> None:
    poison(lambda job, step: job.history.offset == 0 and step >= 3)
    run = nolabel.train("dino-small", **settings(tiny, pictures, tmp_path / "run"))
    assert run.status()["state"] == "done"
    (back,) = events(run.path, "roll back")
    assert (back["step"], back["offset"]) == (6, 1), "steps 3 to 6 were bad, the checkpoint of step 6 is the newest"
    assert "Back to step 6, without the 1 batches" in capfd.readouterr().err
    assert [r["step"] for r in run.metrics() if "loss" in r] == [2, 4, 6, 8]


def test_a_run_that_went_back_resumes_bit_equal(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(job: Job, step: int) -> bool:
        return job.history.offset == 0 and step >= 1

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    poison(bad)
    nolabel.train("dino-small", **settings(tiny, pictures, whole))
    assert events(whole, "roll back")
    step = loop.training_step

    def dying(job: Job, views: Any, clock: Any) -> Any:
        if clock.step == 7 and job.history.offset:
            raise KeyboardInterrupt
        return step(job, views, clock)

    monkeypatch.setattr(loop, "training_step", dying)
    with pytest.raises(KeyboardInterrupt):
        nolabel.train("dino-small", **settings(tiny, pictures, broken))
    monkeypatch.setattr(loop, "training_step", step)
    nolabel.resume(broken)
    assert state(broken) == state(whole)
    monkeypatch.undo()
    nolabel.train("dino-small", **settings(tiny, pictures, tmp_path / "clean"))
    assert state(tmp_path / "clean") != state(whole), "leaving batches out must show"


def test_a_run_that_stays_bad_stops_with_what_repeats_the_step(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    poison(lambda _, step: step >= 1)
    with pytest.raises(NumericError, match="not finite at step 7") as caught:
        nolabel.train("dino-small", **settings(tiny, pictures, out, steps=20))
    assert len(str(caught.value).splitlines()) <= 5
    run = nolabel.Run(out)
    assert (run.status()["state"], run.status()["exit_code"]) == ("failed", 70)
    assert len(events(out, "roll back")) == 1
    assert len(list((out / "capture").glob("step-*"))) == 1
    assert start.replay(out)["ok"] == 0, "the capture repeats the step"
    monkeypatch.undo()
    assert start.replay(out)["ok"] == 1, "without the poison the same step is fine"


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, poison: Poison
) -> None:
    poison(lambda *_: True)
    with pytest.raises(NumericError, match="not finite at step 3"):
        nolabel.train("dino-small", **settings(tiny, pictures, tmp_path / "run", checkpoint_every=100))
    assert not events(tmp_path / "run", "roll back")


@pytest.mark.parametrize("kind", [StorageError("full"), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("failures", [2, 3])
def test_a_full_disk_costs_a_checkpoint_and_three_the_run(
    tiny: dict[str, Any],
    pictures: Path,
    tmp_path: Path,
    failures: int,
    kind: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    save, calls = training_state.save, []

    def failing(*args: Any) -> Path:
        calls.append(args)
        if 2 <= len(calls) < 2 + failures:
            raise kind
        return save(*args)

    monkeypatch.setattr(training_state, "save", failing)
    out = tmp_path / "run"
    arguments = settings(tiny, pictures, out)
    if failures == 3:
        with pytest.raises(StorageError, match="nolabel resume"):
            nolabel.train("dino-small", **arguments)
        assert nolabel.Run(out).status()["exit_code"] == 74
        assert [p.name for p in (out / "checkpoints").glob("step-*")] == ["step-00000002"], "the good one stays"
        return
    assert nolabel.train("dino-small", **arguments).status()["state"] == "done"
    assert "Training goes on; 2 of 3" in capfd.readouterr().err
    assert len(events(out, "save failed")) == 2


def test_logs_that_cannot_be_written_end_nothing(
    tiny: dict[str, Any],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        step = loop.training_step

        def fills_the_disk(job: Job, views: Any, clock: Any) -> Any:
            if clock.step == 1:
                patch.setattr(files, "append_jsonl", full)
                patch.setattr(monitor, "report", full)
            if clock.step == 6:
                patch.undo()
            return step(job, views, clock)

        patch.setattr(loop, "training_step", fills_the_disk)
        run = nolabel.train("dino-small", **settings(tiny, pictures, tmp_path / "run"))
    assert run.status()["state"] == "done"
    said = capfd.readouterr().err
    assert "metrics.jsonl or status.json could not be written (No space left on device); training goes on" in said
    assert [r["step"] for r in run.metrics() if "loss" in r] == [8]


def test_features_that_are_not_finite_end_nothing(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the second of three looks; with labels, so that k-NN has none either."""
    embed, looks = monitor.embed, list[int]()

    def overflows(net: Any, *rest: Any) -> Any:
        looks.append(len(looks))
        if len(looks) == 2:
            raise NumericError("3 of 8 images have features that are not finite: damaged weights.")
        return embed(net, *rest)

    monkeypatch.setattr(monitor, "embed", overflows)
    run = nolabel.train("dino-small", **settings(tiny, pictures, tmp_path / "run", eval_every=4))
    assert run.status()["state"] == "done" and len(looks) == 3
    seen = [r["rankme"] for r in run.metrics() if "rankme" in r]
    assert seen[1] is None and seen[0] is not None and seen[2] is not None


def test_full_disk_is_reported_before_training(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = {"method": tiny["method"] | {"freeze_last_layer": 0}}  # all weights move, all have a moment
    config = tiny | {"data": pictures / "train", "steps": 1} | moving
    nolabel.train("dino-small", out=tmp_path / "first", **config)
    saved = next((tmp_path / "first" / "checkpoints").glob("step-*"))
    state = sum(file.stat().st_size for file in saved.glob("*.safetensors"))
    usage = type(shutil.disk_usage(tmp_path))
    for free, enough in ((2.0 * state, False), (2.5 * state, True)):
        monkeypatch.setattr(training_state.shutil, "disk_usage", lambda _, free=free: usage(0, 0, int(free)))
        out = tmp_path / "deep" / str(enough)
        if enough:
            nolabel.train("dino-small", out=out, **config)
        else:
            with pytest.raises(StorageError, match="MiB free"):
                nolabel.train("dino-small", out=out, **config)
        assert out.exists() == enough


# ---- spikes of the loss


def falling(seed: int, steps: int) -> list[float]:
    """A loss as in training: it falls from 9 to 5, with noise of 1 to 5 % and heavy tails, alike for some steps."""
    choice = random.Random(seed)
    noise, found, drift = choice.choice((0.01, 0.03, 0.05)), [], 0.0
    for step in range(steps):
        drift = 0.8 * drift + choice.gauss(0, noise) * (3 if choice.random() < 0.02 else 1)
        found.append((5 + 4 * math.exp(-step / 300)) * (1 + drift))
    return found


def alarms(losses: list[float]) -> list[int]:
    window = SPIKE_WINDOW + SPIKE_STEPS
    return [step for step in range(len(losses)) if find_spike(losses[max(0, step + 1 - window) : step + 1])]


def test_planted_spikes_are_found_and_nothing_else() -> None:
    for seed in range(20):
        losses = falling(seed, 500)
        assert not alarms(losses), f"seed {seed}"
        at, height = 150 + 13 * seed, 2 + seed / 5
        spiked = [x * (height if at <= step < at + 20 else 1) for step, x in enumerate(losses)]
        assert alarms(spiked)[0] == at + SPIKE_STEPS - 1, f"seed {seed}"
        single = [x * (height if at <= step < at + SPIKE_STEPS - 1 else 1) for step, x in enumerate(losses)]
        assert not alarms(single), "four bad batches are no spike"


@pytest.mark.slow
def test_no_spike_is_seen_in_a_hundred_thousand_clean_steps() -> None:
    assert not [seed for seed in range(100, 200) if alarms(falling(seed, 1000))]


def test_a_spike_is_reported_and_the_checkpoint_before_it_kept(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr("nolabel.training.stability.SPIKE_WINDOW", 8)
    step = loop.training_step

    def jumping(job: Job, views: Any, clock: Any) -> Any:
        values = step(job, views, clock)
        return values | {"loss": values["loss"] * (3 if 9 <= clock.step < 16 else 1)}

    monkeypatch.setattr(loop, "training_step", jumping)
    run = nolabel.train("dino-small", **settings(tiny, pictures, tmp_path / "run", steps=20, eval_every=100))
    (event,) = events(run.path, "spike")
    assert event["step"] == 9 and "kept in checkpoints/kept-00000008" in event["reason"]
    assert event["reason"] in capfd.readouterr().err
    names = {path.name for path in (run.path / "checkpoints").iterdir()}
    assert "kept-00000008" in names and "step-00000008" not in names


# ---- memory, and the scale of fp16


def test_a_device_without_memory_is_reported_and_nothing_has_moved(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tiny, pictures, tmp_path / "run", eval_every=100)
    nolabel.train("dino-small", **config | {"out": tmp_path / "whole"})
    forward, calls = training_step._forward_backward, []

    def full(*arguments: Any) -> Any:
        found = forward(*arguments)
        calls.append(found)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(training_step, "_forward_backward", full)
        with pytest.raises(UsageError, match=r"hold step 4: batch 8, micro-batch 8.*(?s:.)*--micro-batch 4 ") as caught:
            nolabel.train("dino-small", **config)
    assert len(str(caught.value).splitlines()) <= 5
    nolabel.resume(tmp_path / "run")
    assert state(tmp_path / "run") == state(tmp_path / "whole")


@pytest.mark.parametrize(("scale", "dies"), [(SMALLEST_SCALE / 2, True), (SMALLEST_SCALE, False)])
def test_a_loss_scale_that_only_falls_stops_the_run(scale: float, dies: bool) -> None:
    class Job(NamedTuple):
        scaler: torch.amp.GradScaler
        history: History

    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(torch.zeros(()))  # makes the scale tensor
    job: Any = Job(scaler, History())
    steps = [(7, {"ok": 1.0, "loss": 2.0})]
    if not dies:
        recovery.judge_steps(job, steps)  # type: ignore[arg-type]
        return
    with pytest.raises(Unstable, match=r"loss scale of fp16 has fallen to 3.1e-05 at step 7(?s:.)*bf16") as caught:
        recovery.judge_steps(job, steps)  # type: ignore[arg-type]
    assert caught.value.code == 70
