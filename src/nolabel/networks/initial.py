"""Weights that a fresh network starts from, where the papers' are not timm's."""

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn


def is_plain_vit(name: str) -> bool:
    """Whether a timm name is that of a plain vision transformer."""
    return timm.model_entrypoint(name).__module__ == VisionTransformer.__module__


def is_resnet(name: str) -> bool:
    """Whether a timm name is that of a ResNet. The ResNets of the papers have no stochastic depth."""
    return timm.model_entrypoint(name).__module__ == "timm.models.resnet"


def initialize_vit(model: VisionTransformer) -> None:
    """Start the class token as DINO does, with std 0.02; timm has 1e-6. The rest of timm's start is DINO's (A1.1)."""
    if model.cls_token is not None:
        nn.init.trunc_normal_(model.cls_token, std=0.02)


def initialize_resnet(name: str, model: nn.Module) -> None:
    """DenseCL's start of a ResNet (Wang et al. 2021): convolutions Kaiming-normal by fan-in, every BatchNorm 1 and 0.

    timm's own is by fan-out, and zero for the last gain of each block. Other networks stay as they are.
    """
    if not is_resnet(name):
        return
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
