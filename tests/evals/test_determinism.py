"""Equal seeds give equal bytes, for every protocol; nothing is kept between the runs, the global generators differ."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nolabel.data.demo import world
from nolabel.evals.detection import networks
from nolabel.evals.protocol import run
from nolabel.evals.protocols import PROTOCOLS
from nolabel.networks.backbones import backbone
from nolabel.weights.load import Loaded

SPLITS = {"train": 0, "val": 100, "test": 200}


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def classes(root: Path) -> None:
    for split, first in SPLITS.items():
        for i in range(12 if split == "train" else 6):
            save(world.render(i % 3, first + i, 24)[0], root / split / f"class{i % 3}" / f"{i:02d}.png")


def masks(root: Path) -> None:
    for split, first in SPLITS.items():
        for i in range(4):
            image, mask = world.render(i, first + i, 32)
            save(image, root / "images" / split / f"{i}.png")
            save(mask.astype(np.uint8), root / "masks" / split / f"{i}.png")
    (root / "classes.txt").write_text("ground\nthing\n")


def clips(root: Path) -> None:
    for number, (frame, mask) in enumerate(zip(*world.clip(9, 1, 4, 40), strict=True)):
        save(frame, root / "frames" / "star" / f"{number:05d}.png")
        save(mask.astype(np.uint8), root / "masks" / "star" / f"{number:05d}.png")


def boxes(root: Path) -> None:
    for split in ("train", "val"):
        for i in range(4):
            image, mask = world.render(i % 2, SPLITS[split] + i, 48)
            save(image, root / "images" / split / f"{i}.png")
            (y0, x0), (y1, x1) = (f(np.argwhere(mask), 0) / 48 for f in (np.min, np.max))
            path = root / "labels" / split / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{i % 2} {(x0 + x1) / 2} {(y0 + y1) / 2} {x1 - x0} {y1 - y0}\n")
    (root / "data.yaml").write_text("names: [ring, star]\n")


def photos(root: Path) -> None:
    for i in range(8):
        save(world.render(i, i, 32)[0], root / f"{i}.png")


def queries(root: Path) -> None:
    truth: dict[str, Any] = {"imlist": [], "qimlist": [], "gnd": []}
    for thing in range(3):
        for number in range(4):
            save(world.render(thing, 10 * thing + number, 32)[0], root / "jpg" / f"{thing}_{number}.png")
        truth["qimlist"].append(f"{thing}_0")
        truth["imlist"] += [f"{thing}_{number}" for number in (1, 2, 3)]
        start = 3 * thing
        truth["gnd"].append(
            {"bbx": [0.0, 0.0, 32.0, 32.0], "junk": [], "easy": [start], "hard": [start + 1, start + 2]}
        )
    (root / "gnd.json").write_text(json.dumps(truth))


WORLDS: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "knn": (classes, {"ks": (1, 5)}),
    "linear": (classes, {"epochs": 4, "augment": True}),
    "lowshot": (classes, {"shots": (1, 2), "fractions": ()}),
    "finetune": (classes, {"epochs": 1, "train_batch_size": 6, "mixup": 0.8, "randaugment": 9.0, "drop_path": 0.1}),
    "retrieval": (queries, {}),
    "copies": (photos, {}),
    "video": (clips, {"short_side": 40, "num_last_frames": 2, "radius": 4}),
    "attention": (masks, {"short_side": 32}),
    "segmentation": (masks, {"short_side": 32, "epochs": 2, "bank_size": 40, "k": 5}),
    "detection": (boxes, {"steps": 2, "train_batch_size": 2, "short_side": 64}),
}


def network(name: str) -> Loaded:
    """Attention needs a ViT; a ResNet is for the others."""
    resnet = "resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)}
    vit = "vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = backbone(*(vit if name == "attention" else resnet), 32)
    net.eval().requires_grad_(False)
    return Loaded(net, 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bicubic", "tiny", "0123456789abcdef")


def written(folder: Path) -> dict[str, bytes]:
    """The result and what lies beside it: classifiers, trained networks, masks; not the durations."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".time.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_same_seed_gives_the_same_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for width, value in (("FPN_DIM", 8), ("HIDDEN", 16), ("REGIONS", 16)):
        monkeypatch.setattr(networks, width, value)
    write, settings = WORLDS[name]
    config = PROTOCOLS[name].Config(**{"cache": False, "seed": 7, **settings})
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for noise in (1, 2):
        write(tmp_path / f"{noise}" / "data")
        random.seed(noise)
        np.random.seed(noise)
        torch.manual_seed(noise)
        out = tmp_path / f"out{noise}" / f"{name}.json"
        run(PROTOCOLS[name], network(name), tmp_path / f"{noise}" / "data", config, out)
    random.setstate(kept[0])
    np.random.set_state(kept[1])
    torch.set_rng_state(kept[2])
    first, second = (written(tmp_path / f"out{noise}") for noise in (1, 2))
    assert first == second
    assert json.loads(first[f"{name}.json"])["floor"]
