"""What a run leaves on the disk: checkpoints, weights, status; and how it comes back from there."""

import contextlib
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import timm
import torch

from nolabel import __version__, distributed, run
from nolabel.checkpoint import Checkpoint, load_newest, optimizer_tensors, restore_optimizer, save
from nolabel.config import differences
from nolabel.data.images import BadFile, fingerprint
from nolabel.errors import DataError, NolabelError
from nolabel.job import Job, Record, recipe_config, say
from nolabel.report import report
from nolabel.signals import Stopped
from nolabel.weights import save_weights


def checkpoint(job: Job, done: int, window: Sequence[Record]) -> None:
    """Save the state after `done` steps and the weights. All processes call it, the main one writes."""
    if distributed.is_main():
        state = {
            "step": done,
            "window": [{k: float(v) for k, v in record.items()} for record in window],
            "scaler": job.scaler.state_dict(),
            "images": fingerprint(job.stream.images),
            "total_steps": job.total_steps,
            "bad_slots": sorted(job.bad_slots),
            "world_size": distributed.world_size(),
            "threads": torch.get_num_threads(),
            "versions": _versions(),
        }
        model = {name: tensor.contiguous() for name, tensor in job.method.state_dict().items()}
        tensors = Checkpoint(model, optimizer_tensors(job.optimizer, job.method), state)
        save(job.out / "checkpoints", done, tensors, job.config.keep_checkpoints)
        net, c = job.method.backbone, job.config
        save_weights(net, job.out / "weights", c.method.image_size, c.mean, c.std)
        run.append_event(job.out, "checkpoint", step=done)
    distributed.barrier()


def restore(job: Job) -> tuple[int, list[Record]]:
    """Load the newest good checkpoint into the job; gives the number of finished steps and the open log window."""
    found: Checkpoint | None = None
    for main_first in (True, False):  # the main process sets damaged checkpoints aside before the others look
        if distributed.is_main() == main_first:
            found, damaged = load_newest(job.out / "checkpoints")
            for line in damaged:
                say(f"warning: {line}")
                run.append_event(job.out, "damaged", detail=line)
        distributed.barrier()
    if found is None:
        for path in job.out.glob("*.jsonl") if distributed.is_main() else ():
            if path.name != "events.jsonl":
                path.unlink()
        return 0, []
    if found.state["images"] != fingerprint(job.stream.images):
        raise DataError(
            f"{job.config.data} has changed since the run started: files were added, removed or renamed.\n"
            "Put the old state back, or start a new run on the new images."
        )
    for name, old in found.state["versions"].items():
        if _versions().get(name) != old:
            say(f"warning: the checkpoint was written with {name} {old}, this is {_versions().get(name)}")
    job.method.load_state_dict(found.model)
    restore_optimizer(job.optimizer, job.method, found.optim)
    if found.state["scaler"]:
        job.scaler.load_state_dict(found.state["scaler"])
    for record in run.Run(job.out).bad_files():
        job.bad[record["name"]] = BadFile(**record)
    job.bad_slots.update(found.state["bad_slots"])
    if distributed.is_main():
        run.cut_jsonl(job.out / "metrics.jsonl", found.state["step"])
    return found.state["step"], list(found.state["window"])


@contextlib.contextmanager
def recorded(job: Job, first_step: int) -> Iterator[None]:
    """Around the loop: whatever happens in it, events.jsonl and status.json say how it began and how it ended."""
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
