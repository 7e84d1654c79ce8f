"""MSN's ablations in small: how much to mask, which anchors to use, and what keeps it from collapse.

    python examples/msn_ablations.py --data DIR      # train/ and val/ of class folders; half an hour on two cores
    python examples/msn_ablations.py --steps 20      # the demo's pictures, only to see that it runs

The paper's tables 7, 8 and 11 (Assran et al. 2022). In a collapse the me-max gap goes to its
largest value, ln K, because one prototype takes all images; prototypes used are counted a batch.
"""

import argparse
import math
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nolabel
from nolabel.data.demo import world

PROTOTYPES = 128
NETWORK = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": ["patch_size=8", "embed_dim=128", "depth=6", "num_heads=4"],
    "workers": 1,
    "threads": 1,
    "batch_size": 128,
}
METHOD = {
    "random_size": 40,
    "focal_size": 24,
    "num_focal": 4,
    "num_prototypes": PROTOTYPES,
    "momentum": 0.99,
}
NO_SINKHORN = {"sinkhorn_rounds": 0, "memax_weight": 5.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "MSN, 1 + 4 anchors": {},
    "mask 0": {"mask_ratio": 0.0},
    "mask 0.3": {"mask_ratio": 0.3},
    "mask 0.5": {"mask_ratio": 0.5},
    "mask 0.7": {"mask_ratio": 0.7},
    "random anchor alone": {"num_focal": 0},
    "focal anchors alone": {"num_random": 0},
    "no Sinkhorn, weight 5": NO_SINKHORN,
    "no Sinkhorn, weight 1": {"sinkhorn_rounds": 0},
    "Sinkhorn, no me-max": {"memax_weight": 0.0},
    "neither": {"sinkhorn_rounds": 0, "memax_weight": 0.0},
}


def count(folder: Path) -> int:
    """Number of files in a folder of images."""
    return sum(path.is_file() for path in folder.rglob("*"))


def run(name: str, changes: dict[str, Any], data: Path, folder: Path, steps: int, seed: int) -> str:
    """Train one variant; gives its row of the table."""
    finished = nolabel.train(
        "msn-small",
        data / "train",
        folder / name.replace(" ", "-"),
        labels=str(data),
        steps=steps,
        seed=seed,
        eval_every=steps,
        log_every=max(1, steps // 20),
        method=METHOD | changes,
        optim={"lr": 3e-3, "warmup_epochs": 0.1 * steps * NETWORK["batch_size"] / count(data / "train")},
        **NETWORK,
    )
    metrics = finished.metrics()
    last = [r for r in metrics if "loss" in r][-1]
    accuracies = [r["knn"] for r in metrics if "knn" in r]
    ce, gap, used, speed = (
        last["ce"],
        last["memax_gap"] / math.log(PROTOTYPES),
        last["prototypes_used"],
        last["img_per_s"],
    )
    return f"{name:<24}{ce:>8.3f}{gap:>11.3f}{used:>7.1f}{accuracies[0]:>11.1f}{accuracies[-1]:>9.1f}{speed:>8.0f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--data", type=Path, help="images; without it the demo's are drawn")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="rows of the table")
    parser.add_argument("--keep", type=Path, help="a new folder for the runs, which are deleted otherwise")
    options = parser.parse_args()
    with nullcontext(options.keep) if options.keep else tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = options.data or folder / "world"
        if not options.data:
            world.write(data, options.images, options.images // 4, 32, options.seed)
        print(f"{'':<24}{'ce':>8}{'gap / ln K':>11}{'used':>7}{'untrained':>11}{'20-NN %':>9}{'img/s':>8}")
        for name in options.only:
            print(run(name, VARIANTS[name], data, folder, options.steps, options.seed), flush=True)


if __name__ == "__main__":
    main()
