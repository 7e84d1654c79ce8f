"""Named settings. Only data: `nolabel list` and wrong names are answered without importing torch.

The values of the paper recipes are those of the methods' pages in docs/, with the reason for each difference.
"""

from typing import Any, NamedTuple

from nolabel.errors import UsageError, nearest


class Recipe(NamedTuple):
    """A method with settings that differ from the defaults of TrainConfig and of the method."""

    method: str
    summary: str
    settings: dict[str, Any]


# The paper's learning rates are absolute, for batches of 1024; ours are for 256 images.
_MSN: dict[str, Any] = {
    "batch_size": 1024,
    "epochs": 800,
    "stretch": 1.25,
    "optim": {"lr": 2.5e-4, "start_lr": 5e-5, "warmup_epochs": 15, "clip": "joint"},
}

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
    "msn": Recipe("msn", "MSN, ViT-S/16, 1 masked + 10 focal crops, Sinkhorn, 800 epochs", _MSN),
    "msn-headline": Recipe(
        "msn",
        "MSN as in the paper's best ViT-S/16: no Sinkhorn, me-max weight 5",
        _MSN | {"method": {"sinkhorn_rounds": 0, "memax_weight": 5.0}},
    ),
    "msn-small": Recipe(
        "msn",
        "MSN for few images on one device: ViT-Ti/8, 1 masked + 4 focal crops of 64 and 32 px",
        {
            "backbone": "vit_tiny_patch16_224",
            "backbone_args": ["patch_size=8"],
            "epochs": 200,
            "batch_size": 128,
            "method": {
                "random_size": 64,
                "focal_size": 32,
                "num_focal": 4,
                "num_prototypes": "auto",
                "hidden_dim": 1024,
                "momentum": "auto",
            },
            "optim": {
                "lr": 1e-3,
                "min_lr": 1e-6,
                "warmup_epochs": 5,
                "weight_decay": 0.04,
                "weight_decay_end": 0.04,
                "clip": "joint",
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
    "linear": "linear classifiers on frozen features, a sweep of settings in one pass",
    "lowshot": "logistic regression on a few labelled images a class",
    "finetune": "the whole network trained on all labels or a share of them (DeiT's recipe)",
    "retrieval": "other pictures of the same place or thing (revisited Oxford and Paris)",
    "copies": "the original of a changed copy among distractors (Copydays)",
    "video": "a mask carried through a clip by frozen patches (DAVIS: J and F)",
    "attention": "objects under the heads of the last block (Jaccard index)",
    "segmentation": "mean IoU by k-NN and linear on frozen patches, and of a fine-tuned FCN",
    "detection": "AP of Faster R-CNN (C4) or Mask R-CNN (FPN) trained from a ResNet (VOC, COCO)",
    "all": "every protocol that the data allows, in one table",
}


def find(name: str) -> Recipe:
    """The recipe of that name; UsageError with the nearest names."""
    if name not in RECIPES:
        raise UsageError(
            f"There is no recipe {name!r}.{nearest(name, RECIPES)}\n`nolabel list recipes` shows them all."
        )
    return RECIPES[name]
