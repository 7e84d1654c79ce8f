"""DINO's ablations in small: take one part away and watch what collapses (Caron et al. 2021, section 5.3, figure 7).

    python examples/ablations.py                 # about ten minutes on two cores
    python examples/ablations.py --steps 20      # only to see that it runs

The loss is teacher entropy + KL(teacher || student). In a collapse the KL goes to 0 and the entropy to one of its
ends: 0 where one output wins for every image (no centering), ln K where all outputs are alike (no sharpening).
"""

import argparse
import math
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nolabel
from nolabel.data.demo import world

PROTOTYPES = 512
NETWORK = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": ["patch_size=8", "embed_dim=96", "depth=4", "num_heads=3"],
    "precision": "fp32",
    "workers": 1,
    "threads": 1,
}
METHOD = {
    "global_size": 32,
    "local_size": 16,
    "num_local": 4,
    "num_prototypes": PROTOTYPES,
    "hidden_dim": 256,
    "bottleneck_dim": 64,
    "head_batchnorm": False,
    "momentum": 0.99,
    "drop_path": 0.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "DINO, 2 + 4 crops": {},
    "two crops": {"num_local": 0, "global_scale": (0.14, 1.0)},
    "no momentum teacher": {"momentum": 0.0, "momentum_end": 0.0},
    "no centering": {"center_momentum": 1.0},
    "no sharpening": {"teacher_temp": 1.0, "warmup_teacher_temp": 1.0},
}


def run(name: str, changes: dict[str, Any], folder: Path, steps: int, seed: int) -> str:
    """Train one variant; gives its row of the table."""
    finished = nolabel.train(
        "dino-small",
        folder / "world" / "train",
        folder / name.replace(" ", "-"),
        labels=str(folder / "world"),
        steps=steps,
        seed=seed,
        eval_every=steps,
        log_every=max(1, steps // 20),
        method=METHOD | changes,
        **NETWORK,
    )
    metrics = finished.metrics()
    last = [r for r in metrics if "loss" in r][-1]
    accuracies = [r["knn"] for r in metrics if "knn" in r]
    entropy, kl = last["teacher_entropy"] / math.log(PROTOTYPES), last["teacher_student_kl"]
    return f"{name:<22}{last['loss']:>8.3f}{entropy:>16.3f}{kl:>12.4f}{accuracies[0]:>12.1f}{accuracies[-1]:>10.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder for the runs, which are deleted otherwise")
    options = parser.parse_args()
    with nullcontext(options.keep) if options.keep else tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        world.write(folder / "world", options.images, options.images // 4, 32, options.seed)
        print(f"{'':<22}{'loss':>8}{'entropy / ln K':>16}{'KL':>12}{'untrained':>12}{'20-NN %':>10}")
        for name, changes in VARIANTS.items():
            print(run(name, changes, folder, options.steps, options.seed), flush=True)


if __name__ == "__main__":
    main()
