"""The segmentation protocol: its parts on patches with known answers, and from images to the result file."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from nolabel.data.demo import world as world_module
from nolabel.errors import DataError, UsageError
from nolabel.evals.dense.fcn import Schedule, Segmenter, augment, finetune, segment
from nolabel.evals.dense.iou import VOID
from nolabel.evals.dense.layouts import scan_masked
from nolabel.evals.dense.patches import (
    Cells,
    colours,
    dilated,
    fit_knn,
    fit_linear,
    fit_size,
    in_batches,
    scenes,
    shares,
    to_classes,
)
from nolabel.evals.dense.segmentation import PROTOCOL, SegmentationConfig, measure_frozen, plan
from nolabel.evals.protocol import run
from nolabel.networks.backbones import backbone
from nolabel.weights.load import Loaded

SMALL = SegmentationConfig(short_side=32, epochs=5, bank_size=200, k=5)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Objects of the demo world and their masks, 40 px: train 12, val 4, test 6; the masks' border is void."""
    root = tmp_path_factory.mktemp("masked") / "shapes"
    for split, (first, count) in {"train": (0, 12), "val": (100, 4), "test": (200, 6)}.items():
        for i in range(count):
            image, mask = world_module.render(i % 10, first + i, 40)
            ids = mask.astype(np.uint8)
            ids[0] = 255
            for folder, pixels in (("images", image), ("masks", ids)):
                path = root / folder / split / f"{i:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (root / "classes.txt").write_text("ground\nthing\n")
    return root


@pytest.fixture(scope="module")
def vit() -> Loaded:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = backbone("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}, 32)
    net.eval().requires_grad_(False)
    return Loaded(net, 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bicubic", "tiny-vit", "0123456789abcdef")


def test_shares_by_hand() -> None:
    truth = torch.tensor([[0, 0, 1, 1], [0, 2, 1, VOID], [VOID, VOID, 2, 2]]).short()
    found = shares(truth, (1, 2), 3)
    assert found[0].tolist() == pytest.approx([3 / 6, 0, 1 / 6])
    assert found[1].tolist() == pytest.approx([0, 3 / 6, 2 / 6])
    assert torch.allclose(shares(truth, (3, 4), 3), F.one_hot(truth.long().clamp_min(0), 3).float().view(12, 3)
                          * (truth != VOID).view(12, 1))  # fmt: skip


def test_shares_where_cells_do_not_divide_the_image() -> None:
    """A pixel belongs to the cell its centre lies in."""
    truth = torch.arange(5).view(1, 5).expand(3, 5).short()
    found = shares(truth, (1, 2), 5)
    assert found[0].tolist() == pytest.approx([0.5, 0.5, 0, 0, 0])
    assert found[1].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3])


def test_to_classes_interpolates() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert to_classes(scores, (1, 2), (2, 8)).tolist() == [[0] * 4 + [1] * 4] * 2


@pytest.mark.parametrize(
    ("size", "short", "multiple", "expected"),
    [((360, 480), 180, None, (180, 240)), ((500, 300), 224, 16, (368, 224)), ((10, 400), 8, 16, (16, 320))],
)
def test_fit_size(size: tuple[int, int], short: int, multiple: int | None, expected: tuple[int, int]) -> None:
    assert fit_size(*size, short, multiple) == expected


def blobs(count: int, seed: int = 0) -> Cells:
    """Three clouds in eight dimensions, with pure labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    centres = 1.5 * torch.eye(8)[:3] * torch.tensor([1.0, 10.0, 0.1])[:, None]
    scale = torch.tensor([1.0, 10.0, 0.1, 1, 1, 1, 1, 1])  # scales differ: standardising has to help
    features = centres[labels] + scale * torch.randn(count, 8, generator=generator)
    return Cells(features, F.one_hot(labels, 3).float())


def test_linear_is_as_good_as_logistic_regression() -> None:
    train, test = blobs(3000), blobs(1000, seed=1)
    head = fit_linear(train, epochs=30, lr=1e-2, seed=0)
    ours = (head(test.features).argmax(1) == test.shares.argmax(1)).double().mean()
    mean, std = train.features.mean(0), train.features.std(0)
    oracle = LogisticRegression().fit((train.features - mean) / std, train.shares.argmax(1))
    theirs = oracle.score((test.features - mean) / std, test.shares.argmax(1))
    assert float(ours) == pytest.approx(theirs, abs=0.01)
    assert theirs > 0.75


def test_linear_learns_shares() -> None:
    """The scores of a patch are log shares of its classes, and what is void does not count."""
    generator = torch.Generator().manual_seed(0)
    side = (torch.rand(4000, 1, generator=generator) < 0.5).float()
    target = torch.cat([0.6 - 0.3 * side, 0.2 + 0.3 * side], 1)  # a fifth of the pixels is void
    head = fit_linear(Cells(side + 0 * target, target), 30, 1e-2, 0)
    found = head(torch.tensor([[0.0, 0.0], [1.0, 1.0]])).softmax(1)
    assert found[:, 0].tolist() == pytest.approx([0.75, 0.375], abs=0.02)


def test_knn_by_hand() -> None:
    angle = torch.tensor([0.0, 0.1, 0.5, 3.0])
    cells = Cells(torch.stack([angle.cos(), angle.sin()], 1) * 7, torch.tensor([[1.0, 0], [0.5, 0.5], [0, 1], [0, 1]]))
    found = fit_knn(cells, 10, 2, 0.07, 0)(torch.tensor([[2.0, 0.0]]))
    near = torch.tensor([1.0, torch.tensor(0.1).cos()]).div(0.07).softmax(0)
    assert found[0].tolist() == pytest.approx([float(near[0] + near[1] / 2), float(near[1] / 2)], rel=1e-5)


def test_knn_of_a_fixed_bank() -> None:
    cells, test = blobs(500), blobs(50, 1).features
    assert torch.equal(fit_knn(cells, 100, 5, 0.07, 3)(test), fit_knn(cells, 100, 5, 0.07, 3)(test))
    assert not torch.equal(fit_knn(cells, 100, 5, 0.07, 3)(test), fit_knn(cells, 100, 5, 0.07, 4)(test))


def test_dilation_keeps_weights_and_refines_the_map(loaded: Loaded, vit: Loaded) -> None:
    x = torch.zeros(1, 3, 64, 96)
    assert [dilated(loaded, s).backbone(x).grid for s in (8, 16, 32)] == [(8, 12), (4, 6), (2, 3)]
    wide = dilated(loaded, 8).backbone
    for name, tensor in loaded.backbone.state_dict().items():
        assert torch.equal(tensor, wide.state_dict()[name])
    assert loaded.backbone(x).grid == (2, 3)
    convs = [wide.model.layer3[0].conv2, wide.model.layer4[0].conv1, wide.model.layer4[0].conv2]
    assert [conv.dilation[0] for conv in convs] == [2, 2, 4]  # C5.4: dilations 1, 1, 2, 4, contracted
    assert dilated(vit, 8) is vit
    with pytest.raises(UsageError, match="output_stride is 8, 16 or 32"):
        dilated(loaded, 4)


def test_colours_are_the_pixels_of_the_patch(vit: Loaded) -> None:
    image = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found, grid = colours(vit.backbone, "cpu")(image)
    assert grid == (2, 3) and found.shape == (1, 6, 48)
    corner = F.avg_pool2d(image[:, :, :8, 8:16].float() / 255, 2)  # the second patch
    assert torch.allclose(found[0, 1], corner.flatten())


def test_scenes_come_in_batches_of_one_size(world: Path) -> None:
    masked = scan_masked(world)
    found = list(scenes(masked, "train", 24, 8, "bilinear"))
    assert {s.image.shape for s in found} == {(3, 24, 24)} and found[0].truth.shape == (40, 40)
    assert [len(batch) for batch in in_batches(found, 5)] == [5, 5, 2]
    other = [s._replace(image=s.image[:, :, : 24 - i // 6]) for i, s in enumerate(found)]
    assert [len(batch) for batch in in_batches(other, 5)] == [5, 1, 5, 1]
    again = list(scenes(masked, "train", 24, 8, "bilinear", workers=1))
    assert all(torch.equal(a.image, b.image) for a, b in zip(found, again, strict=True))


def test_result(loaded: Loaded, world: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name / "segmentation.json" for name in ("a", "b")]
    result = run(PROTOCOL, loaded, world, SMALL, outs[0])
    shutil.copytree(world, tmp_path / "moved" / "shapes")
    run(PROTOCOL, loaded, tmp_path / "moved" / "shapes", SMALL, outs[1])
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert json.loads(outs[0].read_text()) == json.loads(json.dumps(result))
    assert str(tmp_path) not in outs[0].read_text()
    assert list(result) == ["protocol", "version", "metrics", "floor", "settings", "data", "seed", "notes"]
    assert result["metrics"].keys() == {"knn", "linear"}
    assert result["floor"].keys() == {"colours", "random_weights", "place"}
    assert result["metrics"]["linear"]["iou"].keys() == {"ground", "thing"}
    assert result["data"]["reported_on"] == "test" and result["data"]["splits"]["test"]["images"] == 6
    assert 30 < result["floor"]["place"]["linear"]["miou"] < 100
    assert json.loads(outs[0].with_suffix(".time.json").read_text())["seconds"].keys() == {"frozen", "finetune"}


def test_a_linear_probe_finds_what_is_easy(loaded: Loaded, tmp_path: Path) -> None:
    """Colours alone tell the two classes apart: the floor of colours is near 100 %."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(6):
            left = int(rng.integers(1, 4)) * 8
            image = np.full((32, 32, 3), (200, 40, 40))
            image[:, :left] = (40, 40, 200)
            ids = np.ones((32, 32))
            ids[:, :left] = 0
            for folder, pixels in (("images", image), ("masks", ids)):
                path = tmp_path / folder / split / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    config = SegmentationConfig(short_side=32, epochs=50, bank_size=200, k=3)
    result = run(PROTOCOL, loaded, tmp_path, config)
    assert result["data"]["reported_on"] == "val" and result["data"]["classes"] == ("0", "1")
    assert result["floor"]["colours"]["linear"]["miou"] > 90
    assert result["floor"]["colours"]["knn"]["miou"] > 90
    assert result["floor"]["place"]["linear"]["miou"] < 75


def test_a_class_that_train_lacks_is_noted(loaded: Loaded, world: Path, tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    shutil.copytree(world, root)
    (root / "classes.txt").write_text("ground\nthing\nsky\n")
    mask = np.array(Image.open(root / "masks/test/00.png"))
    mask[5:9] = 2
    Image.fromarray(mask).save(root / "masks/test/00.png")
    result = run(PROTOCOL, loaded, root, SMALL)
    assert result["notes"] == ["without a pixel in train, so never found: sky"]
    assert result["metrics"]["linear"]["iou"]["sky"] == 0.0


def test_a_vit_and_few_patches(vit: Loaded, world: Path) -> None:
    config = SegmentationConfig(short_side=32, epochs=1, max_patches=24, ways=("linear",), floor=False)
    result = run(PROTOCOL, vit, world, config)
    assert result["settings"]["num_patches"] == 24 and result["floor"] == {}


def test_finetune(loaded: Loaded, world: Path) -> None:
    config = SegmentationConfig(ways=("finetune",), short_side=32, steps=2, head="linear", seed=3)
    before = {name: tensor.clone() for name, tensor in loaded.backbone.state_dict().items()}
    results = [run(PROTOCOL, loaded, world, config) for _ in range(2)]
    assert results[0] == results[1]
    assert results[0]["metrics"].keys() == {"finetune"} and results[0]["floor"] == {}
    assert results[0]["settings"]["finetune"]["steps"] == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.backbone.state_dict().items())
    assert not any(p.requires_grad for p in loaded.backbone.parameters())


def test_finetune_trains_everything(loaded: Loaded, vit: Loaded, world: Path) -> None:
    masked = scan_masked(world)
    for start, head in ((dilated(loaded, 16), "fcn"), (vit, "linear")):
        losses: list[float] = []
        config = SegmentationConfig()
        schedule = Schedule(4, 4, 1e-3 if head == "linear" else 0.02, 32, 32)
        net = finetune(
            start, masked, schedule, head, config, lambda step, m, to=losses: to.append(float(m["loss"] or 0))
        )
        assert len(losses) == 4
        assert losses[-1] < losses[0]
        moved = [n for n, p in net.backbone.model.named_parameters()
                 if not torch.equal(p, dict(start.backbone.model.named_parameters())[n])]  # fmt: skip
        assert len(moved) >= 0.9 * len(list(start.backbone.model.parameters()))
        assert (net.aux is not None) == (start is not vit)


def test_heads_of_the_paper() -> None:
    """R50-d8: 2 convolutions of 512 channels, concat, 2048 in; auxiliary 1024 to 256, one convolution."""
    with torch.random.fork_rng(devices=[]):
        net = Segmenter(backbone("resnet50", {"output_stride": 8}), 21, "fcn")
    shapes = [tuple(p.shape) for p in net.head.parameters() if p.dim() == 4]
    assert shapes == [(512, 2048, 3, 3), (512, 512, 3, 3), (512, 2560, 3, 3), (21, 512, 1, 1)]
    assert net.aux is not None
    assert [tuple(p.shape) for p in net.aux.parameters() if p.dim() == 4] == [(256, 1024, 3, 3), (21, 256, 1, 1)]


def test_the_schedule(loaded: Loaded, vit: Loaded, world: Path) -> None:
    masked = scan_masked(world)
    assert plan(loaded, masked, SegmentationConfig(schedule="paper")) == (Schedule(20_000, 16, 0.01, 512, 512), "fcn")
    cityscapes = plan(loaded, masked._replace(layout="Cityscapes"), SegmentationConfig(schedule="paper"))[0]
    assert cityscapes == Schedule(40_000, 8, 0.01, 769, 1024, True, 513)
    scaled, head = plan(vit, masked, SegmentationConfig())
    assert (scaled.steps, scaled.batch_size, scaled.crop, head) == (30, 12, 72, "linear")


def test_windows_give_what_the_whole_image_gives() -> None:
    """With a network that looks at single pixels, cutting the image changes nothing."""

    class Pixelwise(Segmenter):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.num_classes = 3

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            return x, None

    x = torch.randn(1, 3, 20, 33, generator=torch.Generator().manual_seed(0))
    whole = segment(Pixelwise(), x, (20, 33), Schedule(1, 1, 1, 8, 8))
    assert torch.equal(segment(Pixelwise(), x, (20, 33), Schedule(1, 1, 1, 8, 8, stride=5)), whole)
    assert torch.equal(whole, x[0].argmax(0))


def test_augment_moves_image_and_classes_together() -> None:
    truth = torch.zeros(30, 40).long()
    truth[5:20, 10:25] = 1
    truth[25:] = VOID
    picture = (truth.clamp_min(0) * 200).byte().expand(3, -1, -1)
    schedule = Schedule(1, 1, 1, 24, 20)
    for number in range(20):
        rng = np.random.Generator(np.random.Philox(key=[0, number]))
        image, classes = augment(picture, truth, schedule, rng, (0, 0, 0))
        assert image.shape == (3, 24, 24) and image.dtype == torch.uint8 and classes.shape == (24, 24)
        assert set(classes.unique().tolist()) <= {VOID, 0, 1}
        inside, outside = image[0][classes == 1].float(), image[0][classes == 0].float()
        if len(inside) > 30 and len(outside) > 30:
            assert inside.mean() > outside.mean() + 60
    seeds = [np.random.Generator(np.random.Philox(key=[0, 1])) for _ in range(2)]
    a, b = (augment(picture, truth, schedule, rng, (0, 0, 0)) for rng in seeds)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize(
    "config",
    [
        SegmentationConfig(ways=()),
        SegmentationConfig(ways=("knn", "knn")),
        SegmentationConfig(short_side=0),
        SegmentationConfig(epochs=0),
        SegmentationConfig(lr=0),
        SegmentationConfig(batch_size=0),
    ],
)
def test_bad_settings_are_refused_at_once(loaded: Loaded, config: SegmentationConfig) -> None:
    with pytest.raises(UsageError):
        run(PROTOCOL, loaded, "nowhere", config)


def test_a_test_of_void_and_a_network_that_cannot_be_dilated(loaded: Loaded, world: Path, tmp_path: Path) -> None:
    flat = backbone("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}).eval()
    with pytest.raises(UsageError, match="other layers at an output stride of 8"):
        dilated(loaded._replace(backbone=flat), 8)
    root = tmp_path / "void"
    shutil.copytree(world, root)
    for split in ("val", "test"):
        for path in (root / "masks" / split).glob("*.png"):
            Image.fromarray(np.full_like(np.array(Image.open(path)), 255)).save(path)
    with pytest.raises(DataError, match="is void: there is nothing to measure"):
        run(PROTOCOL, loaded, root, SMALL)


def test_no_train_or_one_class(loaded: Loaded, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "shapes")
    with pytest.raises(DataError, match="hold 1 class beside void"):
        run(PROTOCOL, loaded, tmp_path / "shapes", SegmentationConfig(void=1))
    for folder in ("images", "masks"):
        shutil.rmtree(tmp_path / "shapes" / folder / "train")
    with pytest.raises(DataError, match="holds val and test and not train"):
        run(PROTOCOL, loaded, tmp_path / "shapes", SMALL)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_mask_stops_it_with_a_short_error(loaded: Loaded, world: Path, tmp_path: Path, workers: int) -> None:
    shutil.copytree(world, tmp_path / "shapes")
    Image.new("L", (7, 7)).save(tmp_path / "shapes/masks/train/03.png")
    config = SegmentationConfig(short_side=32, workers=workers)
    with pytest.raises(DataError, match="has 7 x 7 pixels") as caught:
        run(PROTOCOL, loaded, tmp_path / "shapes", config)
    assert len(str(caught.value).splitlines()) <= 5


def test_camvid(loaded: Loaded, data_packs: Path, tmp_path: Path) -> None:
    """The layout, the classes and void of the real pack; a few of its images through the protocol."""
    pack = data_packs / "dense" / "camvid.zip"
    if not pack.is_file():
        pytest.skip(f"{pack} is absent")
    masked = scan_masked(pack)
    assert {split: len(pairs.masks) for split, pairs in masked.splits.items()} == {
        "train": 367,
        "val": 101,
        "test": 233,
    }
    assert len(masked.classes.ids) == 11 and masked.classes.void == (11, 255)
    few = {split: type(pairs)(pairs.pictures[:6], pairs.masks[:6]) for split, pairs in masked.splits.items()}
    found = measure_frozen(
        loaded, masked._replace(splits=few), "test", SegmentationConfig(short_side=64, epochs=20), ["linear"]
    )
    assert set(found.scores) == {"weights", "colours", "random_weights", "place"}
    assert 10 < found.scores["colours"]["linear"]["miou"] < 60
    assert 10 < found.scores["place"]["linear"]["miou"] < 60
