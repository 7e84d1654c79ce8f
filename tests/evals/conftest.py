from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nolabel.networks.backbones import backbone
from nolabel.weights.load import Loaded


def write_images(folder: Path, counts: dict[str, int], seed: int = 0, size: tuple[int, int] = (20, 24)) -> None:
    """Class folders of noise around a colour of the class."""
    rng = np.random.default_rng(seed)
    for c, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        colour = np.random.default_rng(c).integers(60, 190, 3)
        for i in range(count):
            pixels = np.clip(colour + rng.normal(0, 30, (*size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")


@pytest.fixture
def splits_folder(tmp_path: Path) -> Path:
    """train: 3 classes of 12, val: 5, test: 4 images."""
    for seed, (split, count) in enumerate((("train", 12), ("val", 5), ("test", 4))):
        write_images(tmp_path / "pets" / split, dict.fromkeys(("cat", "dog", "newt"), count), seed)
    return tmp_path / "pets"


@pytest.fixture(scope="session")
def loaded() -> Loaded:
    """A ResNet of 8 to 64 channels for crops of 16 px."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = backbone("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64)})
    net.eval().requires_grad_(False)
    return Loaded(net, 16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bicubic", "some/where/tiny", "0123456789abcdef")
