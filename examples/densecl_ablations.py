"""DenseCL's ablations in small: the share of the dense loss, its warm-up, and what pairs the locations.

    python examples/densecl_ablations.py --data DIR      # train/ and val/ of class folders; half an hour on two cores
    python examples/densecl_ablations.py --steps 20      # the demo's pictures, only to see that it runs

After Wang et al. 2021, tables 5 to 7 (there: detection on VOC). "right" is the share of locations, seen by two views of
an image, that find their true place in the other view, or a neighbour of it; "both ways" the share of matches that are
mutual; "by place" the share of what the dense head says that depends on the place alone. A share of 0 is MoCo v2.
"""

import argparse
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import nolabel
from nolabel.data.decode import decode
from nolabel.data.demo import world
from nolabel.networks.matching import match
from nolabel.plots.matches import right_matches, true_places, two_views
from nolabel.weights.load import load_weights

NETWORK = {
    "backbone": "resnet18",
    "backbone_args": ["layers=[1,1,1,1]", "channels=[32,64,128,256]", "output_stride=8"],
    "workers": 1,
    "threads": 1,
}
SIZE = 64
METHOD = {"size": SIZE}
VARIANTS: dict[str, dict[str, Any]] = {
    "share 0 (MoCo v2)": {"dense_weight": 0.0},
    "share 0.3": {"dense_weight": 0.3},
    "share 0.5": {"dense_weight": 0.5},
    "share 0.7": {"dense_weight": 0.7},
    "share 1": {"dense_weight": 1.0},
    "share 0.3, warm-up": {"dense_weight": 0.3, "warmup": True},
    "share 0.5, warm-up": {"dense_weight": 0.5, "warmup": True},
    "share 0.7, warm-up": {"dense_weight": 0.7, "warmup": True},
    "share 1, warm-up": {"dense_weight": 1.0, "warmup": True},
    "by projection": {"match": "projection"},
    "by chance": {"match": "random"},
}


def images_of(data: Path) -> list[Path]:
    """250 or so of the images that are not trained on."""
    found = sorted(p for name in ("val", "test") for p in (data / name).rglob("*") if p.is_file())
    return found[:: max(1, len(found) // 250)]


@torch.no_grad()
def places(run: nolabel.Run, images: list[Path]) -> tuple[float, float]:
    """Percent of locations that find their true place, and of matches that are mutual."""
    loaded = load_weights(run.path)
    right, seen, mutual = 0, 0, []
    for path in images:
        image = decode(path.read_bytes())
        pair = two_views(image, SIZE, loaded.backbone.patch_size, loaded.mean, loaded.std)
        a, b = (loaded.backbone(x[None]) for x in (pair.first, pair.second))
        found, truth = match(a.patches, b.patches), true_places(pair.drawn, a.grid)
        shown = ((truth >= 0) & (truth <= 1)).all(1)
        right += int(right_matches(found, b.grid, truth)[shown].sum())
        seen += int(shown.sum())
        mutual.append(found.mutual.float().mean().item())
    return 100 * right / seen, 100 * sum(mutual) / len(mutual)


def run(name: str, changes: dict[str, Any], data: Path, folder: Path, steps: int, seed: int) -> str:
    """Train one variant; gives its row of the table."""
    changes = dict(changes)
    if changes.pop("warmup", False):
        changes["dense_warmup_steps"] = steps // 3
    finished = nolabel.train(
        "densecl-small",
        data / "train",
        folder / name.replace(" ", "-"),
        labels=str(data),
        steps=steps,
        seed=seed,
        eval_every=steps,
        log_every=max(1, steps // 20),
        method=METHOD | changes,
        optim={"lr": 0.4},
        **NETWORK,
    )
    metrics = finished.metrics()
    last = [r for r in metrics if "loss" in r][-1]
    accuracies = [r["knn"] for r in metrics if "knn" in r]
    right, mutual = places(finished, images_of(data))
    dense = (
        f"{last['loss_dense']:8.3f}{100 * last['dense_by_place']:11.1f}"
        if "loss_dense" in last
        else f"{'-':>8}{'-':>11}"
    )
    numbers = f"{right:9.1f}{mutual:12.1f}{accuracies[0]:12.1f}{accuracies[-1]:10.1f}"
    return f"{name:<22}{last['loss_global']:8.3f}{dense}{numbers}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--data", type=Path, help="images; without it the demo's are drawn")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), help="rows of the table")
    parser.add_argument("--keep", type=Path, help="a new folder for the runs, which are deleted otherwise")
    options = parser.parse_args()
    with nullcontext(options.keep) if options.keep else tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = options.data or folder / "world"
        if not options.data:
            world.write(data, options.images, options.images // 4, SIZE, options.seed)
        dense = f"{'dense':>8}{'by place %':>11}{'right %':>9}{'both ways %':>12}"
        print(f"{'':<22}{'global':>8}{dense}{'untrained':>12}{'20-NN %':>10}")
        for name in options.only:
            print(run(name, VARIANTS[name], data, folder, options.steps, options.seed), flush=True)


if __name__ == "__main__":
    main()
