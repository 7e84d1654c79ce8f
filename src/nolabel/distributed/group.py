"""The group of processes: rank, size, and collective operations; identity without a group."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nolabel.errors import UsageError


def active() -> bool:
    """Whether a process group is running."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Index of this process, 0 without a group."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """Number of processes, 1 without a group."""
    return dist.get_world_size() if active() else 1


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


TORCHRUN = "torchrun --nproc-per-node N -m nolabel train ..."


def number_of(variable: str, default: int) -> int:
    """The whole number in an environment variable of torchrun. UsageError for anything else."""
    text = os.environ.get(variable, str(default))
    if not text.strip().isdecimal():
        raise UsageError(
            f"The environment variable {variable} is {text[:40]!r}: torchrun sets it to a number.\n"
            f"Unset it for one process, or start several with {TORCHRUN}"
        )
    return int(text)


LAUNCHERS = (
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "srun"),
    ("SLURM_NTASKS", "SLURM_PROCID", "SLURM"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "mpirun"),
    ("PMI_SIZE", "PMI_RANK", "mpiexec"),
)
"""Variables of other launchers: number of processes, index of this one, name."""


def check_launcher() -> str:
    """A warning where another launcher than torchrun may have started several processes, else an empty string.

    UsageError where it is certain: each process would train alone, all into one folder.
    """
    if "RANK" in os.environ or active():
        return ""
    for size, index, launcher in LAUNCHERS:
        count, this = os.environ.get(size, ""), os.environ.get(index, "")
        if not count.isdecimal() or int(count) < 2:
            continue
        words = (
            f"{launcher} runs {count} tasks ({size}), and nolabel reads the variables of torchrun alone: without them "
            "each task trains by itself.\n"
            f"Start one task per machine, and in it: {TORCHRUN}\n"
            f"For a single process: one task (--ntasks 1, -n 1), or unset {size}."
        )
        if size != "SLURM_NTASKS" or this not in ("", "0"):
            raise UsageError(words)
        return words  # a batch script has SLURM_NTASKS, too, and is one process
    return ""


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the group that `torchrun` describes for the length of the block; do nothing elsewhere.

    UsageError where the environment describes no group that can be joined.
    """
    processes = number_of("WORLD_SIZE", 1)
    number_of("LOCAL_WORLD_SIZE", 1)
    if processes < 2 or active():
        yield
        return
    missing = [v for v in ("RANK", "MASTER_ADDR", "MASTER_PORT") if v not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {processes}, but {', '.join(missing)} is not set: torchrun sets all of them.\n"
            f"Unset WORLD_SIZE for one process, or start several with {TORCHRUN}"
        )
    number_of("RANK", 0)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL's collectives without a tensor, such as a barrier, use the current one
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for every process."""
    if active():
        dist.barrier()


def all_sum(x: Tensor) -> Tensor:
    """Sum of `x` over processes, with gradient, of the same shape."""
    return _AllSum.apply(x) if active() else x


def all_mean(x: Tensor) -> Tensor:
    """Mean of `x` over processes, with gradient, of the same shape."""
    return all_sum(x) / world_size()


def all_gather(x: Tensor) -> Tensor:
    """`x` (B, ...) of every process in rank order, (W*B, ...), with gradient."""
    return _AllGather.apply(x) if active() else x


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set on at least one process."""
    if not active():
        return flag
    x = torch.tensor(float(flag), device=device)
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return bool(x.item())


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.detach().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.detach().contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]
