"""The training loop. Read this file first.

One step, top to bottom: views of a batch of images -> loss -> gradient -> clip -> `before_step` -> optimizer ->
`after_step`. `step.py` has the step, `methods/base.py` defines a method; `methods/dino.py` is the example to read next.

A `Job` holds the parts of a run (settings, method, optimizer, stream of views); its `History` holds what changes.
`resolved(x)` is the value of a setting that may be `auto`; `resolve` has replaced it before the first step.

Three properties come from the shape of the loop. First, every schedule and all randomness are functions of the step,
so a resumed run repeats the uninterrupted one bit by bit. Second, a step whose loss or gradient is not finite moves
nothing that remembers: no weight, no teacher, no center; `recovery.py` decides what follows. Third, a method never sees
the loop.

"Host" is the program on the CPU, "device" is where tensors are. On a GPU the host runs ahead of the device, and waits
for it only where it reads a value.
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
    """Run the loop. Roll back to the last checkpoint and go on where too many steps were not finite and it may help."""
    with tracked(job.config.tracker, job.out):  # copies the metrics to TensorBoard, if asked
        while True:
            try:
                return loop(job, first_step, records, signal_number)
            except Unstable as error:
                if not error.roll_back or not state.has_checkpoint(job):
                    state.capture(job, error.step)  # keeps the state before the bad step, to repeat it later
                    raise
                first_step, records = recovery.roll_back(job, error)


def loop(job: Job, first_step: int, records: list[Record], signal_number: Callable[[], int]) -> None:
    """Take all steps from `first_step` on; measure, log and save between them.

    `records` are the steps of a resumed run since its last log line. `signal_number` returns the number of the signal
    that came from the system, such as Ctrl-C, or 0.
    """
    config, steps = job.config, range(first_step, job.total_steps)
    with (
        watch_processes(job.out, first_step) as pulse,  # each beat shows the other processes that this one is alive
        progress(first_step, job.total_steps, distributed.is_main()) as show,  # writes the live line
    ):
        pulse.beat(first_step, "evaluating")
        # The main process has the fixed images that the network is measured on, and the results so far.
        watch = monitor.open_monitor(job) if distributed.is_main() else None
        if watch and first_step == 0:
            monitor.evaluate_now(job, watch, 0)
        stream = job.batches(steps, resolved(config.workers), pin=job.device.type == "cuda")
        window, saved_at = Window(records), time.monotonic()
        for step in steps:
            pulse.beat(step)
            take_step(job, stream, window, step)
            done, due = step + 1, what_is_due(job, step + 1)
            # Reading `ok` makes the host wait for the device. On a GPU it is read only where the host waits anyway.
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
            if due.save or number or is_late(saved_at):
                pulse.beat(done, "saving")
                recovery.judge_steps(job, window.take_unread())  # only a state that is known to be good is saved
                state.checkpoint(job, done, window.records)
                saved_at = time.monotonic()
            if number and not due.last:
                raise Stopped(number, config.out)


def take_step(job: Job, stream: Iterator[Batch], window: "Window", step: int) -> None:
    """Wait for the batch of a step, take the step, and add its values and times to the window."""
    started = time.monotonic()
    batch = next(stream)
    waited = time.monotonic() - started
    with enough_memory(job.config, step):  # if memory runs out, the error names the settings to lower
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
        """Add a step with its times: seconds in all, seconds of waiting for images, milliseconds per image."""
        self.started = started
        loading = {"waited": waited, "decode_ms": batch.decode_ms, "crop_ms": batch.crop_ms}
        self.records.append({**values, "seconds": time.monotonic() - started, **loading})
        self.unread.append((step, values))

    def end_step(self) -> None:
        """Measure the time of the last step again: now the device is done, because the host has waited for it."""
        self.records[-1]["seconds"] = time.monotonic() - self.started

    def take_records(self) -> list[Record]:
        """Return the records and begin a new window."""
        taken, self.records = self.records, []
        return taken

    def take_unread(self) -> list[tuple[int, Record]]:
        """Return the unread steps; they count as read from here on."""
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


def is_late(saved_at: float) -> bool:
    """Whether a checkpoint is due by the clock. Always False in several processes: their clocks differ."""
    return not distributed.active() and time.monotonic() - saved_at > CHECKPOINT_SECONDS


def asked_to_stop(job: Job, signal_number: Callable[[], int], due: Due) -> int:
    """The number of the signal that asks to stop, or 0.

    Several processes agree at log steps only: at every step it would cost a synchronisation. A process that got no
    signal itself stops as for SIGTERM.
    """
    if not distributed.active():
        return signal_number()
    if not due.log:
        return 0
    number = signal_number()
    return (number or signal.SIGTERM) if distributed.any_process(number != 0, job.device) else 0
