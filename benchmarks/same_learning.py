"""Does it matter to learning which code cuts the views? k-NN after short SimCLR runs, each way with the same seeds.

    python benchmarks/same_learning.py DATA --steps 100 --seeds 9

DATA holds train/ and test/ with a folder per class. The ways get the same parameters of every view, the same order and
the same initial weights; they differ by rounding, and pillow by its hue in 256 steps and its box blur.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from speed import plain_pixels
from torch import Tensor

import nolabel
from nolabel.data import loader
from nolabel.views import Drawn, View

WAYS = {
    "pillow": {},
    "torch": {"view_engine": "torch"},
    "numba": {"view_engine": "numba"},
    "device": {"augment": "device"},
}


def pillow(image: Tensor, view: View, drawn: Drawn) -> Tensor:
    """In place of `image.apply`."""
    pixels = plain_pixels(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), view, drawn)
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()


def knn(way: str, seed: int, options: argparse.Namespace, out: Path) -> tuple[float, float]:
    """(top-1 of the untrained network, after the run) in percent."""
    ours = loader.view_function
    if way == "pillow":
        loader.view_function = lambda _: pillow
    try:
        settings = {"data": options.data, "subfolder": "train", "labels": options.data, "seed": seed, "out": out}
        network = ["layers=[1,1,1,1]", "output_stride=8", "channels=[32,64,128,256]"]
        length = {"steps": options.steps, "batch_size": options.batch_size, "eval_every": options.steps}
        size = {"backbone": "resnet18", "backbone_args": network, "method": {"size": 32}}
        machine = {"workers": 0, "threads": 1, "device": options.device}
        run = nolabel.train("simclr-small", **settings, **length, **size, **machine, **WAYS[way])
    finally:
        loader.view_function = ours
    found = [record["knn"] for record in run.metrics() if "knn" in record]
    return found[0], found[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print("| seed | way | k-NN untrained | k-NN |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for way in options.ways.split(","):
                before, after = knn(way, seed, options, Path(folder) / f"{way}-{seed}")
                print(f"| {seed} | {way} | {before:.2f} | {after:.2f} |", flush=True)


if __name__ == "__main__":
    main()
