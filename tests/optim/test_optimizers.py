"""Parameter groups, per-tensor clipping, LARS against a slow loop, steps that must be skipped."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from nolabel.config.load import load_recipe
from nolabel.networks.backbones import backbone
from nolabel.networks.heads import DINOHead
from nolabel.optim.optimizers import LARS, OptimConfig, all_finite, clip_grad, optimizer, set_schedules
from nolabel.optim.schedules import Clock

NAMES = ("adamw", "sgd", "lars")


def parameters(*values: list[float]) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.zeros(len(v))) for v in values]
    for p, v in zip(made, values, strict=True):
        p.grad = torch.tensor(v)
    return made


def named(ps: list[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    return [(f"p{i}", p) for i, p in enumerate(ps)]


def test_clipping_is_tensor_by_tensor() -> None:
    """Norms 4 and 3 with clip 3 become 3 and 3; clipping the joint norm would give 2.4 and 1.8."""
    ps = parameters([4.0, 0.0], [0.0, 3.0])
    assert clip_grad(named(ps), 3.0).item() == pytest.approx(5)
    torch.testing.assert_close(ps[0].grad, torch.tensor([3.0, 0.0]), rtol=1e-6, atol=0)
    torch.testing.assert_close(ps[1].grad, torch.tensor([0.0, 3.0]), rtol=1e-6, atol=0)


def test_clipping_leaves_small_gradients_and_parameters_without_one() -> None:
    ps = [*parameters([0.3, 0.4], [30.0, 40.0]), nn.Parameter(torch.zeros(2))]
    assert clip_grad(named(ps), 3.0).item() == pytest.approx(math.hypot(0.5, 50))
    assert torch.equal(ps[0].grad, torch.tensor([0.3, 0.4]))
    torch.testing.assert_close(ps[1].grad, torch.tensor([1.8, 2.4]), rtol=1e-6, atol=0)
    assert ps[2].grad is None


def test_joint_clipping_has_one_factor_for_all() -> None:
    ps = parameters([4.0, 0.0], [0.0, 3.0])
    assert clip_grad(named(ps), 3.0, joint=True).item() == pytest.approx(5)
    torch.testing.assert_close(ps[0].grad, torch.tensor([2.4, 0.0]), rtol=1e-6, atol=0)
    torch.testing.assert_close(ps[1].grad, torch.tensor([0.0, 1.8]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("joint", [False, True])
def test_free_parameters_are_measured_and_not_clipped(joint: bool) -> None:
    """Nor do they make the others smaller."""
    ps = parameters([40.0], [6.0], [math.nan])
    ps[2].grad = None
    assert clip_grad(named(ps), 3.0, joint, free=("p0", "p2")).item() == pytest.approx(math.hypot(40, 6))
    assert ps[0].grad == 40
    assert ps[1].grad is not None and ps[1].grad.item() == pytest.approx(3)
    ps[0].grad = torch.tensor([math.inf])
    assert all_finite(clip_grad(named(ps), 3.0, joint, free=("p0",))) == 0


def test_decay_of_everything_and_of_nothing_that_is_free() -> None:
    module = nn.Linear(3, 2)
    decayed, plain = optimizer(module, OptimConfig(decay_all=True)).param_groups
    assert len(decayed["params"]) == 2 and not plain["params"]
    decayed, plain = optimizer(module, OptimConfig(), free=("weight",)).param_groups
    assert not decayed["params"] and len(plain["params"]) == 2


def test_clip_zero_only_measures() -> None:
    ps = parameters([30.0, 40.0])
    assert clip_grad(named(ps), 0.0).item() == pytest.approx(50)
    assert torch.equal(ps[0].grad, torch.tensor([30.0, 40.0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_gradient_shows_in_the_norm(bad: float) -> None:
    norm = clip_grad(named(parameters([1.0, bad], [1.0])), 3.0)
    assert all_finite(norm) == 0
    assert all_finite(torch.ones(()), norm) == 0 and all_finite(torch.ones(()), torch.zeros(())) == 1


def test_weight_decay_skips_biases_and_vectors_and_nothing_else() -> None:
    net = backbone("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}, 32)
    module = nn.ModuleDict({"backbone": net, "head": DINOHead(32, 16, 24, 8, learn_magnitude=True)})
    names = {p: n for n, p in module.named_parameters()}
    decayed, plain = optimizer(module, OptimConfig()).param_groups
    assert decayed["decay"] and not plain["decay"]
    decayed_names, plain_names = ({names[p] for p in g["params"]} for g in (decayed, plain))
    assert decayed_names | plain_names == set(names.values()) and not decayed_names & plain_names
    assert plain_names == {n for n in names.values() if n.endswith(".bias") or "norm" in n}
    for name in ("model.pos_embed", "model.cls_token"):
        assert f"backbone.{name}" in decayed_names
    assert {"head.last_layer.weight_g", "head.last_layer.weight_v"} <= decayed_names


def test_frozen_parameters_are_left_out() -> None:
    module = DINOHead(8, 4, 6, 5)  # its magnitudes are frozen
    inside = [p for g in optimizer(module, OptimConfig()).param_groups for p in g["params"]]
    assert not any(p is module.last_layer.weight_g for p in inside)
    assert len(inside) == len(list(module.parameters())) - 1


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("lars", LARS)])
def test_the_optimizers_and_their_constants(name: str, kind: type) -> None:
    opt = optimizer(nn.Linear(2, 2), OptimConfig(name=name, sgd_momentum=0.8))  # type: ignore[arg-type]
    assert type(opt) is kind
    if name == "adamw":
        assert opt.defaults["betas"] == (0.9, 0.999) and opt.defaults["eps"] == 1e-8
    else:
        assert opt.defaults["momentum"] == 0.8


def slow_lars(
    p: list[list[float]], grads: list[list[list[float]]], lrs: list[float], decay: float, adapt: bool, inside: bool
) -> list[list[float]]:
    """One matrix over several steps: buffer = 0.9 buffer + trust * (g + decay * p), p = p - lr * buffer.

    With `inside` the rate is in the first equation: buffer = 0.9 buffer + lr * trust * (g + decay * p), p = p - buffer.
    """
    buffer = [[0.0] * len(row) for row in p]
    for g, lr in zip(grads, lrs, strict=True):
        trust = 1.0
        push = [[x + decay * y for x, y in zip(a, b, strict=True)] for a, b in zip(g, p, strict=True)]
        if adapt:
            size = math.sqrt(sum(x * x for row in p for x in row))
            length = math.sqrt(sum(x * x for row in push for x in row))
            trust = 0.001 * size / length if size and length else 1.0
        buffer = [
            [0.9 * b + (lr if inside else 1) * trust * x for b, x in zip(r, q, strict=True)]
            for r, q in zip(buffer, push, strict=True)
        ]
        p = [[x - (1 if inside else lr) * b for x, b in zip(r, q, strict=True)] for r, q in zip(p, buffer, strict=True)]
    return p


@pytest.mark.parametrize(("recipe", "place"), [("dino", "outside"), ("simclr", "inside"), ("simclr-small", "inside")])
def test_each_method_has_lars_as_its_authors(recipe: str, place: str) -> None:
    assert load_recipe(recipe).optim.lars_rate == place


@pytest.mark.parametrize("zero_start", [False, True])
@pytest.mark.parametrize("place", ["outside", "inside"])
def test_lars_is_the_slow_loop(place: Literal["outside", "inside"], zero_start: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        if zero_start:
            layer.weight.zero_()  # no length, no trust ratio
    opt = optimizer(layer, OptimConfig(name="lars", lars_rate=place))
    start = layer.weight.tolist(), [layer.bias.tolist()]
    grads = [(torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator)) for _ in range(4)]
    lrs = [0.0, 0.5, 1.0, 0.25]
    for (g_weight, g_bias), lr in zip(grads, lrs, strict=True):
        for group in opt.param_groups:
            group["lr"], group["weight_decay"] = lr, 0.1 if group["decay"] else 0.0
        layer.weight.grad, layer.bias.grad = g_weight.clone(), g_bias.clone()
        opt.step()
    weight = slow_lars(start[0], [w.tolist() for w, _ in grads], lrs, 0.1, True, place == "inside")
    bias = slow_lars(start[1], [[b.tolist()] for _, b in grads], lrs, 0.0, False, place == "inside")
    torch.testing.assert_close(layer.weight.detach(), torch.tensor(weight))
    torch.testing.assert_close(layer.bias.detach(), torch.tensor(bias)[0])


def test_sgd_is_torchs_plain_sgd() -> None:
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    opt = optimizer(ours, OptimConfig(name="sgd", lr=0.5, min_lr=0.5, warmup_epochs=0))
    plain = torch.optim.SGD(theirs.parameters(), lr=0.5, momentum=0.9, foreach=False)
    for step in range(3):
        set_schedules(
            opt,
            OptimConfig(lr=0.5, min_lr=0.5, warmup_epochs=0, weight_decay=0, weight_decay_end=0),
            256,
            Clock(step, 3, 3),
        )
        for net, o in ((ours, opt), (theirs, plain)):
            o.zero_grad()
            net(torch.full((1, 3), step + 1.0)).square().sum().backward()
            o.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def state(opt: torch.optim.Optimizer, module: nn.Module) -> list[Tensor]:
    slots = [v.clone() for s in opt.state.values() for v in s.values()]
    return [*slots, *(p.detach().clone() for p in module.parameters())]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("good_steps", [0, 2])
def test_found_inf_skips_the_step_and_leaves_a_clean_state(name: str, good_steps: int) -> None:
    """Also on the very first step, where the optimizer has no state yet: fp16 begins with such steps."""

    def run(with_bad_step: bool) -> list[Tensor]:
        torch.manual_seed(0)
        net = nn.Linear(4, 3)
        opt = optimizer(net, OptimConfig(name=name))  # type: ignore[arg-type]
        for group in opt.param_groups:
            group["lr"] = 0.1
        for step in range(good_steps + 2):
            bad = step == good_steps
            if bad and not with_bad_step:
                continue
            before = state(opt, net)
            for p in net.parameters():
                p.grad = torch.full_like(p, math.inf if bad else 1.0 + step)
            opt.found_inf = torch.tensor(float(bad))  # type: ignore[attr-defined]
            opt.step()
            if bad and good_steps:
                after = state(opt, net)
                assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        return state(opt, net)

    for a, b in zip(run(True), run(False), strict=True):
        assert torch.equal(a, b) and a.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_without_gradient_keeps_every_bit(name: str) -> None:
    """DINO's frozen last layer: no step, no decay, no moments."""
    net = nn.Linear(4, 3)
    before = net.weight.detach().clone()
    opt = optimizer(net, OptimConfig(name=name))  # type: ignore[arg-type]
    for group in opt.param_groups:
        group["lr"], group["weight_decay"] = 0.1, 0.5
    net.bias.grad = torch.ones(3)
    opt.step()
    assert torch.equal(net.weight, before)
    assert not any(v.any() for v in opt.state.get(net.weight, {}).values())
