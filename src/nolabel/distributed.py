"""Everything that knows about several processes. Without a process group each function is the identity.

`torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK; nothing else starts a group. The reductions are differentiable:
a loss that couples the whole batch (SimCLR's negatives, BatchNorm) then has the gradient of the joined batch.
"""

import contextlib
import inspect
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel


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
    """Whether this process prints and writes."""
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


def data_parallel(module: nn.Module) -> nn.Module:
    """`module` with gradients averaged over processes. Buffers, the same everywhere by construction, are not sent."""
    if not active():
        return module
    # Gradients of 1x1 convolutions of channels-last images: the same memory described by other strides.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # the old name warns
    option: dict[str, Any] = {name: False}
    # Gradients that lie in what is sent: neither a second copy of all of them in memory nor the copying, each step.
    return DistributedDataParallel(module, gradient_as_bucket_view=True, **option)


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


class SyncBatchNorm(nn.Module):
    """BatchNorm over the joined batch of all processes; also on the CPU, where `nn.SyncBatchNorm` raises.

    Takes over the parameters and buffers of a `BatchNorm1d/2d`, so state-dict keys stay the same. Input (B, C, ...),
    B the same in every process.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.eps, self.momentum = norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        # timm's BatchNormAct2d has an activation of its own after the normalisation: keep it.
        self.drop, self.act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(self._normalize(x)))  # type: ignore[no-any-return]

    def _normalize(self, x: Tensor) -> Tensor:
        mean, var = self._buffers.get("running_mean"), self._buffers.get("running_var")
        if not (self.training and active()):
            momentum = self.momentum or 0.0
            return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, momentum, self.eps)
        dims, shape = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
        y = x.float()
        # Mean and variance of equally large parts; a sum of squares would cancel where the mean is large.
        parts = all_gather(torch.stack([y.mean(dims), y.var(dims, correction=0)])[None])  # (W, 2, C)
        joint = parts[:, 0].mean(0)
        spread = parts[:, 1].mean(0) + parts[:, 0].var(0, correction=0)
        n = y.numel() // y.shape[1] * world_size()
        with torch.no_grad():
            self._remember(joint, spread * n / (n - 1))
        y = (y - joint.view(shape)) * torch.rsqrt(spread + self.eps).view(shape)
        y = y if self.weight is None else y * self.weight.view(shape)
        y = y if self.bias is None else y + self.bias.view(shape)
        return y.to(x.dtype)

    def _remember(self, mean: Tensor, var: Tensor) -> None:
        if "running_mean" in self._buffers and self.momentum is not None:
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
            self.num_batches_tracked += 1


def synchronize_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm1d/2d inside `module` by `SyncBatchNorm`; unchanged in a single process."""
    if not active():
        return module
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            setattr(module, name, SyncBatchNorm(child))
        else:
            synchronize_batchnorm(child)
    return module
