"""The training loop. Read this file first.

One step, top to bottom: views of a batch of images -> loss -> gradient -> clip -> `before_step` -> optimizer ->
`after_step`. `step.py` has the step, `methods/base.py` defines a method; `methods/dino.py` is the example to read next.

A `Job` holds the parts of a run (settings, method, optimizer, stream of views); its `History` holds what changes.
`resolved(x)` is the value of a setting that may be `auto`; `resolve` has replaced it before the first step.

Three properties come from the shape of the loop. Every schedule and all randomness are functions of the step, so a
resumed run repeats the uninterrupted one bit by bit. A step whose loss or gradient is not finite moves nothing that
remembers: no weight, no teacher, no center; `recovery.py` decides what follows. And nothing flows back: a method never
sees the loop.
"""

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from nolabel import distributed
from nolabel.config import resolved
from nolabel.data.loader import Batch
from nolabel.progress import progress
from nolabel.training import feeding, metrics_log, monitor, recovery, state
from nolabel.training.heartbeat import watch_processes
from nolabel.training.interrupts import Stopped
from nolabel.training.job import Job, Record
from nolabel.training.memory import enough_memory
from nolabel.training.stability import Unstable
from nolabel.training.step import on_device, training_step
from nolabel.training.trackers import tracked

CHECKPOINT_SECONDS = 600
"""Seconds after which a checkpoint is due, even if the interval in steps has not passed."""


def train_to_the_end(job: Job, first_step: int, records: list[Record], signal_number: Callable[[], int]) -> None:
    """Run the loop, once more from the last checkpoint where a roll-back may help."""
    with tracked(job.config.tracker, job.out):
        while True:
            try:
                return loop(job, first_step, records, signal_number)
            except Unstable as error:
                if not error.roll_back or not state.has_checkpoint(job):
                    state.capture(job, error.step)
                    raise
                first_step, records = recovery.roll_back(job, error)


def loop(job: Job, first_step: int, records: list[Record], signal_number: Callable[[], int]) -> None:
    """Take all steps from `first_step` on; measure, log and save between them.

    `records` are the steps since the last log line of a resumed run. `signal_number` gives the signal that came, or 0.
    """
    config, steps = job.config, range(first_step, job.total_steps)
    with (
        watch_processes(job.out, first_step) as pulse,  # the other processes see that this one lives
        progress(first_step, job.total_steps, distributed.is_main()) as show,  # the live line
    ):
        pulse.beat(first_step, "evaluating")
        # The fixed images that the network is measured on, with the signals so far.
        watch = monitor.open_monitor(job) if distributed.is_main() else None
        if watch and first_step == 0:
            monitor.evaluate_now(job, watch, 0)
        stream = job.batches(steps, resolved(config.workers), job.device.type == "cuda")
        window, saved = Window(records), time.monotonic()
        for step in steps:
            pulse.beat(step)
            take_step(job, stream, window, step)
            done, due = step + 1, what_is_due(job, step + 1)
            # Reading `ok` on the host waits for the device: each step on a CPU, else where the host waits anyway.
            if job.device.type == "cpu" or due.log or due.save:
                recovery.judge_steps(job, window.take_unread())
                window.end_step()
            if due.log:
                show(done, metrics_log.log(job, watch, window.take_records(), done))
            if due.evaluate:
                pulse.beat(done, "evaluating")
                if watch and (measured := monitor.evaluate_now(job, watch, done)):
                    show(done, measured)
            number = asked_to_stop(job, signal_number, due)
            if due.save or number or is_late(saved):
                pulse.beat(done, "saving")
                recovery.judge_steps(job, window.take_unread())  # a state is saved only when it is known to be good
                state.checkpoint(job, done, window.records)
                saved = time.monotonic()
            if number and not due.last:
                raise Stopped(number, config.out)


def take_step(job: Job, stream: Iterator[Batch], window: "Window", step: int) -> None:
    """Wait for the batch of a step, take the step, and note both in the window."""
    started = time.monotonic()
    batch = next(stream)
    waited = time.monotonic() - started
    with enough_memory(job.config, step):  # names the settings to lower, if memory runs out
        values = training_step(job, on_device(job, batch), job.clock(step))
    window.add(step, values, batch, started, waited)
    feeding.note_batch(job, batch, step + 1)


@dataclass
class Window:
    """The records since the last log line, and the steps whose `ok` the host has not read yet."""

    records: list[Record]
    unread: list[tuple[int, Record]] = field(default_factory=list)
    started: float = 0.0
    """Time at which the last step began."""

    def add(self, step: int, values: Record, batch: Batch, started: float, waited: float) -> None:
        """Add a step with its times: seconds in all and waited for images, milliseconds per image."""
        self.started = started
        loading = {"waited": waited, "decode_ms": batch.decode_ms, "crop_ms": batch.crop_ms}
        self.records.append({**values, "seconds": time.monotonic() - started, **loading})
        self.unread.append((step, values))

    def end_step(self) -> None:
        """Measure the last step again, now with the time of the device: the host has waited for it."""
        self.records[-1]["seconds"] = time.monotonic() - self.started

    def take_records(self) -> list[Record]:
        """Give the records and begin a new window."""
        taken, self.records = self.records, []
        return taken

    def take_unread(self) -> list[tuple[int, Record]]:
        """Give the unread steps, which count as read from here on."""
        taken, self.unread = self.unread, []
        return taken


class Due(NamedTuple):
    """Tasks that are due after a step."""

    last: bool
    log: bool
    evaluate: bool
    save: bool


def what_is_due(job: Job, done: int) -> Due:
    """The tasks that are due after `done` steps; after the last step, all of them."""
    last, config = done == job.total_steps, job.config
    every = resolved(config.log_every), resolved(config.eval_every), resolved(config.checkpoint_every)
    return Due(last, *(last or done % steps == 0 for steps in every))


def is_late(saved: float) -> bool:
    """Whether a checkpoint is due by the clock. Not in several processes: their clocks differ."""
    return not distributed.active() and time.monotonic() - saved > CHECKPOINT_SECONDS


def asked_to_stop(job: Job, signal_number: Callable[[], int], due: Due) -> int:
    """The number of the signal that asks to stop, or 0.

    Processes agree at log steps: asking at every step would cost a synchronisation.
    """
    if not distributed.active():
        return signal_number()
    if not due.log:
        return 0
    number = signal_number()
    return (number or signal.SIGTERM) if distributed.any_process(number != 0, job.device) else 0
