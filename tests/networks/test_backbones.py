"""Backbones: sizes and initial values of DINO's ViT (Caron et al. 2021), and Features of every kind of network."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nolabel.errors import UsageError
from nolabel.networks.arguments import parse_args
from nolabel.networks.backbones import Backbone, Features, backbone
from nolabel.networks.inspect import cosine_to_pooled

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL: dict[str, tuple[str, Mapping[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "resnet": ("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)}),
    "resnet8": ("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "output_stride": 8}),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
    "xcit": ("xcit_nano_12_p16_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}),
}


def make(kind: str, **options: Any) -> Backbone:
    torch.manual_seed(0)
    name, args = SMALL[kind]
    return backbone(name, args, **options).eval()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vit_tiny_patch16_224", 5_524_416),
        ("vit_small_patch16_224", 21_665_664),
        ("vit_small_patch8_224", 21_670_272),
        ("vit_base_patch16_224", 85_798_656),
        ("vit_base_patch8_224", 85_807_872),
    ],
)
def test_vits_have_dinos_parameter_counts(name: str, parameters: int) -> None:
    with torch.device("meta"):
        net = backbone(name)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net.patch_size == (8 if "patch8" in name else 16)


def test_vits_start_as_in_dino() -> None:
    torch.manual_seed(0)
    net = backbone("vit_small_patch16_224", {"depth": 1}).model
    for token in (net.cls_token, net.pos_embed):
        assert token.std().item() == pytest.approx(0.02, rel=0.12)
        assert abs(token.mean().item()) < 0.004
    for module in net.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.02)
            assert not module.bias.any()
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6 and torch.equal(module.weight, torch.ones(384)) and not module.bias.any()
    bound = (3 * 16 * 16) ** -0.5  # torch's default of a convolution: uniform in +- 1 / sqrt(fan_in)
    weight = net.patch_embed.proj.weight
    assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert net.pos_embed.shape == (1, 197, 384)


def test_vits_have_dinos_layers() -> None:
    net = make("vit").model
    block = net.blocks[0]
    assert isinstance(block.mlp.act, nn.GELU) and block.mlp.act.approximate == "none"
    assert block.attn.qkv.bias is not None and block.attn.proj.bias is not None
    assert block.attn.scale == (32 // 2) ** -0.5 and block.mlp.fc1.out_features == 4 * 32
    assert isinstance(net.norm, nn.LayerNorm) and isinstance(net.head, nn.Identity)
    assert not [m for m in net.modules() if isinstance(m, nn.Dropout) and m.p]


def test_drop_path_grows_linearly_and_resnets_have_none() -> None:
    net = backbone("vit_tiny_patch16_224", VIT | {"depth": 5}, drop_path=0.2)
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for b in net.model.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert "drop_path_rate" not in net.args  # what is shipped has none
    resnet = make("resnet", drop_path=0.2).train()
    assert not [m for m in resnet.modules() if "DropPath" in type(m).__name__ and m.drop_prob]


@pytest.mark.parametrize("kind", SMALL)
def test_features_have_a_pooled_vector_and_one_a_location(kind: str) -> None:
    net, x = make(kind), torch.randn(2, 3, 32, 64)
    out = net(x)
    assert isinstance(out, Features)
    rows, columns = out.grid
    assert columns == 2 * rows
    assert out.pooled.shape == (2, net.num_features) and out.patches.shape == (2, rows * columns, net.num_features)
    torch.testing.assert_close(out.pooled, net.model(x))  # what timm itself gives without a classifier
    torch.testing.assert_close(net(x[1:]).pooled, out.pooled[1:], rtol=1e-4, atol=1e-5)
    similarity = cosine_to_pooled(out)
    assert similarity.shape == out.patches.shape[:2] and similarity.abs().max() <= 1 + 1e-5


def test_the_pooled_vector_is_the_class_token_or_the_mean_over_locations() -> None:
    x = torch.randn(2, 3, 32, 32)
    vit, resnet = make("vit"), make("resnet8")
    torch.testing.assert_close(vit(x).pooled, vit.model.forward_features(x)[:, 0])
    out = resnet(x)
    assert out.grid == (4, 4)
    torch.testing.assert_close(out.pooled, out.patches.mean(1))


def test_patches_are_row_by_row() -> None:
    """Without blocks a ViT's patch knows its own pixels alone."""
    torch.manual_seed(0)
    net, x = backbone("vit_tiny_patch16_224", VIT | {"depth": 0}).eval(), torch.zeros(1, 3, 24, 40)
    changed = x.clone()
    changed[:, :, 8:16, 24:32] = 1  # row 1, column 3 of a 3 x 5 grid
    a, b = net(x), net(changed)
    assert a.grid == (3, 5)
    assert (a.patches != b.patches).any(-1)[0].nonzero().flatten().tolist() == [1 * 5 + 3]


def test_any_size_that_the_patches_divide() -> None:
    net = make("vit", image_size=32)
    assert net.model.pos_embed.shape == (1, 17, 32)
    for size in (16, 32, 48):
        assert net(torch.randn(1, 3, size, size)).grid == (size // 8, size // 8)
    with pytest.raises(UsageError, match=r"patches of 8 px, and 36x32.*\n.*32"):
        net(torch.randn(1, 3, 36, 32))


@pytest.mark.parametrize("shape", [(32, 32), (24, 40)])
def test_attention_is_that_of_the_last_block(shape: tuple[int, int]) -> None:
    """Against timm's own unfused attention, seen where it would be dropped out."""
    net, x = make("vit"), torch.randn(2, 3, *shape)
    attention, grid = net.attention(x)
    last = net.model.blocks[-1].attn
    last.fused_attn = False
    seen: list[Tensor] = []
    last.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    net(x)
    assert grid == (shape[0] // 8, shape[1] // 8) and attention.dtype == torch.float32
    torch.testing.assert_close(attention, seen[0][:, :, 0, 1:])
    assert (attention.sum(-1) < 1).all()


def test_a_cnn_has_no_attention() -> None:
    net = make("resnet")
    assert not net.has_attention
    with pytest.raises(UsageError, match="no class token"):
        net.attention(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_gradient_checkpointing_changes_no_gradient(kind: str) -> None:
    x, found = torch.randn(4, 3, 32, 32), []
    for checkpointing in (False, True):
        net = make(kind, grad_checkpointing=checkpointing).train()
        net(x).pooled.square().sum().backward()
        found.append([p.grad for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(UsageError, match=r"no backbone 'vit_smal_patch16_224'.*vit_small_patch16_224"):
        backbone("vit_smal_patch16_224")


def test_an_argument_timm_does_not_know_is_named() -> None:
    with pytest.raises(UsageError, match=r"ptch_size.*\n.*--backbone-args replaces"):
        backbone("vit_tiny_patch16_224", {"ptch_size": 8})


def test_arguments_are_yaml_values() -> None:
    parsed = parse_args(("patch_size=4", "layers=[1,1,1,1]", "drop_rate=0.5", "act_layer=relu", "no_embed_class=true"))
    assert parsed == {
        "patch_size": 4,
        "layers": (1, 1, 1, 1),
        "drop_rate": 0.5,
        "act_layer": "relu",
        "no_embed_class": True,
    }
    for wrong in ("patch_size", "=4"):
        with pytest.raises(UsageError, match="key=value"):
            parse_args((wrong,))
    with pytest.raises(UsageError, match=r"layers=.1,1.*no readable value"):
        parse_args(("layers=[1,1",))


def test_a_size_free_vit_is_the_one_of_its_image_size() -> None:
    """`dynamic_img_size` changes nothing at the stored size."""
    dynamic, x = make("vit", image_size=32), torch.randn(1, 3, 32, 32)
    fixed = backbone(SMALL["vit"][0], {**VIT, "dynamic_img_size": False}, 32).eval()
    fixed.load_state_dict(dynamic.state_dict())
    torch.testing.assert_close(dynamic(x).pooled, fixed(x).pooled)
    small = F.interpolate(x, 16)
    assert dynamic(small).pooled.shape == (1, 32)


def test_kept_patches_are_those_of_a_network_that_sees_nothing_else() -> None:
    """By hand: the tokens of the kept patches, with their positions, through the blocks."""
    net, x = make("vit", image_size=32), torch.randn(2, 3, 32, 32)
    keep = torch.tensor([5, 0, 11])
    model = net.model
    with torch.no_grad():
        tokens = model._pos_embed(model.patch_embed(x))
        expected = model.norm(model.blocks(torch.cat([tokens[:, :1], tokens[:, 1:][:, keep]], dim=1)))
        found = net(x, keep)
    torch.testing.assert_close(found.pooled, expected[:, 0])
    torch.testing.assert_close(found.patches, expected[:, 1:])
    assert found.grid == (4, 4)
    with torch.no_grad():
        each = net(x, torch.stack([keep, torch.tensor([1, 2, 3])]))
        torch.testing.assert_close(each.pooled[0], found.pooled[0])
        torch.testing.assert_close(each.pooled[1], net(x, torch.tensor([1, 2, 3])).pooled[1])
        assert net(x).patches.shape[1] == 16, "the next image is seen whole again"


def test_dropped_patches_cost_nothing_in_the_blocks() -> None:
    net, seen = make("vit", image_size=32), []
    net.model.blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    net(torch.randn(1, 3, 32, 32), torch.arange(4))
    assert seen == [5]


def test_only_vits_can_drop_patches() -> None:
    with pytest.raises(UsageError, match="masking needs a ViT"):
        make("resnet")(torch.randn(1, 3, 32, 32), torch.arange(1))


def test_keeping_patches_changes_no_name_of_the_state() -> None:
    name, args = SMALL["vit"]
    assert make("vit").model.state_dict().keys() == timm.create_model(name, num_classes=0, **args).state_dict().keys()


def test_intermediate_features_are_the_last_blocks() -> None:
    net, x = make("vit", image_size=32), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before, last = net.intermediate(x, 2)
        raw = net.intermediate(x, 1, norm=False)[0]
        whole = net(x)
    torch.testing.assert_close(last.pooled, whole.pooled)
    torch.testing.assert_close(last.patches, whole.patches)
    torch.testing.assert_close(net.model.norm(raw.pooled), whole.pooled)
    assert not torch.allclose(before.pooled, last.pooled) and before.grid == (4, 4)
    with pytest.raises(UsageError, match="2 blocks"):
        net.intermediate(x, 3)
    (only,) = make("resnet").intermediate(x, 4)
    assert only.pooled.shape == (2, 32)


@pytest.mark.parametrize(
    ("kind", "sides"), [("vit", [4, 4, 4, 4]), ("resnet", [8, 4, 2, 1]), ("convnext", [8, 4, 2, 1])]
)
def test_stages_are_four_maps(kind: str, sides: list[int]) -> None:
    maps = make(kind, image_size=32 if kind == "vit" else None).stages(torch.randn(2, 3, 32, 32))
    assert [m.shape[-1] for m in maps] == sides
    assert all(m.shape[0] == 2 and m.shape[2] == m.shape[3] for m in maps)


def test_plain_attention_is_equal_and_for_few_patches() -> None:
    net = backbone("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 32, "num_heads": 2}, image_size=32).eval()
    x = torch.randn(2, 3, 32, 32)
    fused = net(x)
    net.plain_attention(528)  # 33 x 33 patches
    assert all(block.attn.fused_attn for block in net.model.blocks)
    net.plain_attention(512)
    assert not any(block.attn.fused_attn for block in net.model.blocks)
    torch.testing.assert_close(net(x).patches, fused.patches)


def test_networks_that_channels_last_would_crash_are_trained_in_the_plain_layout() -> None:
    """The backward pass of MobileOne and FastViT in that layout ends the process in torch 2.15."""
    net = backbone("mobileone_s0")
    assert not net._channels_last and backbone("resnet18")._channels_last
    net.train()(torch.randn(2, 3, 32, 32)).pooled.mean().backward()
