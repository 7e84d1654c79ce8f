"""BatchNorm over the joined batch of all processes, on any device."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nolabel.distributed.group import active, all_gather, world_size


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
