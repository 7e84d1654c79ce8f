"""Recovery from steps that are not finite, and notes on loss spikes."""

from collections.abc import Sequence

import torch

from nolabel import distributed
from nolabel.progress import report_line
from nolabel.runs import folder
from nolabel.training import state
from nolabel.training.events import record_event
from nolabel.training.job import Job, Record
from nolabel.training.stability import (
    SMALLEST_SCALE,
    SPIKE_STEPS,
    SPIKE_WINDOW,
    Unstable,
    decide,
    describe_bad_step,
    find_spike,
)
from nolabel.training.state import restore


def roll_back(job: Job, why: Unstable) -> tuple[int, list[Record]]:
    """Go back to the newest checkpoint, and leave out the batches up to the bad step. Returns step and window."""
    distributed.barrier()
    with folder.storage(job.out):
        first_step, window = restore(job)
    left_out = why.step + 1 - first_step
    job.history.offset += left_out
    job.history.rollbacks += 1
    job.history.bad_steps.clear()
    report_line(f"warning: {why}\nBack to step {first_step}, without the {left_out} batches that led here.")
    if distributed.is_main():
        record_event(job, "roll back", step=first_step, reason=str(why), offset=job.history.offset)
    return first_step, window


def judge_steps(job: Job, steps: Sequence[tuple[int, Record]]) -> None:
    """Check that steps were finite, and note spikes of the loss. Raises Unstable where too many were not finite."""
    if not steps:
        return
    ok = torch.stack([torch.as_tensor(values["ok"]) for _, values in steps]).tolist()
    for (step, values), fine in zip(steps, ok, strict=True):
        if fine:
            _note_spike(job, step, float(values["loss"]))
            continue
        job.history.bad_steps.append(step)
        bad = [n for n, p in job.method.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        message = describe_bad_step(values, bad, step, job.config.precision)
        if distributed.is_main():
            record_event(job, "skipped", step=step, reason=message)
        decision = decide(job.history.bad_steps, step, job.history.rollbacks)
        if decision != "go on":
            raise Unstable(step, message, roll_back=decision == "roll back")
    if job.scaler.is_enabled() and job.scaler.get_scale() < SMALLEST_SCALE:
        raise Unstable(
            steps[-1][0],
            f"The loss scale of fp16 has fallen to {job.scaler.get_scale():.2g} at step {steps[-1][0]}: "
            "every scaled gradient is infinite.\nUse --precision bf16 or fp32, or a lower --optim.lr.",
        )


def _note_spike(job: Job, step: int, loss: float) -> None:
    """Warn where the loss has jumped up and stays there, and keep the checkpoint from before."""
    job.history.losses.append(loss)
    del job.history.losses[: -SPIKE_WINDOW - SPIKE_STEPS]
    jump = find_spike(job.history.losses)
    if jump is None:
        return
    job.history.losses.clear()  # later losses are compared with the new level
    first = step + 1 - SPIKE_STEPS
    kept = state.keep_before(job, first)
    line = f"The loss jumped from {jump[0]:.4g} to {jump[1]:.4g} at step {first}. "
    line += f"The state before is kept in {kept}" if kept else "There is no checkpoint from before"
    report_line(f"warning: {line}; if it does not come down, lower --optim.lr or --optim.clip-grad.")
    if distributed.is_main():
        record_event(job, "spike", step=first, reason=line)
