"""The demo world: the same on every machine, its classes told by shape alone."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nolabel.data.demo import world as world_module
from nolabel.data.images import scan_labelled
from nolabel.errors import UsageError
from nolabel.evals.classification.neighbours import knn, raw_floor
from nolabel.evals.shared.features import FeatureTable, raw_pixels


def test_the_pictures_never_change() -> None:
    """Golden hashes: a changed world would make every recorded number of the demo wrong."""
    digest = hashlib.sha256()
    for class_id in range(len(world_module.CLASSES)):
        for size in (32, 50):
            image, mask = world_module.render(class_id, 17 * class_id, size)
            digest.update(image.tobytes() + mask.tobytes())
    assert digest.hexdigest()[:16] == "68bb27fd16424122"


@pytest.mark.parametrize("size", [32, 96])
def test_pictures_and_masks(size: int) -> None:
    for class_id in range(len(world_module.CLASSES)):
        image, mask = world_module.render(class_id, class_id, size)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        assert mask.shape == (size, size) and mask.dtype == bool
        assert 0.04 < mask.mean() < 0.7
        assert image.std() > 4


def test_a_seed_is_a_scene_and_the_class_its_outline() -> None:
    (a, inside_a), (b, inside_b) = world_module.render(0, 5), world_module.render(9, 5)
    around = ~(inside_a | inside_b)
    assert not np.array_equal(inside_a, inside_b)
    # Halo and shading follow the outline, everything else is equal.
    assert np.abs(a[around].astype(int) - b[around]).mean() < 8
    assert not np.array_equal(world_module.render(0, 5)[0], world_module.render(0, 6)[0])


def table(features: list[np.ndarray], labels: list[int]) -> FeatureTable:
    x = torch.tensor(np.stack(features)).float().flatten(1)
    return FeatureTable(x, torch.tensor(labels), tuple(map(str, range(len(labels)))))


def cut_out(mask: np.ndarray) -> np.ndarray:
    """The mask's bounding box at 24 x 24 pixels, or mirrored where that has more weight on the left."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    small = np.asarray(Image.fromarray(box.astype(np.uint8) * 255).resize((24, 24)), dtype=np.float32) / 255 - 0.5
    return small if small[:, :12].sum() >= small[:, 12:].sum() else small[:, ::-1]


def test_shape_gives_the_class_and_colours_do_not() -> None:
    shapes, colors, labels = [], [], []
    for i in range(1500):
        image, mask = world_module.render(i % 10, i)
        shapes.append(cut_out(mask))
        colors.append(np.concatenate([image[mask].mean(0), image[mask].std(0), image[~mask].mean(0)]) - 100)
        labels.append(i % 10)
    split = 1200
    accuracy = {
        name: knn(table(x[:split], labels[:split]), table(x[split:], labels[split:]), (20,)).top1[20]
        for name, x in (("shapes", shapes), ("colors", colors))
    }
    assert accuracy["shapes"] > 85
    assert accuracy["colors"] < 20


def test_raw_pixels_give_little_away(tmp_path: Path) -> None:
    world_module.write(tmp_path / "world", 1500, 500, 32, seed=3)
    splits = scan_labelled(tmp_path / "world")
    assert splits["train"].classes == world_module.CLASSES
    assert [len(splits[name].labels) for name in ("train", "val")] == [1500, 500]
    assert raw_floor(raw_pixels(splits["train"]), raw_pixels(splits["val"]), (20,)).top1[20] < 35
    names = sorted((tmp_path / "world").rglob("*.png"))
    assert len({p.read_bytes() for p in names}) == 2000
    with pytest.raises(UsageError, match="not an empty folder"):
        world_module.write(tmp_path / "world", 1, 1, 32, seed=3)


def test_clips_move_and_begin_with_the_picture() -> None:
    frames, masks = world_module.clip(4, 8, 12, 48)
    assert frames.shape == (12, 48, 48, 3) and masks.shape == (12, 48, 48)
    image, mask = world_module.render(4, 8, 48)
    assert np.array_equal(frames[0], image) and np.array_equal(masks[0], mask)
    overlap = [(masks[0] & m).sum() / (masks[0] | m).sum() for m in masks]
    assert overlap[1] > 0.7 and overlap[-1] < overlap[1]


def test_wrong_arguments() -> None:
    with pytest.raises(UsageError, match="below 10"):
        world_module.render(10, 0)
    for class_id in (-1, 10):
        with pytest.raises(UsageError, match="below 10"):
            world_module.clip(class_id, 0, 2, 32)
    with pytest.raises(UsageError, match="at least one frame"):
        world_module.clip(0, 0, 0, 32)
