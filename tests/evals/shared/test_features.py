"""From class folders to tables: the crop of the papers, bad files, modes, random states, workers."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from nolabel.config import update
from nolabel.data.images import LabelledImages, scan_labelled
from nolabel.errors import DataError, NumericError, UsageError
from nolabel.evals.protocol import EvalConfig
from nolabel.evals.shared.cache import pooled
from nolabel.evals.shared.features import evaluation_crop, raw_pixels, squash
from nolabel.networks.backbones import Features
from nolabel.weights.load import Loaded


@pytest.fixture
def train(splits_folder: Path) -> LabelledImages:
    return scan_labelled(splits_folder)["train"]


def picture(height: int, width: int) -> Tensor:
    """Smooth blobs, (3, H, W) uint8."""
    y, x = np.mgrid[:height, :width] / 9
    waves = [np.sin(x + c) * np.cos(y - c) for c in range(3)]
    return torch.from_numpy((127.5 + 120 * np.stack(waves)).astype(np.uint8))


def with_pillow(image: Tensor, width: int, height: int) -> Tensor:
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def test_the_crop_at_224_is_that_of_the_papers() -> None:
    """Resize the shorter side to 256, cut 224 from the centre."""
    image = picture(300, 400)
    expected = with_pillow(image, 341, 256)[:, 16:240, 58:282]
    crop = evaluation_crop(image, 224)
    assert crop.shape == (3, 224, 224)
    difference = (crop.int() - expected.int()).abs().float()
    assert difference.max() <= 2
    assert difference.mean() < 0.1


@pytest.mark.parametrize(("size", "shorter"), [(16, 18), (32, 37), (64, 73), (96, 110), (224, 256)])
def test_the_crop_scales_with_its_size(size: int, shorter: int) -> None:
    image = picture(shorter, shorter + 8)  # needs no resizing
    top = round((shorter - size) / 2)
    left = round((shorter + 8 - size) / 2)
    assert torch.equal(evaluation_crop(image, size), image[:, top : top + size, left : left + size])


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 2), (31, 7)])
def test_the_crop_of_any_shape(shape: tuple[int, int]) -> None:
    assert evaluation_crop(picture(*shape), 16).shape == (3, 16, 16)


def test_the_crop_of_a_strip_is_its_middle() -> None:
    strip = picture(20, 400)
    assert torch.equal(evaluation_crop(strip, 16), evaluation_crop(strip[:, :, 150:250], 16))


def test_bilinear_weights_get_bilinear_crops() -> None:
    image = picture(40, 40)
    assert not torch.equal(evaluation_crop(image, 16), evaluation_crop(image, 16, "bilinear"))


def test_squash_keeps_the_whole_image() -> None:
    image = picture(60, 90)
    assert (squash(image, 32).int() - with_pillow(image, 32, 32).int()).abs().max() <= 1


def test_pooled_features(loaded: Loaded, train: LabelledImages) -> None:
    table = pooled(loaded, train, EvalConfig(batch_size=5), None)
    assert table.features.shape == (36, 64)
    assert table.features.dtype == torch.float32
    assert table.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12 == list(train.labels)
    assert table.ids == train.images.names
    assert table.features.std(0).max() > 0
    pixels = torch.from_numpy(np.array(Image.open(Path(train.images.root, train.images.names[7])))).permute(2, 0, 1)
    x = evaluation_crop(pixels, 16)[None] / 255
    torch.testing.assert_close(table.features[7:8], loaded.backbone((x - 0.5) / 0.2).pooled)


def test_image_size_replaces_that_of_the_weights(loaded: Loaded, train: LabelledImages) -> None:
    assert not torch.equal(
        pooled(loaded, train, EvalConfig(image_size=32), None).features,
        pooled(loaded, train, EvalConfig(), None).features,
    )


def test_workers_and_batches_change_no_feature(loaded: Loaded, train: LabelledImages) -> None:
    expected = pooled(loaded, train, EvalConfig(), None)
    again = pooled(loaded, train, EvalConfig(workers=2), None)
    assert torch.equal(again.features, expected.features)
    assert again.ids == expected.ids
    torch.testing.assert_close(pooled(loaded, train, EvalConfig(batch_size=1), None).features, expected.features)


def test_precision(loaded: Loaded, train: LabelledImages) -> None:
    exact = pooled(loaded, train, EvalConfig(), None).features
    rough = pooled(loaded, train, EvalConfig(precision="bf16"), None).features
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()
    with pytest.raises(UsageError, match=r"precision cannot be 'fp8': expected .*fp16"):
        update(EvalConfig(), {"precision": "fp8"})


def test_the_network_in_training_is_left_as_it_was(loaded: Loaded, train: LabelledImages) -> None:
    net = copy.deepcopy(loaded.backbone).train().requires_grad_(True)
    frozen = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    modes = [m.training for m in net.modules()]
    state = copy.deepcopy(net.state_dict())
    random = torch.get_rng_state()
    table = pooled(loaded._replace(backbone=net), train, EvalConfig(), None)
    assert [m.training for m in net.modules()] == modes
    assert not frozen.training
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(table.features, pooled(loaded, train, EvalConfig(), None).features)  # eval mode was used
    probe = torch.zeros(64, requires_grad=True)
    (table.features @ probe).sum().backward()  # the features are ordinary tensors
    assert probe.grad is not None


class Keeps(nn.Module):
    """A network that keeps a tensor of its forward, as position caches do."""

    def forward(self, x: Tensor) -> Features:
        self.kept = x.mean((2, 3))
        return Features(self.kept, x.flatten(2).transpose(1, 2), (16, 16))


def test_what_a_network_keeps_can_be_trained_on(loaded: Loaded, train: LabelledImages) -> None:
    net = Keeps()
    pooled(loaded._replace(backbone=net), train, EvalConfig(), None)  # type: ignore[arg-type]
    assert not net.kept.is_inference()


def test_modes_come_back_after_an_error(loaded: Loaded, train: LabelledImages) -> None:
    net = copy.deepcopy(loaded.backbone).train()
    with torch.no_grad():
        next(net.parameters()).fill_(torch.nan)
    with pytest.raises(NumericError, match="36 of 36 images have features that are not finite"):
        pooled(loaded._replace(backbone=net), train, EvalConfig(), None)
    net.model.conv1 = nn.Identity()
    with pytest.raises(RuntimeError):
        pooled(loaded._replace(backbone=net), train, EvalConfig(), None)
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_files_are_left_out(loaded: Loaded, train: LabelledImages, workers: int) -> None:
    root = Path(train.images.root)
    for i in (0, 13, 35):
        (root / train.images.names[i]).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (root / train.images.names[20]).unlink()
    good = [i for i in range(36) if i not in (0, 13, 20, 35)]
    for table in (
        pooled(loaded, train, EvalConfig(batch_size=1, workers=workers), None),
        raw_pixels(train, workers=workers),
    ):
        assert table.ids == tuple(train.images.names[i] for i in good)
        assert table.labels.tolist() == [train.labels[i] for i in good]
        assert len(table.features) == 32


def test_nothing_readable(loaded: Loaded, train: LabelledImages) -> None:
    for name in train.images.names:
        Path(train.images.root, name).write_bytes(b"")
    for read in (raw_pixels, lambda images: pooled(loaded, images, EvalConfig(), None)):
        with pytest.raises(DataError, match="None of the 36 images"):
            read(train)


def test_raw_pixels(train: LabelledImages) -> None:
    table = raw_pixels(train)
    assert table.features.shape == (36, 3 * 32 * 32)
    image = Image.open(Path(train.images.root, train.images.names[30])).resize((32, 32), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1).flatten() / 255
    assert (table.features[30] - expected).abs().max() < 1.01 / 255
