"""What a run leaves on the disk: checkpoints, weights, status; and how it comes back from there."""

import contextlib
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError

from nolabel import __version__, distributed, run
from nolabel.checkpoint import (
    Checkpoint,
    has_good,
    keep_newest,
    load_newest,
    optimizer_tensors,
    restore_optimizer,
    save,
)
from nolabel.config import differences
from nolabel.data.images import BadFile, fingerprint
from nolabel.errors import DataError, NolabelError, StorageError
from nolabel.job import Job, Record, recipe_config, say
from nolabel.report import report
from nolabel.signals import Stopped
from nolabel.stability import Unstable
from nolabel.weights import save_weights

MAX_FAILED_SAVES = 3
"""Checkpoints that may fail in a row before the run ends."""
ROOM = 2.2
"""States that must fit on the disk before step 1: two are kept at least, and weights and logs lie beside them."""


def check_room(job: Job) -> None:
    """StorageError where the disk that is to hold the run has no room for `ROOM` states: said now, not hours later."""
    trained = sum(p.numel() * p.element_size() for p in job.method.parameters() if p.requires_grad)
    slots = 2 if job.config.optim.name == "adamw" else 1  # what the optimizer keeps of each weight
    state = sum(t.numel() * t.element_size() for t in job.method.state_dict().values()) + slots * trained
    place = job.out.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < ROOM * state:
        raise StorageError(
            f"{place} has {free / 2**20:,.0f} MiB free. A state of this run takes {state / 2**20:,.0f} MiB, "
            f"and {ROOM} of them must fit.\nMake room, or name another disk with --out."
        )


def checkpoint(job: Job, done: int, window: Sequence[Record]) -> None:
    """Save the state after `done` steps and the weights. All processes call it, the main one writes.

    A failure is a warning, and the next interval tries again; StorageError after three in a row, or on the last step.
    """
    if distributed.is_main():
        try:
            _write(job, job.out / "checkpoints", done, window, job.config.keep_checkpoints)
            net, c = job.method.backbone, job.config
            save_weights(net, job.out / "weights", c.method.image_size, c.mean, c.std)
        except (StorageError, OSError, SafetensorError) as error:
            job.failed_saves.append(str(error))
            say(f"warning: {error}. Training goes on; {len(job.failed_saves)} of {MAX_FAILED_SAVES} such failures.")
            event(job, "save failed", step=done, reason=str(error))
        else:
            job.failed_saves.clear()
            event(job, "checkpoint", step=done)
    lost = len(job.failed_saves) >= MAX_FAILED_SAVES or (bool(job.failed_saves) and done == job.total_steps)
    if distributed.any_process(lost, job.device):
        raise StorageError(
            f"The state after step {done} could not be saved: {job.failed_saves[-1] if job.failed_saves else ''}\n"
            f"Make room or repair {job.out}, then `nolabel resume {job.out}` goes on from the last checkpoint."
        )
    distributed.barrier()


def keep_before(job: Job, step: int) -> str:
    """Keep the newest checkpoint up to `step` from being purged; gives where, an empty string where there is none."""
    if not distributed.is_main():
        return ""
    with tolerant("the checkpoint before the spike"):
        kept = keep_newest(job.out / "checkpoints", step)
        return f"checkpoints/{kept.name}" if kept else ""
    return ""


def capture(job: Job, step: int) -> None:
    """Keep in RUN/capture what repeats `step`, which was not finite: `nolabel.train.replay` does it."""
    if distributed.is_main():
        with contextlib.suppress(StorageError):
            _write(job, job.out / "capture", step, [], 1)
            event(job, "capture", step=step, folder="capture")


def has_checkpoint(job: Job) -> bool:
    """Whether there is a state to roll back to; the main process looks."""
    found = distributed.is_main() and has_good(job.out / "checkpoints")
    return distributed.any_process(found, job.device)


def processes_before(folder: Path) -> int | None:
    """How many processes wrote the newest checkpoint of the run, as far as it says; None where there is none."""
    states = (run.read_json(path / "state.json") for path in sorted(folder.glob("checkpoints/step-*"), reverse=True))
    found = next((state for state in states if state), {}).get("world_size")
    return found if isinstance(found, int) and found > 0 else None


def roll_back(job: Job, why: Unstable) -> tuple[Job, int, list[Record]]:
    """Back to the newest checkpoint; the batches from there to the bad step are left out of the rest of the run."""
    distributed.barrier()
    job, first_step, window = restore(job)
    offset = job.stream.offset + why.step + 1 - first_step
    job.bad_steps.clear()
    job = job._replace(stream=job.stream._replace(offset=offset), rollbacks=job.rollbacks + 1)
    say(f"warning: {why}\nBack to step {first_step}, without the {why.step + 1 - first_step} batches that led here.")
    if distributed.is_main():
        event(job, "roll back", step=first_step, reason=str(why), offset=offset)
    return job, first_step, window


def event(job: Job, name: str, **fields: Any) -> None:
    """A line in events.jsonl. What cannot be written is said on stderr: a full disk ends no training."""
    with tolerant("events.jsonl"):
        run.append_event(job.out, name, **fields)


@contextlib.contextmanager
def tolerant(what: str) -> Iterator[None]:
    """Around the writing of what training can do without."""
    try:
        yield
    except OSError as error:
        say(f"warning: {what} could not be written ({error.strerror}); training goes on")


def _write(job: Job, folder: Path, done: int, window: Sequence[Record], keep: int) -> None:
    state = {
        "step": done,
        "window": [{k: float(v) for k, v in record.items()} for record in window],
        "scaler": job.scaler.state_dict(),
        "images": _fingerprint(job),
        "total_steps": job.total_steps,
        "bad_slots": sorted(job.bad_slots),
        "bad_steps": job.bad_steps,
        "rollbacks": job.rollbacks,
        "offset": job.stream.offset,
        "world_size": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "versions": _versions(),
    }
    model = {name: tensor.contiguous() for name, tensor in job.method.state_dict().items()}
    tensors = Checkpoint(model, optimizer_tensors(job.optimizer, job.method), state)
    save(folder, done, tensors, keep)


def restore(job: Job, folder: str = "checkpoints", allow_change: bool = False) -> tuple[Job, int, list[Record]]:
    """Load the newest good checkpoint of RUN/`folder` into the job.

    Gives the job as it then was, the number of finished steps and the open log window. DataError when the images have
    changed since, unless `allow_change`.
    """
    found: Checkpoint | None = None
    for main_first in (True, False):  # the main process sets damaged checkpoints aside before the others look
        if distributed.is_main() == main_first:
            found, damaged = load_newest(job.out / folder)
            for line in damaged:
                say(f"warning: {line}")
                run.append_event(job.out, "damaged", detail=line)
        distributed.barrier()
    for path in job.out.glob(".weights.*.tmp") if distributed.is_main() else ():
        shutil.rmtree(path, ignore_errors=True)  # of a process that was killed while it wrote the weights
    if found is None:
        for path in job.out.glob("*.jsonl") if distributed.is_main() else ():
            if path.name != "events.jsonl":
                path.unlink()
        return job, 0, []
    _check_images(job, found, allow_change)
    try:
        _fill(job, found)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise DataError(
            f"The newest checkpoint in {job.out / folder} does not fit the settings of this run: {_first_line(error)}\n"
            "It is that of another run, or was changed. Move it away: resume then uses the one before."
        ) from error
    for record in run.Run(job.out).bad_files():
        name, reason, detail = (str(record.get(key, "")) for key in ("name", "reason", "detail"))
        job.bad[name] = BadFile(name, reason, detail, 0)
    if distributed.is_main() and folder == "checkpoints":
        run.cut_jsonl(job.out / "metrics.jsonl", found.state["step"])
    stream = job.stream._replace(offset=found.state.get("offset", 0))
    job = job._replace(stream=stream, rollbacks=found.state.get("rollbacks", 0))
    return job, found.state["step"], list(found.state["window"])


def _fill(job: Job, found: Checkpoint) -> None:
    """Put what a checkpoint holds into the job."""
    state = found.state
    if state["world_size"] != distributed.world_size():
        say(
            f"warning: {distributed.world_size()} processes go on with a run of {state['world_size']}: "
            "the same images and views; sums round otherwise, drop path draws otherwise"
        )
    for name, old in state["versions"].items():
        if _versions().get(name) != old:
            say(f"warning: the checkpoint was written with {name} {old}, this is {_versions().get(name)}")
    job.method.load_state_dict(found.model)
    restore_optimizer(job.optimizer, job.method, found.optim)
    if state["scaler"]:
        job.scaler.load_state_dict(state["scaler"])
    job.bad_slots.update(state["bad_slots"])
    job.bad_steps[:] = state.get("bad_steps", [])


def _fingerprint(job: Job) -> str:
    if not job.fingerprints:
        job.fingerprints.append(fingerprint(job.stream.images))
    return job.fingerprints[0]


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _check_images(job: Job, found: Checkpoint, allow_change: bool) -> None:
    if found.state.get("images") == _fingerprint(job):
        return
    what = f"{job.config.data} has changed since the run started: files were added, removed or renamed"
    if not allow_change:
        raise DataError(
            f"{what}.\nPut the old state back, start a new run, or add --allow-change to go on with the new images."
        )
    say(f"warning: {what}; the order of the images is another one from here on")


@contextlib.contextmanager
def recorded(job: Job, first_step: int, changes: Sequence[str] = ()) -> Iterator[None]:
    """Around the loop: whatever happens in it, events.jsonl and status.json say how it began and how it ended.

    `changes` are settings that a resumed run has otherwise.
    """
    if not distributed.is_main():
        yield
        return
    config = job.config
    places: dict[str, Any] = {
        "data": config.data,
        "subfolder": config.subfolder,
        "out": config.out,
        "labels": config.labels,
    }
    start: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "changed": differences(config, replace(recipe_config(config.recipe), **places)) if config.recipe else {},
        "versions": _versions(),
        "host": platform.node(),
        "system": _system(job),
    }
    for line in changes:
        say(f"changed: {line}")
    start |= {"changed_on_resume": list(changes)} if changes else {}
    run.append_event(job.out, "start", step=first_step, **start)
    run.write_status(job.out, "running", first_step)
    try:
        yield
    except BaseException as error:
        state = "stopped" if isinstance(error, (Stopped, KeyboardInterrupt)) else "failed"
        code = error.code if isinstance(error, NolabelError) else 1
        step = run.Run(job.out).status()["step"]
        with contextlib.suppress(OSError):  # a full disk must not hide the error itself
            run.append_event(job.out, state, step=step, reason=str(error))
            run.write_status(job.out, state, step, str(error), code)
            report(run.Run(job.out))
        raise
    run.append_event(job.out, "done", step=job.total_steps)
    run.write_status(job.out, "done", job.total_steps, exit_code=0)
    report(run.Run(job.out))


def _system(job: Job) -> dict[str, str | int]:
    device = torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else platform.processor() or "cpu"
    return {"platform": platform.platform(), "device": device, "threads": torch.get_num_threads()}


def _versions() -> dict[str, str]:
    return {
        "nolabel": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }
