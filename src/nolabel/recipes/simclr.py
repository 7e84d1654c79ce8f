"""Recipes of SimCLR (Chen et al. 2020)."""

from nolabel.recipes.recipe import Recipe

RECIPES: dict[str, Recipe] = {
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
                "lars_rate": "inside",
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
                "lars_rate": "inside",
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
