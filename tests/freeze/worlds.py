"""Data of a few pictures for each protocol and for training, drawn by the demo world."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from product import clip, render, write
from timm.models import save_for_hf

SPLITS = {"train": 0, "val": 100, "test": 200}
VIT = (
    "vit_tiny_patch16_224",
    {"img_size": 32, "dynamic_img_size": True, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
)
RESNET = ("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)})


def pictures(root: Path) -> None:
    """Labelled pictures to train on: 40 small PNG and 8 large JPEG in train/, one of them broken; 20 PNG in val/."""
    write(root, 40, 20, 40, 0)
    for i in range(8):
        image = Image.fromarray(render(i, 1000 + i, 300)[0])
        image.save(root / "train" / "star" / f"large{i}.jpg", quality=90)
    broken = root / "train" / "star" / "large7.jpg"
    broken.write_bytes(broken.read_bytes()[:2000])


def containers(root: Path) -> None:
    """The pictures of `root`/train as a zip and as a list."""
    files = sorted(path for path in (root / "train").rglob("*") if path.is_file())
    with zipfile.ZipFile("world.zip", "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(root / "train"))
    Path("world.txt").write_text("".join(f"{file.as_posix()}\n" for file in files), encoding="utf-8")


def weights(folder: Path, name: str, args: dict[str, Any]) -> None:
    """An untrained network in timm's layout, made without nolabel."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=0, **args)
    data = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "crop_pct": 0.875}
    save_for_hf(net, str(folder), model_args=args, data_config=data, safe_serialization=True)


def classes(root: Path) -> None:
    for split, first in SPLITS.items():
        for i in range(12 if split == "train" else 6):
            _save(render(i % 3, first + i, 24)[0], root / split / f"class{i % 3}" / f"{i:02d}.png")


def masks(root: Path) -> None:
    for split, first in SPLITS.items():
        for i in range(4):
            image, mask = render(i, first + i, 32)
            _save(image, root / "images" / split / f"{i}.png")
            _save(mask.astype(np.uint8), root / "masks" / split / f"{i}.png")
    (root / "classes.txt").write_text("ground\nthing\n")


def clips(root: Path) -> None:
    for number, (frame, mask) in enumerate(zip(*clip(9, 1, 4, 40), strict=True)):
        _save(frame, root / "frames" / "star" / f"{number:05d}.png")
        _save(mask.astype(np.uint8), root / "masks" / "star" / f"{number:05d}.png")


def boxes(root: Path) -> None:
    for split in ("train", "val"):
        for i in range(4):
            image, mask = render(i % 2, SPLITS[split] + i, 48)
            _save(image, root / "images" / split / f"{i}.png")
            (y0, x0), (y1, x1) = (f(np.argwhere(mask), 0) / 48 for f in (np.min, np.max))
            path = root / "labels" / split / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{i % 2} {(x0 + x1) / 2} {(y0 + y1) / 2} {x1 - x0} {y1 - y0}\n")
    (root / "data.yaml").write_text("names: [ring, star]\n")


def photos(root: Path) -> None:
    for i in range(8):
        _save(render(i, i, 32)[0], root / f"{i}.png")


def queries(root: Path) -> None:
    truth: dict[str, Any] = {"imlist": [], "qimlist": [], "gnd": []}
    for thing in range(3):
        for number in range(4):
            _save(render(thing, 10 * thing + number, 32)[0], root / "jpg" / f"{thing}_{number}.png")
        truth["qimlist"].append(f"{thing}_0")
        truth["imlist"] += [f"{thing}_{number}" for number in (1, 2, 3)]
        box, start = [0.0, 0.0, 32.0, 32.0], 3 * thing
        truth["gnd"].append({"bbx": box, "junk": [], "easy": [start], "hard": [start + 1, start + 2]})
    (root / "gnd.json").write_text(json.dumps(truth))


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
