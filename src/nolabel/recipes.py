"""Named settings. Only data: `nolabel list` and wrong names are answered without importing torch.

The values of the paper recipes are those of docs/dino.md and docs/simclr.md, with the reason for each difference.
"""

from typing import Any, NamedTuple

from nolabel.errors import UsageError, nearest


class Recipe(NamedTuple):
    """A method with settings that differ from the defaults of TrainConfig and of the method."""

    method: str
    summary: str
    settings: dict[str, Any]


RECIPES: dict[str, Recipe] = {
    "dino": Recipe(
        "dino",
        "DINO, ViT-S/16, 2+8 crops of 224 and 96 px, 100 epochs (the authors' vanilla run)",
        {"batch_size": 512},
    ),
    "dino-boosted": Recipe(
        "dino",
        "DINO, ViT-S/16, 300 epochs, warmer teacher, learned prototype magnitudes",
        {
            "epochs": 300,
            "batch_size": 1024,
            "method": {"teacher_temp": 0.07, "warmup_teacher_temp_epochs": 30, "learn_magnitude": True},
        },
    ),
    "dino-resnet50": Recipe(
        "dino",
        "DINO, ResNet-50, SGD, 100 epochs",
        {
            "backbone": "resnet50",
            "batch_size": 512,
            "method": {"global_scale": [0.14, 1.0], "local_scale": [0.05, 0.14]},
            "optim": {"name": "sgd", "lr": 0.03, "weight_decay": 1e-4, "weight_decay_end": 1e-4},
        },
    ),
    "dino-small": Recipe(
        "dino",
        "DINO for few images on one device: ResNet-18, 2+4 crops of 128 and 64 px",
        {
            "backbone": "resnet18",
            "epochs": 200,
            "batch_size": 64,
            "method": {
                "global_size": 128,
                "local_size": 64,
                "num_local": 4,
                "num_prototypes": "auto",
                "hidden_dim": 1024,
                "head_batchnorm": True,
                "momentum": "auto",
            },
            "optim": {
                "lr": 2e-3,
                "min_lr": 1e-5,
                "warmup_epochs": 1,
                "weight_decay": 0.04,
                "weight_decay_end": 0.04,
            },
        },
    ),
    "simclr": Recipe(
        "simclr",
        "SimCLR, ResNet-50, LARS, 100 epochs",
        {
            "backbone": "resnet50",
            "batch_size": 512,
            "mean": [0.0, 0.0, 0.0],
            "std": [1.0, 1.0, 1.0],
            "optim": {
                "name": "lars",
                "lr": 0.3,
                "min_lr": 0.0,
                "weight_decay": 1e-4,
                "weight_decay_end": 1e-4,
                "clip_grad": 0.0,
            },
        },
    ),
    "simclr-small": Recipe(
        "simclr",
        "SimCLR for few images on one device: ResNet-18, two views of 128 px",
        {
            "backbone": "resnet18",
            "epochs": 200,
            "batch_size": 256,
            "mean": [0.0, 0.0, 0.0],
            "std": [1.0, 1.0, 1.0],
            "method": {"size": 128, "scale": [0.2, 1.0], "jitter": [0.4, 0.4, 0.4, 0.1], "temperature": 0.2},
            "optim": {
                "lr": 1e-3,
                "min_lr": 0.0,
                "warmup_epochs": 5,
                "weight_decay": 1e-4,
                "weight_decay_end": 1e-4,
                "clip_grad": 0.0,
            },
        },
    ),
}

BACKBONES: dict[str, str] = {
    "vit_tiny_patch16_224": "ViT-Ti/16, 5.5 M parameters",
    "vit_small_patch16_224": "ViT-S/16, 21.7 M, DINO's workhorse",
    "vit_small_patch8_224": "ViT-S/8, 21.7 M, finer maps at four times the cost",
    "vit_base_patch16_224": "ViT-B/16, 85.8 M",
    "vit_base_patch8_224": "ViT-B/8, 85.8 M",
    "resnet18": "ResNet-18, 11.2 M, quick on a CPU",
    "resnet50": "ResNet-50, 23.5 M",
    "xcit_small_12_p16_224": "XCiT-S12/16, 25.9 M",
    "convnext_tiny": "ConvNeXt-T, 27.8 M",
}

PROTOCOLS: dict[str, str] = {
    "knn": "weighted k nearest neighbours on frozen features",
}


def find(name: str) -> Recipe:
    """The recipe of that name; UsageError with the nearest names."""
    if name not in RECIPES:
        raise UsageError(
            f"There is no recipe {name!r}.{nearest(name, RECIPES)}\n`nolabel list recipes` shows them all."
        )
    return RECIPES[name]
