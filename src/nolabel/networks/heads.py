"""Heads: the networks between a backbone and a loss. They are not shipped after training."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Prototypes(nn.Module):
    """Weight-normalised linear layer without bias: row k is `weight_g[k] * weight_v[k] / |weight_v[k]|`.

    (B, D) to logits (B, K). With `learn_magnitude=False` every g stays 1, and the logits of unit vectors are cosines.
    """

    def __init__(self, dim: int, num_prototypes: int, learn_magnitude: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1), requires_grad=learn_magnitude)
        self.weight_v = nn.Parameter(nn.Linear(dim, num_prototypes, bias=False).weight.detach().clone())

    def rows(self, dtype: torch.dtype | None = None) -> Tensor:
        """The prototypes (K, D), rounded to `dtype` if that is given."""
        rows: Tensor = _UnitRows.apply(self.weight_v, self.weight_g, dtype or self.weight_v.dtype)
        return rows

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z, self.rows())


class _UnitRows(torch.autograd.Function):
    """Rows of v (K, D), scaled to the lengths g (K, 1). K is large, and torch's own way copies all rows ten times.

    On a CPU a few rows go through all operations before the next, so that they are read from memory once.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
        rows, norm = torch.empty_like(v, dtype=dtype), torch.empty_like(g)
        for to, length, a, b in _some_rows(rows, norm, v, g):
            torch.linalg.vector_norm(a, dim=1, keepdim=True, out=length).clamp_min_(1e-12)
            to.copy_((a / length).mul_(b))
        ctx.save_for_backward(v, g, norm)
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        v, g, norm = ctx.saved_tensors
        grad_v, along = torch.empty_like(v), torch.empty_like(g)  # `along` is the gradient of g; v gets the rest
        for to, felt, x, a, b, length in _some_rows(grad_v, along, grad, v, g, norm):
            y = x.to(a.dtype)
            felt.copy_(torch.einsum("kd,kd->k", y, a)[:, None] / length)
            torch.addcmul(y, a, -felt / length, out=to).mul_(b / length)
        return grad_v, along, None


def _some_rows(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each tensor, as many at a time as stay in a core's cache; on other devices all at once."""
    number = 2048 if tensors[0].device.type == "cpu" else len(tensors[0])
    return zip(*(torch.split(t, number) for t in tensors), strict=True)


def mlp(widths: Sequence[int], batchnorm: bool) -> nn.Sequential:
    """Linear layers from width to width with BatchNorm, if asked for, and GELU between: the heads of DINO and MSN.

    (B, widths[0]) to (B, widths[-1]). Weights start from a truncated normal of std 0.02, biases from 0.
    """
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if batchnorm else []), nn.GELU()]
    head = nn.Sequential(*layers[: -2 if batchnorm else -1])  # the last layer is linear
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return head


class DINOHead(nn.Module):
    """DINO's projection head (Caron et al. 2021): MLP, L2-normalised bottleneck, prototypes. (B, D) to (B, K)."""

    def __init__(
        self,
        dim: int,
        num_prototypes: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        batchnorm: bool = False,
        learn_magnitude: bool = False,
    ) -> None:
        super().__init__()
        self.mlp = mlp([dim, *[hidden_dim] * (num_layers - 1), bottleneck_dim], batchnorm)
        self.last_layer = Prototypes(bottleneck_dim, num_prototypes, learn_magnitude)

    def bottleneck(self, x: Tensor) -> Tensor:
        """Unit vectors (B, bottleneck_dim) that are compared with the prototypes."""
        z: Tensor = self.mlp(x)
        return F.normalize(z.float(), dim=-1).to(z.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(self.bottleneck(x))  # type: ignore[no-any-return]


class Projector(nn.Sequential):
    """SimCLR's projector (Chen et al. 2020): Linear without bias + BatchNorm per layer, ReLU between, none at the end.

    (B, D) to (B, out_dim). The last BatchNorm has a scale and no offset.
    """

    def __init__(self, dim: int, out_dim: int = 128, num_layers: int = 2) -> None:
        layers: list[nn.Module] = []
        for _ in range(num_layers - 1):
            layers += [nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU()]
        last = nn.BatchNorm1d(out_dim)
        last.register_parameter("bias", None)
        super().__init__(*layers, nn.Linear(dim, out_dim, bias=False), last)
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)


class DenseProjector(nn.Module):
    """DenseCL's two projectors side by side (Wang et al. 2021); without the dense one it is MoCo v2's.

    Pooled features (B, dim) to (B, out_dim), patches (B, N, patch_dim) to (B, N, out_dim), neither normalised; by
    default both widths are `dim`. Each projector has two layers with biases, ReLU between and no BatchNorm. The pooled
    layers start Kaiming-normal (fan-in) with zero biases. The dense layers start as torch starts a 1x1 convolution: a
    Linear on each patch is one.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int = 128,
        hidden_dim: int | None = None,
        dense: bool = True,
        patch_dim: int | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_dim or dim
        self.pooled = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, out_dim))
        for layer in self.pooled:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self.patches: nn.Sequential | None = None
        if dense:
            self.patches = nn.Sequential(nn.Linear(patch_dim or dim, hidden), nn.ReLU(), nn.Linear(hidden, out_dim))

    def forward(self, pooled: Tensor, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.pooled(pooled), None if self.patches is None else self.patches(patches)
