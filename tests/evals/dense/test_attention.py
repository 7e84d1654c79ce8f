"""The attention protocol: masks and scores by hand, objects and void, and from images to the result."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nolabel.data.demo import world as world_module
from nolabel.errors import DataError, UsageError
from nolabel.evals.dense.attention import PROTOCOL, AttentionConfig, attention_of, head_scores
from nolabel.evals.dense.iou import VOID
from nolabel.evals.protocol import run
from nolabel.networks.backbones import backbone
from nolabel.weights.load import Loaded

SMALL = AttentionConfig(short_side=64)


@pytest.fixture(scope="module")
def vit() -> Loaded:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = backbone("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}, 32)
    net.eval().requires_grad_(False)
    return Loaded(net, 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bicubic", "tiny-vit", "0123456789abcdef")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of the demo world with the mask of their object, and one without an object."""
    root = tmp_path_factory.mktemp("objects") / "shapes"
    for i in range(7):
        image, mask = world_module.render(i, i, 40)
        for folder, pixels in (("images", image), ("masks", (mask & (i < 6)).astype(np.uint8))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    return root


def test_head_scores_by_hand() -> None:
    """Two heads on a 2 x 2 grid, each patch 2 x 2 pixels: one sees the upper left patch, one the lower row."""
    maps = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.5, 0.5]]])
    truth = torch.zeros(4, 4).long()
    truth[:2, :2] = 1
    truth[2:, 2:] = 2
    scores = head_scores(maps, truth, [1, 2], (0.6, 1.0))
    assert scores[:, 0].tolist() == [[1.0, 0.0], [0.0, 0.5]]
    truth[2:, :2] = VOID  # the wrong half of the second head's mask no longer counts
    assert head_scores(maps, truth, [1, 2], (0.6,))[:, 0].tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_result(vit: Loaded, world: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name / "attention.json" for name in ("a", "b")]
    result = run(PROTOCOL, vit, world, SMALL, outs[0])
    shutil.copytree(world, tmp_path / "moved" / "shapes")
    run(PROTOCOL, vit, tmp_path / "moved" / "shapes", SMALL, outs[1])
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert json.loads(outs[0].read_text()) == json.loads(json.dumps(result))
    assert str(tmp_path) not in outs[0].read_text()
    assert list(result) == ["protocol", "version", "metrics", "floor", "settings", "data", "seed", "notes"]
    assert result["metrics"]["jaccard"].keys() == {"60", "80"}
    assert (result["metrics"]["num_objects"], result["metrics"]["num_heads"]) == (6, 2)
    assert result["metrics"]["jaccard"]["60"] >= result["metrics"]["one_head"]["60"] > 0
    shares = [np.asarray(Image.open(p)).mean() for p in sorted((world / "masks").iterdir())[:6]]
    for share in ("60", "80"):
        assert result["floor"]["whole_image"]["jaccard"][share] == pytest.approx(100 * float(np.mean(shares)), abs=1e-3)
    assert result["floor"].keys() == {"random_weights", "whole_image"}
    assert result["settings"]["maps"] == "attention" and result["notes"] == []


def test_the_best_head_of_each_object_counts(vit: Loaded, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One head that sees everything and one that sees the middle: the best is taken object by object."""
    middle = torch.zeros(8, 8)
    middle[2:6, 2:6] = 1
    maps = torch.stack([torch.ones(8, 8), middle])
    monkeypatch.setattr("nolabel.evals.dense.attention.attention_of", lambda *_: maps)
    config = AttentionConfig(short_side=64, keep=(1.0,), floor=False)
    metrics = run(PROTOCOL, vit, world, config)["metrics"]
    expected, each = [], []
    for i in range(6):
        mask = torch.from_numpy(np.asarray(Image.open(world / f"masks/{i}.png")).astype(bool))
        each.append(head_scores(maps, mask.long(), [1], (1.0,))[0, 0])
        expected.append(float(each[-1].max()))
    assert metrics["jaccard"]["100"] == pytest.approx(100 * sum(expected) / 6, abs=1e-3)
    assert metrics["one_head"]["100"] == pytest.approx(100 * float(torch.stack(each).mean(0).max()), abs=1e-3)


def test_a_cnn_has_a_stand_in(loaded: Loaded, world: Path) -> None:
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    maps = attention_of(loaded.backbone, x)
    assert maps.shape == (1, 2, 3) and float(maps.min()) == 0
    result = run(PROTOCOL, loaded, world, SMALL)
    assert result["settings"]["maps"] == "cosine to pooled"
    assert result["notes"] == ["no class token: the map is the cosine of each location with the pooled feature"]


def test_voc_objects_are_instances(vit: Loaded, tmp_path: Path) -> None:
    """Two dogs are one class and two objects."""
    root = tmp_path / "VOC2012"
    ids = np.zeros((40, 40), np.uint8)
    ids[5:15, 5:15], ids[20:30, 20:30] = 1, 2
    ids[0] = 255
    for folder, pixels in (
        ("JPEGImages", np.full((40, 40, 3), 99, np.uint8)),
        ("SegmentationObject", ids),
        ("SegmentationClass", np.where(np.isin(ids, (1, 2)), 12, ids).astype(np.uint8)),
    ):
        (root / folder).mkdir(parents=True)
        for name in ("a", "b"):
            Image.fromarray(pixels).save(root / folder / f"{name}.png")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for split, name in (("train", "a"), ("val", "b")):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text(f"{name}\n")
    assert run(PROTOCOL, vit, tmp_path, SMALL)["metrics"]["num_objects"] == 2
    shutil.rmtree(root / "SegmentationObject")
    assert run(PROTOCOL, vit, tmp_path, SMALL)["metrics"]["num_objects"] == 1


def test_a_part_of_the_images(vit: Loaded, world: Path) -> None:
    config = AttentionConfig(short_side=64, max_images=2, floor=False)
    result = run(PROTOCOL, vit, world, config)
    assert result["data"]["num_images"] == 2 and result["notes"] == ["2 of 7 images"]


def test_no_object(vit: Loaded, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "shapes")
    for path in (tmp_path / "shapes/masks").iterdir():
        Image.new("L", (40, 40)).save(path)
    with pytest.raises(DataError, match="No image has an object"):
        run(PROTOCOL, vit, tmp_path / "shapes", SMALL)


@pytest.mark.parametrize(
    "config",
    [
        AttentionConfig(keep=()),
        AttentionConfig(keep=(1.2,)),
        AttentionConfig(max_images=0),
    ],
)
def test_bad_settings_are_refused_at_once(vit: Loaded, config: AttentionConfig) -> None:
    with pytest.raises(UsageError):
        run(PROTOCOL, vit, "nowhere", config)


def test_camvid_and_coco(vit: Loaded, data_packs: Path) -> None:
    for name, split in (("camvid", "test"), ("coco256", "val")):
        pack = data_packs / "dense" / f"{name}.zip"
        if not pack.is_file():
            pytest.skip(f"{pack} is absent")
        result = run(PROTOCOL, vit, pack, AttentionConfig(short_side=64, max_images=3))
        assert result["data"]["reported_on"] == split
        assert result["metrics"]["num_objects"] > 10
        assert 1 < result["metrics"]["jaccard"]["60"] < 50
