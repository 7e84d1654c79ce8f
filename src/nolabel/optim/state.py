"""The state of an optimizer as flat tensors with names, for a checkpoint."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as flat `parameter/slot` tensors."""
    names: dict[Tensor, str] = {p: n for n, p in module.named_parameters()}
    return {
        f"{names[p]}/{slot}": value.detach().clone()
        for p, slots in optimizer.state.items()
        for slot, value in slots.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = dict(module.named_parameters())
    optimizer.state.clear()
    for key, value in tensors.items():
        name, slot = key.rsplit("/", 1)
        p = parameters[name]
        optimizer.state[p][slot] = value.to(p.device)
