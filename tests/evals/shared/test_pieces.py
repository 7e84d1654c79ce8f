"""Features of an image: blocks, patches, before and after the norm, each computed once."""

import pytest
import torch
from torch import Tensor

from nolabel.errors import UsageError
from nolabel.evals.shared.pieces import PATCHES, POOLED, Layout, Piece, compute, depth, join, pieces_of
from nolabel.networks.backbones import Backbone, backbone
from nolabel.weights.load import Loaded


@pytest.fixture(scope="module")
def vit() -> Backbone:
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = backbone("vit_tiny_patch16_224", args)
        for p in net.parameters():  # a fresh norm has gain 1 and shift 0, which hides that it is applied
            p.data += 0.1 * torch.randn(p.shape)
    return net.eval().requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_the_class_token_of_the_last_block_is_what_a_vit_pools(vit: Backbone, x: Tensor) -> None:
    assert pieces_of(vit, Layout(1)) == [POOLED]
    assert torch.equal(compute(vit, x, [POOLED])[POOLED], vit(x).pooled)
    several = compute(vit, x, [Piece("class", 2), POOLED])
    assert torch.equal(several[POOLED], vit(x).pooled)  # the same bits, whatever else was asked for


def test_blocks_are_joined_earlier_first(vit: Backbone, x: Tensor) -> None:
    pieces = pieces_of(vit, Layout(3, mean_patches=True))
    assert pieces == [Piece("class", 3), Piece("class", 2), POOLED, PATCHES]
    joined = join(compute(vit, x, pieces), pieces)
    blocks = vit.intermediate(x, 3)
    expected = torch.cat([*(b.pooled for b in blocks), blocks[-1].patches.mean(1)], 1)
    assert torch.equal(joined, expected)
    assert torch.equal(blocks[-1].patches.mean(1), vit(x).patches.mean(1))  # after the final norm


def test_before_the_norm(vit: Backbone, x: Tensor) -> None:
    (piece,) = pieces_of(vit, Layout(1), before_norm=True)
    raw = compute(vit, x, [piece])[piece]
    assert not torch.allclose(raw, vit(x).pooled)
    torch.testing.assert_close(vit.model.norm(raw), vit(x).pooled)


def test_interleaved() -> None:
    """E2: [c0, a0, c1, a1, ...]."""
    found = {POOLED: torch.tensor([[1.0, 2.0, 3.0]]), PATCHES: torch.tensor([[10.0, 20.0, 30.0]])}
    assert join(found, [POOLED, PATCHES], interleaved=True).tolist() == [[1, 10, 2, 20, 3, 30]]
    assert join(found, [POOLED, PATCHES]).tolist() == [[1, 2, 3, 10, 20, 30]]
    with pytest.raises(UsageError, match="one block with the mean patch"):
        join(found, [POOLED], interleaved=True)


def test_a_cnn_has_one_block(loaded: Loaded, x: Tensor) -> None:
    net = loaded.backbone
    assert (depth(net), pieces_of(net, Layout(1))) == (1, [POOLED])
    assert torch.equal(compute(net, x, [POOLED])[POOLED], net(x).pooled)
    with pytest.raises(UsageError, match=r"resnet18 gives features of one block .*, not 2"):
        pieces_of(net, Layout(2))
    for asked in ({"layout": Layout(1, True)}, {"layout": Layout(1), "before_norm": True}):
        with pytest.raises(UsageError, match="no plain ViT"):
            pieces_of(net, **asked)  # type: ignore[arg-type]


def test_more_blocks_than_there_are(vit: Backbone) -> None:
    assert depth(vit) == 3
    with pytest.raises(UsageError, match="1 to 3 blocks, not 4"):
        pieces_of(vit, Layout(4))


def test_a_vit_that_pools_otherwise(x: Tensor) -> None:
    """Its class token is another vector than what it pools, and has a name of its own."""
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "global_pool": "avg"}
    net = backbone("vit_tiny_patch16_224", args).eval()
    assert pieces_of(net, Layout(1)) == [Piece("class")]
    found = compute(net, x, [POOLED, Piece("class")])
    assert torch.equal(found[POOLED], net(x).pooled)
    assert not torch.allclose(found[POOLED], found[Piece("class")])
