"""Networks of all families of timm: one contract, one choice of arguments, refusals in words."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from nolabel.catalog import measured_backbones
from nolabel.errors import UsageError
from nolabel.networks.backbones import backbone
from nolabel.networks.features import find_grid
from nolabel.networks.inspect import cosine_to_pooled
from nolabel.weights.load import load_weights
from nolabel.weights.timm import save_weights

_SPEC = importlib.util.spec_from_file_location("survey", Path(__file__).parents[2] / "benchmarks/backbones.py")
assert _SPEC is not None and _SPEC.loader is not None
survey = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(survey)

VIT = {"embed_dim": 32, "depth": 1, "num_heads": 2}
SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
ANY_SIZE: dict[str, Mapping[str, Any]] = {
    "deit_tiny_patch16_224": VIT,
    "deit_tiny_distilled_patch16_224": VIT,
    "vit_tiny_patch16_dinov3_qkvb": VIT,
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "test_convnext": {},
    "mobilenetv3_small_050": {},
    "test_mambaout": {},
}
"""Small networks of families that take every size of image."""


@pytest.mark.parametrize("name", ANY_SIZE)
def test_a_network_of_any_size_has_features_at_each_and_opens_in_timm(name: str, tmp_path: Path) -> None:
    net = backbone(name, ANY_SIZE[name], image_size=64, drop_path=0.1).eval()
    net.check_sizes([32, 64, 96])
    for size in (32, 64, 96):
        out = net(torch.randn(2, 3, size, size))
        rows, columns = out.grid
        assert out.pooled.shape == (2, net.num_features) and out.patches.shape == (
            2,
            rows * columns,
            net.patch_features,
        )
        assert cosine_to_pooled(out).shape == (2, rows * columns)
    save_weights(net, tmp_path / "w", 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    theirs = timm.create_model(f"local-dir:{tmp_path}/w", pretrained=True, num_classes=0).eval()
    x = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(theirs(x), net(x).pooled)
    assert torch.equal(load_weights(tmp_path / "w").backbone(x).pooled, net(x).pooled)


def test_widths_come_from_a_forward_pass() -> None:
    net = backbone("mobilenetv3_small_050")
    assert (net.num_features, net.patch_features, net.model.num_features) == (1024, 288, 288)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("cait_xxs24_224", VIT | {"depth": 1}),
        ("beit_base_patch16_224", VIT),
        ("test_maxvit", {}),
        ("levit_128s", {}),
    ],
)
def test_a_network_of_one_size_takes_that_of_its_images_and_refuses_others(name: str, args: Mapping[str, Any]) -> None:
    net = backbone(name, args, image_size=64).eval()
    assert net.args["img_size"] == 64 and net(torch.randn(1, 3, 64, 64)).pooled.shape == (1, net.num_features)
    assert net.takes(64) and not net.takes(96)
    expected = rf"^{name} does not take images of 96x96 px \(.*\)\.\nUse 64 px throughout, or .*any size"
    with pytest.raises(UsageError, match=expected):
        net.check_sizes([64, 96])
    with pytest.raises(UsageError, match=expected):
        net(torch.randn(1, 3, 96, 96))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("crossvit_tiny_240", "list of tensors"),
        ("pit_ti_distilled_224", "no map"),
        ("efficientvim_m1", "of tensors"),
        ("mobilenetv5_300m_enc", "pre_logits"),
    ],
)
def test_a_network_without_a_map_is_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=rf"(?s)cannot use {name}.*{reason}.*such as \w+.*list backbones --all"):
        backbone(name)


def test_a_rate_of_zero_is_no_drop_path_and_a_network_may_have_none() -> None:
    def rates(name: str, drop_path: float) -> set[float]:
        net = backbone(name, ANY_SIZE.get(name), drop_path=drop_path)
        return {m.drop_prob for m in net.modules() if type(m).__name__ == "DropPath"}

    assert rates("swin_tiny_patch4_window7_224", 0.0) <= {0.0}  # timm's default is 0.1
    assert max(rates("swin_tiny_patch4_window7_224", 0.2)) == pytest.approx(0.2)
    assert rates("ghostnet_050", 0.2) == set()  # takes no such argument


def test_measuring_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    mine = backbone("test_convnext").model.state_dict()
    torch.manual_seed(0)
    plain = timm.create_model("test_convnext", num_classes=0, drop_path_rate=0.0).state_dict()
    assert list(mine) == list(plain) and all(torch.equal(mine[key], plain[key]) for key in mine)


@pytest.mark.parametrize(
    ("tokens", "prefix", "size", "expected"),
    [
        (196, 0, (224, 224), (0, (14, 14))),
        (197, None, (224, 224), (1, (14, 14))),
        (51, 1, (80, 160), (1, (5, 10))),
        (28, 0, (100, 60), (0, (7, 4))),  # sides are rounded up to whole strides
        (1, None, (32, 32), (0, (1, 1))),
    ],
)
def test_tokens_lie_on_a_grid_with_the_images_aspect(
    tokens: int, prefix: int | None, size: tuple[int, int], expected: tuple[int, tuple[int, int]]
) -> None:
    assert find_grid(tokens, prefix, *size) == expected


def test_tokens_that_form_no_grid_are_refused() -> None:
    with pytest.raises(TypeError, match="no grid"):
        find_grid(7, 0, 224, 224)


TABLE = measured_backbones()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv3_small_050", "levit_128s"])
def test_the_table_of_networks_is_what_is_measured(name: str) -> None:
    assert survey.sizes_of(name) == TABLE[name].sizes
    assert timm.model_entrypoint(name).__module__.endswith(f".{TABLE[name].family}")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TABLE)
def test_every_network_of_the_table_holds_the_contract(name: str) -> None:
    assert survey.sizes_of(name) == TABLE[name].sizes
    assert survey.num_values(name) > survey.MOST_VALUES or not survey.check(name)
