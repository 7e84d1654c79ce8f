"""Recipes of MSN (Assran et al. 2022)."""

from typing import Any

from nolabel.recipes.recipe import Recipe

# The paper's learning rates are absolute, for batches of 1024; ours are for 256 images.
_MSN: dict[str, Any] = {
    "batch_size": 1024,
    "epochs": 800,
    "stretch": 1.25,
    "optim": {"lr": 2.5e-4, "start_lr": 5e-5, "warmup_epochs": 15, "clip": "joint"},
}

RECIPES: dict[str, Recipe] = {
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
}
