"""Heads: sizes, initial values and the weight-normalised prototypes (Caron et al. 2021, Chen et al. 2020)."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nolabel.networks.heads import DINOHead, Projector, Prototypes


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_head_of_vit_small_has_the_authors_parameters() -> None:
    with torch.device("meta"):
        head = DINOHead(384, 65536)
    assert count(head) == 22_352_128
    assert head.last_layer.weight_v.numel() == 16_777_216
    assert head.last_layer.weight_g.numel() == 65_536


def test_the_mlp_has_three_layers_gelu_between_and_nothing_at_its_end() -> None:
    kinds = [type(layer) for layer in DINOHead(8, 16, hidden_dim=12, bottleneck_dim=6).mlp]
    assert kinds == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    assert [type(layer) for layer in DINOHead(8, 16, 12, 6, num_layers=1).mlp] == [nn.Linear]
    with_norm = [type(layer) for layer in DINOHead(8, 16, 12, 6, batchnorm=True).mlp]
    assert with_norm == [nn.Linear, nn.BatchNorm1d, nn.GELU, nn.Linear, nn.BatchNorm1d, nn.GELU, nn.Linear]


def test_the_mlp_starts_small_and_the_prototypes_keep_torchs_default() -> None:
    torch.manual_seed(0)
    head = DINOHead(256, 1024, hidden_dim=512, bottleneck_dim=128)
    for layer in head.mlp:
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
            assert not layer.bias.any()
    bound = 128**-0.5  # nn.Linear: uniform in +- 1 / sqrt(fan_in)
    v = head.last_layer.weight_v
    assert v.abs().max() <= bound and v.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert torch.equal(head.last_layer.weight_g, torch.ones(1024, 1))


def test_logits_are_cosines_while_the_magnitude_is_frozen() -> None:
    torch.manual_seed(0)
    head = DINOHead(8, 32, hidden_dim=16, bottleneck_dim=4)
    with torch.no_grad():
        head.last_layer.weight_v.mul_(torch.rand(32, 1) * 100)  # the length of v never matters
    x = torch.randn(50, 8) * 1000
    logits = head(x)
    assert logits.abs().max() <= 1 + 1e-6
    by_hand = F.cosine_similarity(head.mlp(x)[:, None], head.last_layer.weight_v[None], dim=-1)
    torch.testing.assert_close(logits, by_hand, rtol=1e-4, atol=1e-6)


def test_prototypes_are_torchs_weight_norm() -> None:
    ours = Prototypes(6, 9, learn_magnitude=True)
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(6, 9, bias=False))
    with torch.no_grad():
        ours.weight_g.copy_(torch.rand(9, 1))
        theirs.parametrizations.weight.original0.copy_(ours.weight_g)
        theirs.parametrizations.weight.original1.copy_(ours.weight_v)
    z = torch.randn(4, 6)
    torch.testing.assert_close(ours(z), theirs(z))
    ours(z).square().sum().backward()
    theirs(z).square().sum().backward()
    torch.testing.assert_close(ours.weight_g.grad, theirs.parametrizations.weight.original0.grad)
    torch.testing.assert_close(ours.weight_v.grad, theirs.parametrizations.weight.original1.grad)


@pytest.mark.parametrize("learn", [False, True])
def test_the_magnitude_learns_only_when_asked(learn: bool) -> None:
    layer = Prototypes(4, 5, learn_magnitude=learn)
    layer(torch.randn(2, 4)).square().sum().backward()
    assert layer.weight_v.grad is not None
    assert (layer.weight_g.grad is not None) is learn is layer.weight_g.requires_grad


def test_a_zero_bottleneck_stays_finite() -> None:
    head = DINOHead(8, 16, hidden_dim=12, bottleneck_dim=6)
    x = torch.zeros(3, 8, requires_grad=True)  # biases are 0: the bottleneck is the zero vector
    head(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_projector_of_simclr(num_layers: int) -> None:
    torch.manual_seed(0)
    projector = Projector(64, 32, num_layers)
    body = [nn.Linear, nn.BatchNorm1d, nn.ReLU] * (num_layers - 1)
    assert [type(layer) for layer in projector] == [*body, nn.Linear, nn.BatchNorm1d]
    linears = [layer for layer in projector if isinstance(layer, nn.Linear)]
    assert all(layer.bias is None for layer in linears)
    assert [layer.weight.shape for layer in linears] == [(64, 64)] * (num_layers - 1) + [(32, 64)]
    assert linears[-1].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert projector[-1].bias is None and projector[-1].weight is not None
    out = projector(torch.randn(16, 64))
    assert out.shape == (16, 32)
    torch.testing.assert_close(out.mean(0), torch.zeros(32), atol=1e-5, rtol=0)  # no offset at the end


def test_the_projector_of_resnet50_has_the_papers_size() -> None:
    with torch.device("meta"):
        assert count(Projector(2048, 128, 2)) == 2048 * 2048 + 2 * 2048 + 2048 * 128 + 128
