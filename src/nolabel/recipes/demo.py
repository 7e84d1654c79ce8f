"""Settings of `nolabel demo`: changes to a recipe for its small world."""

from typing import Any

SIZE = 32
"""Pixels of the world's pictures."""

NETWORK = {"backbone_args": ["layers=[1,1,1,1]", "channels=[32,64,128,256]", "output_stride=8"]}

SETTINGS: dict[str, dict[str, Any]] = {
    # Crops that keep most of the object and colours without information, so that only the shape can be recognised.
    "simclr-small": {
        "batch_size": 128,
        "method": {
            "size": SIZE,
            "scale": [0.4, 1.0],
            "jitter": [0.8, 0.8, 0.8, 0.5],
            "blur": 0.0,
            "projection_dim": 64,
            "temperature": 0.2,
        },
        "optim": {"lr": 8e-3},
    },
    "dino-small": {"method": {"global_size": SIZE, "local_size": SIZE // 2}},
}
