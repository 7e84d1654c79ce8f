"""Jobs small enough to train in a test: networks of some thousand parameters, batches of random numbers."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from nolabel import distributed
from nolabel.config import TrainConfig, resolve
from nolabel.data.images import Images
from nolabel.methods import MethodConfig
from nolabel.optim.optimizers import OptimConfig
from nolabel.optim.state import optimizer_tensors
from nolabel.training.job import Job, build
from nolabel.training.step import training_step

CPU = torch.device("cpu")
IMAGES = Images("nowhere", "folder", tuple(f"{i}.png" for i in range(32)), ())
BACKBONES = {
    "vit": ("vit_tiny_patch16_224", ("patch_size=8", "embed_dim=32", "depth=2", "num_heads=2")),
    "resnet": ("resnet18", ("layers=[1,1,1,1]", "channels=[8,16,24,32]", "output_stride=8")),
}
# SGD and not AdamW: its steps are proportional to the gradient, so that rounding stays rounding.
SGD = OptimConfig("sgd", lr=3.2, min_lr=1e-3, warmup_epochs=0, weight_decay=0.01, weight_decay_end=0.02)


def job(method: MethodConfig, backbone: str = "vit", **settings: Any) -> Job:
    """A job of 4 steps per epoch and 8 images per step, which are 32 x 32 at most."""
    name, args = BACKBONES[backbone]
    if backbone == "resnet":  # which has no patches to drop
        method = small(method, mask_ratio=0.0)
    defaults = {
        "backbone_args": args,
        "optim": SGD,
        "batch_size": 8,
        "epochs": 10,
        "precision": "fp32",
        "threads": torch.get_num_threads(),
    }
    config: TrainConfig[Any] = TrainConfig(method=method, backbone=name, **(defaults | settings))
    return build(resolve(config, len(IMAGES.names), distributed.world_size(), CPU), IMAGES, CPU)


def views(j: Job, seed: int = 0) -> list[Tensor]:
    """Stand-in for one batch: the share of this process in random images (8, 3, size, size), one tensor per view.

    The views of an image have a random colour in common, so that there is something to learn.
    """
    generator = torch.Generator().manual_seed(seed)
    size = j.config.batch_size
    common = torch.randn(size, 3, 1, 1, generator=generator)
    whole = [common + torch.randn(size, 3, v.size, v.size, generator=generator) for v in j.method.views()]
    return [v.chunk(distributed.world_size())[distributed.rank()].clone() for v in whole]


def step(j: Job, number: int, seed: int | None = None) -> dict[str, float]:
    """Optimizer step `number` on the batch of that number; what it says as plain numbers."""
    said = training_step(j, views(j, number if seed is None else seed), j.clock(number))
    return {name: float(value) for name, value in said.items()}


def everything(j: Job) -> dict[str, Tensor]:
    """A copy of all that a step may change."""
    tensors = {name: tensor.clone() for name, tensor in j.method.state_dict().items()}
    return tensors | {f"optimizer {k}": v.clone() for k, v in optimizer_tensors(j.optimizer, j.method).items()}


def changed(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """The names under which two states differ in any bit."""
    return [k for k in a.keys() | b.keys() if k not in a or k not in b or not torch.equal(a[k], b[k])]


def small(config: MethodConfig, **values: Any) -> MethodConfig:
    """`config` with those of `values` that it has."""
    names = {f.name for f in dataclasses.fields(config)}
    return dataclasses.replace(config, **{k: v for k, v in values.items() if k in names})
