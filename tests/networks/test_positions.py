"""Position embeddings at other sizes: slow bicubic loops, and what timm and a copy make of them."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nolabel.networks.backbones import Backbone, backbone
from nolabel.networks.positions import WAYS, Resampling, resample

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SIZES = [(2, 2), (6, 3), (4, 8), (9, 9), (4, 2)]


def vit(positions: Resampling, **more: Any) -> Backbone:
    torch.manual_seed(0)
    return backbone("vit_tiny_patch16_224", VIT | more, image_size=32, positions=positions).eval()


def cubic(x: float) -> float:
    """Keys' kernel with a = -0.75, as torch has it."""
    x = abs(x)
    if x <= 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def slow_weights(old: int, new: int, scale: float) -> list[list[float]]:
    """Row i: the share of each old place in the new place i, which lies at (i + 0.5) / scale - 0.5."""
    rows = []
    for i in range(new):
        at = (i + 0.5) / scale - 0.5
        row = [0.0] * old
        for place in range(math.floor(at) - 1, math.floor(at) + 3):
            row[min(max(place, 0), old - 1)] += cubic(at - place)  # the border goes on
        rows.append(row)
    return rows


def slow_resample(positions: Tensor, stored: tuple[int, int], grid: tuple[int, int], offset: float) -> Tensor:
    scales = [(new + offset) / old for new, old in zip(grid, stored, strict=True)] if offset else None
    scales = scales or [new / old for new, old in zip(grid, stored, strict=True)]
    rows, columns = (torch.tensor(slow_weights(*sides)) for sides in zip(stored, grid, scales, strict=True))
    planes = positions[0].view(*stored, -1)
    return torch.einsum("ar,bc,rcd->abd", rows, columns, planes).flatten(0, 1)[None]


@pytest.mark.parametrize("grid", SIZES)
@pytest.mark.parametrize(("way", "offset"), [("dino", 0.1), ("msn", 0.0)])
def test_the_authors_ways_are_the_slow_loop(way: Resampling, offset: float, grid: tuple[int, int]) -> None:
    positions = torch.randn(1, 16, 5, generator=torch.Generator().manual_seed(0))
    expected = slow_resample(positions, (4, 4), grid, offset)
    torch.testing.assert_close(resample(positions, (4, 4), grid, way), expected, rtol=1e-4, atol=1e-5)
    other = slow_resample(positions, (4, 4), grid, 0.1 - offset)
    assert (expected - other).abs().max() > 1e-2, "else the offset is not tested"


@pytest.mark.parametrize("more", [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}], ids=str)
@pytest.mark.parametrize("apart", [False, True])
def test_tokens_are_those_of_timm_but_for_the_resampling(apart: bool, more: dict[str, Any]) -> None:
    """With and without class token and registers, which have positions of their own or none."""
    more = more | {"no_embed_class": apart}
    nets = {way: vit(way, **more) for way in WAYS}
    x = torch.randn(3, 3, 48, 16)
    tokens = {way: net.model._pos_embed(net.model.patch_embed(x)) for way, net in nets.items()}
    assert tokens["dino"].shape == tokens["timm"].shape
    model: Any = nets["timm"].model
    number = 0 if apart else model.num_prefix_tokens
    own = model.pos_embed[:, number:]
    for way in ("dino", "msn"):
        exchanged = tokens["timm"][:, model.num_prefix_tokens :] - timms(own) + resample(own, (4, 4), (6, 2), way)
        torch.testing.assert_close(tokens[way][:, model.num_prefix_tokens :], exchanged)
        torch.testing.assert_close(
            tokens[way][:, : model.num_prefix_tokens], tokens["timm"][:, : model.num_prefix_tokens]
        )


def timms(positions: Tensor) -> Tensor:
    planes = positions.unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(planes, (6, 2), mode="bicubic", antialias=True)
    return small.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("way", ["dino", "msn"])
def test_at_the_stored_size_the_weights_are_timms(way: Resampling) -> None:
    ours, timms = vit(way), vit("timm")
    assert ours.positions == way and ours.state_dict().keys() == timms.state_dict().keys()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(x).patches, timms(x).patches)
    for size in ((16, 16), (64, 64), (16, 64)):  # the last one has as many patches
        x = torch.randn(2, 3, *size)
        assert not torch.allclose(ours(x).patches, timms(x).patches), size
        assert torch.equal(ours(x).pooled, ours.intermediate(x, 1)[0].pooled)
    ours(x).pooled[:, 0].sum().backward()
    assert ours.model.pos_embed.grad.abs().sum() > 0


def test_small_crops_keep_the_spread_of_an_untrained_embedding() -> None:
    """From 14 x 14 to 6 x 6; antialiasing leaves 42 % of the authors' spread."""
    torch.manual_seed(0)
    net = backbone("vit_small_patch16_224", {"depth": 1})
    own = net.model.pos_embed[:, 1:].detach()
    spread = {way: float(resample(own, (14, 14), (6, 6), way).std() / own.std()) for way in ("dino", "msn")}
    planes = own.unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    blurred = torch.nn.functional.interpolate(planes, (6, 6), mode="bicubic", antialias=True)
    assert all(0.8 < share < 0.9 for share in spread.values())
    assert all(float(blurred.std() / own.std()) / share == pytest.approx(0.42, abs=0.01) for share in spread.values())


def test_a_copy_resamples_its_own_embedding() -> None:
    net = vit("dino")
    other = copy.deepcopy(net)
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(net(x).pooled, other(x).pooled)
    with torch.no_grad():
        other.model.pos_embed.zero_()
    assert not torch.equal(net(x).pooled, other(x).pooled)


@pytest.mark.parametrize("name", ["resnet18", "xcit_nano_12_p16_224"])
def test_networks_without_such_an_embedding_stay_as_they_are(name: str) -> None:
    assert backbone(name, positions="dino").positions == "timm"
