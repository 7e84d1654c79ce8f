"""Recipes of DenseCL (Wang et al. 2021) and of MoCo v2 (Chen et al. 2020), its global half."""

from typing import Any

from nolabel.recipes.recipe import Recipe

_MOCO_OPTIM: dict[str, Any] = {
    "name": "sgd",
    "lr": 0.03,
    "min_lr": 0.0,
    "warmup_epochs": 0,
    "lr_by_epoch": True,
    "weight_decay": 1e-4,
    "weight_decay_end": 1e-4,
    "decay_all": True,
    "clip_grad": 0.0,
}

_MOCO: dict[str, Any] = {"backbone": "resnet50", "epochs": 200, "batch_size": 256, "optim": _MOCO_OPTIM}

_MOCO_SMALL: dict[str, Any] = {
    "backbone": "resnet18",
    "epochs": 200,
    "batch_size": 64,
    "method": {"size": 128, "queue_size": "auto", "momentum": 0.99, "hidden_dim": None},
    "optim": _MOCO_OPTIM | {"lr": 0.12},
}

RECIPES: dict[str, Recipe] = {
    "densecl": Recipe("densecl", "DenseCL, ResNet-50, two views of 224 px, 200 epochs (ImageNet)", _MOCO),
    "densecl-coco": Recipe(
        "densecl",
        "DenseCL, ResNet-50, 800 epochs, ten times the learning rate (COCO)",
        _MOCO | {"epochs": 800, "optim": _MOCO_OPTIM | {"lr": 0.3}},
    ),
    "densecl-small": Recipe(
        "densecl", "DenseCL for few images on one device: ResNet-18, two views of 128 px", _MOCO_SMALL
    ),
    "mocov2": Recipe(
        "densecl",
        "MoCo v2, ResNet-50, two views of 224 px, 200 epochs (DenseCL without its dense loss)",
        _MOCO | {"method": {"dense_weight": 0.0}},
    ),
    "mocov2-small": Recipe(
        "densecl",
        "MoCo v2 at the budget of densecl-small",
        _MOCO_SMALL | {"method": _MOCO_SMALL["method"] | {"dense_weight": 0.0}},
    ),
}
