"""Start a run, resume one, or replay a bad step."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nolabel import console, distributed, files
from nolabel.config import (
    TrainConfig,
    find_device,
    local_path,
    local_paths,
    resolve,
    shortened_warmups,
    split_over_processes,
    update,
)
from nolabel.config.load import config_yaml, load_run
from nolabel.data.images import scan
from nolabel.errors import DataError
from nolabel.files import check_no_links
from nolabel.progress import report_line
from nolabel.runs import folder
from nolabel.training import resuming
from nolabel.training import state as state_module
from nolabel.training.events import recording
from nolabel.training.interrupts import catch_signals
from nolabel.training.job import Record, build
from nolabel.training.loop import train_to_the_end
from nolabel.training.step import on_device, training_step
from nolabel.training.trackers import check_tracker


def train(config: TrainConfig[Any], overwrite: bool = False) -> folder.Run:
    """Train from step 0 into the new run folder `config.out`. Blocks; returns the finished run."""
    config = local_paths(config)
    check_tracker(config.tracker)
    device, out = find_device(config.device), Path(config.out)
    with console.kept_stderr(), distributed.process_group(device):
        _warn_of_launcher()
        if distributed.is_main():
            folder.check_apart(out, {"DATA": config.data, "--labels": config.labels})
            folder.check_new(out, overwrite)
        images = scan(config.data, config.subfolder)
        asked, config = config, resolve(config, len(images.names), distributed.world_size(), device)
        job = build(config, images, device)
        state_module.check_room(job)
        for line in shortened_warmups(asked, config):
            report_line(f"warning: {line}")
        with (
            folder.claimed(out, overwrite) if distributed.is_main() else contextlib.nullcontext(),
            catch_signals() as signal_number,  # also while the end is written down
        ):
            if distributed.is_main():
                files.write_text(out / "config.yaml", config_yaml(job.config))
            with recording(job, 0):
                train_to_the_end(job, 0, [], signal_number)
    return folder.Run(out)


def resume(path: str | Path, changed: Mapping[str, Any] | None = None, allow_change: bool = False) -> folder.Run:
    """Go on with the run at `path` from its newest checkpoint, or from step 0 if it never had one.

    `changed` are settings to change from here on, groups as mappings; an edited config.yaml is treated in the same way.
    `config/changes.py` has the settings that may change, and those that need `allow_change`; UsageError for the others.
    A finished run is left as it is, unless it is now longer.
    """
    path = local_path(str(path))
    with folder.storage(Path(path)):
        run = folder.Run(path)
        check_no_links(run.path, folder.WRITTEN)
        status = run.status()["state"]
    if status == "done" and not changed:
        return run
    before = load_run(run.path)
    config = local_paths(update(before, dict(changed or {})))
    with folder.storage(run.path):
        state = resuming.last_state(run.path)
        lines = resuming.agreed_changes(run, before, config, state, allow_change)
    check_tracker(config.tracker)
    device = find_device(config.device)
    with console.kept_stderr(), distributed.process_group(device):
        _warn_of_launcher()
        # A micro-batch that is given now is kept, even if it equals the one before.
        processes = None if "micro_batch" in (changed or {}) else resuming.processes_before(state)
        if not Path(config.data).exists():
            raise DataError(
                f"The images of this run are not at {config.data} any more.\n"
                f"If they have moved: nolabel resume {run.path} NEWPLACE"
            )
        job = build(split_over_processes(config, processes), scan(config.data, config.subfolder), device)
        job = replace(job, written=config)
        with folder.locked(run.path) if distributed.is_main() else contextlib.nullcontext():
            with folder.storage(run.path):
                first_step, window = state_module.restore(job, allow_change=allow_change)
            killed_at_the_end = first_step == job.total_steps and status != "done"
            if first_step >= job.total_steps and not killed_at_the_end:
                return run
            if distributed.is_main():
                with folder.storage(run.path):
                    folder.mark(run.path)
                if config != before:
                    files.write_text(run.path / "config.yaml", config_yaml(config))
            with catch_signals() as signal_number, recording(job, first_step, lines):
                if killed_at_the_end:  # after the last checkpoint: the weights may be older than it
                    state_module.checkpoint(job, first_step, window)
                else:
                    train_to_the_end(job, first_step, window, signal_number)
    return run


def _warn_of_launcher() -> None:
    words = distributed.check_launcher()
    if words:
        report_line(f"warning: {words}")


def replay(path: str | Path) -> Record:
    """Repeat the step that was not finite and stopped the run at `path`, from RUN/capture; returns its values."""
    run = folder.Run(path)
    check_no_links(run.path, folder.WRITTEN)
    config = load_run(run.path)
    device = find_device(config.device)
    job = build(config, scan(config.data, config.subfolder), device)
    step, _ = state_module.restore(job, "capture")
    batch = next(job.batches(range(step, step + 1), 0))
    return training_step(job, on_device(job, batch), job.clock(step))
