"""Save the state of a run as a checkpoint, and restore it."""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from nolabel import distributed, files, marks
from nolabel.data.bad_files import BadFile
from nolabel.errors import DataError, StorageError
from nolabel.optim.state import optimizer_tensors, restore_optimizer
from nolabel.progress import report_line
from nolabel.runs.checkpoint import Checkpoint, has_good, keep_newest, load_newest, save
from nolabel.runs.folder import Run, append_event
from nolabel.training.events import optional_write, record_event, versions
from nolabel.training.job import Job, Record, settings
from nolabel.training.resuming import begin_at_zero
from nolabel.weights.timm import save_weights

MAX_FAILED_SAVES = 3
"""Checkpoints that may fail in a row before the run ends."""


_MEASURED = {"ok", "seconds", "waited"}  # what every record of a step holds


ROOM = 2.2
"""States that must fit on the disk before step 1: at least two are kept, and weights and logs need room, too."""


def check_room(job: Job) -> None:
    """Raise StorageError before training, not hours later, if the disk of the run has no room for `ROOM` states."""
    trained = sum(p.numel() * p.element_size() for p in job.method.parameters() if p.requires_grad)
    slots = 2 if job.config.optim.name == "adamw" else 1  # tensors that the optimizer keeps per weight
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
    failed = job.history.failed_saves
    if distributed.is_main():
        try:
            _write(job, job.out / "checkpoints", done, window, job.config.keep_checkpoints)
            net, c = job.method.backbone, job.config
            interpolation = job.method.views()[0].interpolation
            save_weights(net, job.out / "weights", c.method.image_size, c.mean, c.std, interpolation, c.range)
        except (StorageError, OSError, SafetensorError) as error:
            failed.append(str(error))
            report_line(f"warning: {error}. Training goes on; {len(failed)} of {MAX_FAILED_SAVES} such failures.")
            record_event(job, "save failed", step=done, reason=str(error))
        else:
            failed.clear()
            record_event(job, "checkpoint", step=done)
    lost = len(failed) >= MAX_FAILED_SAVES or (bool(failed) and done == job.total_steps)
    if distributed.any_process(lost, job.device):
        raise StorageError(
            f"The state after step {done} could not be saved: {failed[-1] if failed else ''}\n"
            f"Make room or repair {job.out}, then `nolabel resume {job.out}` goes on from the last checkpoint."
        )
    distributed.barrier()


def keep_before(job: Job, step: int) -> str:
    """Keep the newest checkpoint up to `step` from being purged; returns its path, empty where there is none."""
    if not distributed.is_main():
        return ""
    with optional_write("the checkpoint before the spike"):
        kept = keep_newest(job.out / "checkpoints", step)
        return f"checkpoints/{kept.name}" if kept else ""
    return ""


def capture(job: Job, step: int) -> None:
    """Save to RUN/capture the state before `step`, which was not finite; `training.start.replay` repeats it."""
    if distributed.is_main():
        with contextlib.suppress(StorageError):
            _write(job, job.out / "capture", step, [], 1)
            record_event(job, "capture", step=step, folder="capture")


def has_checkpoint(job: Job) -> bool:
    """Whether there is a state to roll back to; the main process looks."""
    good = distributed.is_main() and has_good(job.out / "checkpoints")
    return distributed.any_process(good, job.device)


def _write(job: Job, folder: Path, done: int, window: Sequence[Record], keep: int) -> None:
    state = {
        "step": done,
        "window": [{k: float(v) for k, v in record.items()} for record in window],
        "scaler": job.scaler.state_dict(),
        "images": job.fingerprint,
        "settings": settings(job.written),
        "total_steps": job.total_steps,
        "bad_slots": sorted(job.history.bad_slots),
        "bad_steps": job.history.bad_steps,
        "rollbacks": job.history.rollbacks,
        "offset": job.history.offset,
        "world_size": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    model = {name: tensor.contiguous() for name, tensor in job.method.state_dict().items()}
    tensors = Checkpoint(model, optimizer_tensors(job.optimizer, job.method), state)
    save(folder, done, tensors, keep)


def restore(job: Job, folder: str = "checkpoints", allow_change: bool = False) -> tuple[int, list[Record]]:
    """Load the newest good checkpoint of RUN/`folder` into the job.

    Returns the number of finished steps and the records since the last log line. DataError when the images have changed
    since, unless `allow_change`, and where every checkpoint is damaged. StorageError where they cannot be read, or are
    gone.
    """
    newest: Checkpoint | None = None
    for main_first in (True, False):  # the main process sets damaged checkpoints aside before the others look
        if distributed.is_main() == main_first:
            newest, damaged = load_newest(job.out / folder)
            for line in damaged if newest else ():
                report_line(f"warning: {line}")
                append_event(job.out, "damaged", detail=line)
        distributed.barrier()
    if newest is None:
        if folder != "checkpoints":
            raise DataError(f"{job.out / folder} holds no state that is good, so there is nothing to repeat.")
        begin_at_zero(Run(job.out), damaged)
        return 0, []
    if distributed.is_main():
        marks.remove_temporary(job.out)  # left by a process that was killed while it wrote
    _check_images(job, newest, allow_change)
    try:
        _check_numbers(newest.state)
        _fill(job, newest)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise DataError(
            f"The newest checkpoint in {job.out / folder} does not fit the settings of this run: {first_line(error)}\n"
            "It is that of another run, or was changed. Move it away: resume then uses the one before."
        ) from error
    for record in Run(job.out).bad_files():
        name, reason, detail = (str(record.get(key, "")) for key in ("name", "reason", "detail"))
        job.history.bad_files[name] = BadFile(name, reason, detail, 0)
    if distributed.is_main() and folder == "checkpoints":
        files.cut_jsonl(job.out / "metrics.jsonl", newest.state["step"])
    return newest.state["step"], list(newest.state["window"])


def _check_numbers(state: Mapping[str, Any]) -> None:
    """ValueError where a number of a state, which may be a stranger's, is of another kind than `_write` gives it."""
    for name in ("step", "rollbacks", "offset"):
        if not files.is_step(state[name] if name == "step" else state.get(name, 0)):
            raise ValueError(f"its {name} is {state[name]!r:.40}")
    steps, names = state.get("bad_steps", []), state["bad_slots"]
    if not (isinstance(steps, list) and all(map(files.is_step, steps)) and isinstance(names, list)):
        raise ValueError(f"its bad steps and files are {steps!r:.40} and {names!r:.40}")
    window = state["window"]
    if not isinstance(window, list) or not all(isinstance(r, dict) and r.keys() >= _MEASURED for r in window):
        raise ValueError(f"its window of records is {window!r:.40}")
    if not all(isinstance(value, int | float) for record in window for value in record.values()):
        raise ValueError("its window of records holds what is no number")


def _fill(job: Job, saved: Checkpoint) -> None:
    """Put the tensors and numbers of a checkpoint into the job."""
    state = saved.state
    if state["world_size"] != distributed.world_size():
        report_line(
            f"warning: {distributed.world_size()} processes go on with a run of {state['world_size']}: "
            "the same images and views; sums round otherwise, drop path draws otherwise"
        )
    for name, old in state["versions"].items():
        if versions().get(name) != old:
            report_line(f"warning: the checkpoint was written with {name} {old}, this is {versions().get(name)}")
    job.method.load_state_dict(saved.model)
    restore_optimizer(job.optimizer, job.method, saved.optim)
    if state["scaler"]:
        job.scaler.load_state_dict(state["scaler"])
    job.history.bad_slots.update(state["bad_slots"])
    job.history.bad_steps[:] = state.get("bad_steps", [])
    job.history.rollbacks = state.get("rollbacks", 0)
    job.history.offset = state.get("offset", 0)


def first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _check_images(job: Job, saved: Checkpoint, allow_change: bool) -> None:
    if saved.state.get("images") == job.fingerprint:
        return
    what = f"{job.config.data} has changed since the run started: files were added, removed or renamed"
    if not allow_change:
        raise DataError(
            f"{what}.\nPut the old state back, start a new run, or add --allow-change to go on with the new images."
        )
    report_line(f"warning: {what}; the order of the images is another one from here on")
