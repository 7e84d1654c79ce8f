"""Blocks that keep less: every bit is timm's, and less is kept."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nolabel.config import check
from nolabel.config.load import load_recipe
from nolabel.errors import UsageError
from nolabel.networks import lean_blocks
from nolabel.networks.backbones import Backbone, backbone
from nolabel.networks.lean_blocks import LeanAttention, LeanBlock, LeanMlp, remade

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3}
OTHERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled layers": {"init_values": 0.1},
    "normalised queries": {"qk_norm": True},
    "dropout": {"attn_drop_rate": 0.2, "proj_drop_rate": 0.2},
}


def pair(args: dict[str, Any], mixed: bool) -> tuple[Backbone, Backbone]:
    """A network as timm has it and one that keeps less; in bf16 with plain attention, as on the CPU."""
    torch.manual_seed(0)
    net = backbone("vit_tiny_patch16_224", SMALL | args, 64, drop_path=0.3).train()
    with torch.no_grad():
        for p in net.parameters():  # no two norms are alike
            p.add_(torch.randn_like(p), alpha=0.1)
    if mixed:
        net.plain_attention(64)
    lean = copy.deepcopy(net)
    lean.keep_less()
    return net, lean


def learned(net: Backbone, mixed: bool) -> list[Tensor]:
    """Output and gradients of two sizes in one graph."""
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found = [net(torch.randn(3, 3, size, size)).pooled for size in (64, 32)]
    torch.cat(found).square().sum().backward()
    gradients = [p.grad for p in net.parameters()]
    assert all(g is not None for g in gradients)
    return [*found, *gradients]  # type: ignore[list-item]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("args", OTHERS.values(), ids=OTHERS)
def test_every_bit_is_timms(args: dict[str, Any], mixed: bool) -> None:
    net, lean = pair(args, mixed)
    assert list(net.state_dict()) == list(lean.state_dict())
    for a, b in zip(learned(net, mixed), learned(lean, mixed), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64)
        assert torch.equal(net.eval()(x).patches, lean.eval()(x).patches)


def test_which_parts_keep_less() -> None:
    block = pair({}, mixed=True)[1].model.blocks[0]
    assert [type(m) for m in (block, block.attn, block.mlp)] == [LeanBlock, LeanAttention, LeanMlp]
    block = pair({}, mixed=False)[1].model.blocks[0]  # torch's fused attention keeps little by itself
    assert not isinstance(block.attn, LeanAttention)
    block = pair(OTHERS["dropout"], mixed=True)[1].model.blocks[0]  # which would be drawn again
    assert not isinstance(block.attn, LeanAttention) and not isinstance(block.mlp, LeanMlp)


@pytest.mark.parametrize(("mixed", "most"), [(False, 0.75), (True, 0.65)])
def test_less_is_kept(mixed: bool, most: float) -> None:
    """Bytes that stay allocated between forward and backward pass."""
    found = []
    for net in pair({}, mixed):
        x = torch.randn(64, 17, 48)
        cpu = torch.profiler.ProfilerActivity.CPU
        mixing = torch.autocast("cpu", torch.bfloat16, enabled=mixed)
        with torch.profiler.profile(activities=[cpu], profile_memory=True) as seen, mixing:
            out = net.model.blocks(x)
        events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
        found.append(sum(e.nbytes() for e in events if e.name() == "[memory]"))
        del out
    assert 0 < found[1] < most * found[0]


def test_only_what_is_named_is_made_again() -> None:
    w, x = torch.randn(4, 4, requires_grad=True), torch.randn(2, 3, 4)
    made: list[Tensor] = []

    def make() -> Tensor:
        made.append(x.square())
        return made[-1]

    y = make()
    with remade(y, make):
        out = F.linear(y[1], w) + F.linear(y, w).relu()  # a view of it, too, has to come out right
    assert len(made) == 1
    out.sum().backward()
    assert len(made) == 3
    assert w.grad is not None
    again = w.detach().clone().requires_grad_()
    (F.linear(x.square()[1], again) + F.linear(x.square(), again).relu()).sum().backward()
    assert torch.equal(w.grad, again.grad)


def test_what_has_no_such_blocks_is_refused() -> None:
    net = backbone("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)})
    with pytest.raises(UsageError, match="which resnet18 is not: use --grad-checkpointing"):
        net.keep_less()
    for other in ("compile", "grad_checkpointing"):
        config = load_recipe("dino-small")
        for name in (other, "keep_less"):
            object.__setattr__(config, name, True)
        with pytest.raises(UsageError, match="leave out --keep-less"):
            check(config, (), None, False)


def test_blocks_of_another_kind_stay() -> None:
    other = nn.Sequential(nn.Linear(2, 2))
    lean_blocks.keep_less(type("Model", (), {"blocks": other})())  # type: ignore[arg-type]
    assert type(other[0]) is nn.Linear
