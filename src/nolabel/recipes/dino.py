"""Recipes of DINO (Caron et al. 2021)."""

from nolabel.recipes.recipe import Recipe

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
            "backbone_args": ["zero_init_last=false"],  # every BatchNorm starts at 1, as in torchvision
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
}
