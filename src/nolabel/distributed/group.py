"""The group of processes: rank, size, and collective operations; identity without a group."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the group that `torchrun` describes for the length of the block; do nothing elsewhere."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1 or active():
        yield
        return
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
