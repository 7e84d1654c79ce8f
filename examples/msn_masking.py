"""What masking saves in MSN: tokens, time and activations of a step, by the share of patches dropped from the anchors.

    python examples/msn_masking.py                                   # ViT-S/16, random anchors alone: a minute
    python examples/msn_masking.py --num-focal 10 --device cuda --batch-size 64
    python examples/msn_masking.py --backbone vit_tiny_patch16_224 --size 64 --batch-size 2 --steps 1   # to see it run

Tokens are those an anchor network sees of an image, class tokens included. Time is the median of the steps, forward
and backward. Activations are what the forward pass keeps for the backward pass, without the parameters.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from nolabel.methods.msn import MSN, MSNConfig
from nolabel.networks.backbones import Backbone, backbone
from nolabel.networks.masks import num_kept
from nolabel.optim.schedules import Clock

RATIOS = (0.0, 0.15, 0.3, 0.5, 0.7)


def step(method: MSN, views: list[Tensor], number: int) -> tuple[float, int]:
    """Seconds of one step, and the bytes that it keeps for its backward pass, each storage once."""
    own = {p.untyped_storage().data_ptr() for p in method.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    started = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = method(views, Clock(number, 1000, 100))["loss"]
    loss.backward()
    loss.item()  # waits for the device
    method.zero_grad()
    return time.perf_counter() - started, sum(kept.values())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--num-focal", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    o = parser.parse_args()

    def make_backbone(drop_path: float) -> Backbone:
        return backbone(o.backbone, image_size=o.size, drop_path=drop_path)

    print(f"{'ratio':>5}{'tokens':>8}{'ms per step':>11}{'MB activations':>16}")
    for ratio in RATIOS:
        torch.manual_seed(0)
        config = MSNConfig(random_size=o.size, num_focal=o.num_focal, mask_ratio=ratio)
        method = MSN(config, make_backbone).to(o.device).train()
        views = [torch.randn(o.batch_size, 3, v.size, v.size, device=o.device) for v in method.views()]
        patch = method.backbone.patch_size
        assert patch is not None
        tokens = 1 + num_kept((o.size // patch) ** 2, ratio)
        tokens += o.num_focal * (1 + (config.focal_size // patch) ** 2)
        found = [step(method, views, number) for number in range(o.steps + 1)][1:]  # the first warms up
        seconds, size = statistics.median(t for t, _ in found), found[-1][1]
        print(f"{ratio:>5.2f}{tokens:>8}{1000 * seconds:>11.0f}{size / 1e6:>16.1f}", flush=True)


if __name__ == "__main__":
    main()
