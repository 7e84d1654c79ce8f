"""MSN: its views and masks, who sees what, prototypes, momentum network and training (Assran et al. 2022)."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from tiny import job, step, views
from torch import Tensor

from nolabel.methods.msn import MSN, MSNConfig
from nolabel.optim.optimizers import OptimConfig
from nolabel.training.job import Job
from nolabel.views import View

CONFIG = MSNConfig(32, 16, 1, 2, mask_ratio=0.5, num_prototypes=16, hidden_dim=32, output_dim=16, momentum=0.9)
SLOW = OptimConfig("sgd", lr=0.32, warmup_epochs=0, weight_decay=0.01, weight_decay_end=0.02)


def msn(backbone: str = "vit", config: MSNConfig = CONFIG, optim: OptimConfig = SLOW, **values: Any) -> Job:
    names = {f.name for f in dataclasses.fields(config)}
    method = dataclasses.replace(config, **{k: v for k, v in values.items() if k in names})
    return job(method, backbone, optim=optim, **{k: v for k, v in values.items() if k not in names})


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Views.


def test_the_views_are_the_table_of_the_recipe() -> None:
    shared: dict[str, Any] = {
        "ratio": (3 / 4, 4 / 3),
        "interpolation": "bilinear",
        "flip": 0.5,
        "jitter": (0.4, 0.4, 0.4, 0.1),
        "jitter_p": 0.8,
        "grayscale": 0.2,
        "blur": 0.5,
        "blur_sigma": (0.1, 2.0),
        "solarize": 0.0,
    }
    whole, focal = View(size=224, scale=(0.3, 1.0), **shared), View(size=96, scale=(0.05, 0.3), **shared)
    j = msn()
    j.method.config = MSNConfig()  # type: ignore[assignment]
    assert j.method.views() == (whole, whole, *[focal] * 10)


def test_sizes_scales_and_counts_are_settings() -> None:
    found = msn(num_random=2, num_focal=1, focal_scale=(0.1, 0.2), random_scale=(0.2, 0.9), blur=0.0).method.views()
    assert [v.size for v in found] == [32, 32, 32, 16]
    assert [v.scale for v in found] == [(0.2, 0.9)] * 3 + [(0.1, 0.2)]
    assert {v.blur for v in found} == {0.0}


# Who sees what. The networks cut 32 px into 16 patches and 16 px into 4; one token more is the class.


def tokens_seen(j: Job, number: int = 0) -> dict[str, list[tuple[int, int]]]:
    """(images, tokens) of each pass through the blocks of both networks in one forward pass."""
    seen: dict[str, list[tuple[int, int]]] = {"anchor": [], "target": []}
    handles = [
        getattr(j.method, name)
        .backbone.model.blocks[0]
        .register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(tuple(inputs[0].shape[:2])))
        for name in seen
    ]
    j.method(views(j), j.clock(number))
    for handle in handles:
        handle.remove()
    return seen


def head_passes(j: Job) -> list[int]:
    """Rows of each pass through the head of the anchors in one forward pass."""
    seen: list[int] = []
    hook = j.method.anchor.head.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))  # type: ignore[union-attr]
    j.method(views(j), j.clock(0))
    hook.remove()
    return seen


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, [8, 16]),
        ({"num_random": 2, "num_focal": 3}, [16, 24]),
        ({"num_focal": 0, "num_random": 2}, [16]),
        ({"num_random": 0}, [16]),
        ({"head_per_size": False}, [24]),
    ],
    ids=str,
)
def test_the_head_sees_random_and_focal_anchors_apart(settings: dict[str, Any], rows: list[int]) -> None:
    assert head_passes(msn(**settings)) == rows


@pytest.mark.parametrize(("ratio", "kept"), [(0.0, 16), (0.3, 11), (0.5, 8), (0.9, 1)])
def test_random_anchors_alone_are_masked_and_dropped_patches_cost_nothing(ratio: float, kept: int) -> None:
    assert tokens_seen(msn(mask_ratio=ratio)) == {"anchor": [(8, 1 + kept), (16, 1 + 4)], "target": [(8, 1 + 16)]}


def test_random_or_focal_anchors_can_be_left_out() -> None:
    assert tokens_seen(msn(num_focal=0, num_random=2))["anchor"] == [(16, 1 + 8)]
    assert tokens_seen(msn(num_random=0))["anchor"] == [(16, 1 + 4)]


def saved_bytes(j: Job) -> int:
    """Tensors that a forward pass keeps for the backward pass, each storage once, without the parameters."""
    own = {p.untyped_storage().data_ptr() for p in j.method.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), x  # held, so that no address is used twice
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = j.method(views(j), j.clock(0))["loss"]
    loss.backward()
    return sum(size for size, _ in kept.values())


def test_memory_falls_with_the_masking_ratio() -> None:
    found = [saved_bytes(msn(mask_ratio=ratio, num_focal=0)) for ratio in (0.0, 0.25, 0.5, 0.75)]
    assert found == sorted(found, reverse=True)
    assert found[3] < 0.5 * found[0]


def keep(j: Job, number: int, seed: int | None = None, size: int = 8) -> Tensor:
    assert isinstance(j.method, MSN)
    clock = j.clock(number) if seed is None else j.clock(number)._replace(seed=seed)
    found = j.method._keep(torch.empty(size, 3, 32, 32), clock)
    assert found is not None
    return found


def test_one_mask_a_step_for_all_images() -> None:
    j = msn()
    assert keep(j, 0).shape == (8,)
    assert torch.equal(keep(j, 3), keep(j, 3, size=2))  # and so for all micro-batches
    assert not torch.equal(keep(j, 0), keep(j, 1))
    assert not torch.equal(keep(j, 0, seed=0), keep(j, 0, seed=1))
    assert msn(seed=5).clock(0).seed == 5


def test_each_image_and_view_has_its_own_mask_if_asked_for() -> None:
    found = keep(msn(mask_per_sample=True, num_random=2), 0)
    assert found.shape == (16, 8) and len({tuple(row) for row in found.tolist()}) > 14
    assert tokens_seen(msn(mask_per_sample=True))["anchor"] == [(8, 1 + 8), (16, 1 + 4)]


def test_the_masks_take_nothing_from_the_global_generator() -> None:
    """Or drop path would depend on the masking ratio."""
    j = msn()
    state = torch.get_rng_state()
    j.method(views(j), j.clock(0))
    assert torch.equal(state, torch.get_rng_state())


def test_the_loss_reads_only_kept_patches_of_the_anchor_and_all_of_the_target() -> None:
    j = msn(num_focal=0)
    batch, kept = views(j), set(keep(j, 0).tolist())
    before = j.method(batch, j.clock(0))["loss"]
    for view in range(2):
        for patch in range(16):
            row, column = patch // 4 * 8, patch % 4 * 8
            changed = [v.clone() for v in batch]
            changed[view][:, :, row : row + 8, column : column + 8] += 3
            same = torch.equal(before, j.method(changed, j.clock(0))["loss"])
            assert same is (view == 1 and patch not in kept), (view, patch)


# Prototypes and momentum network.


def test_prototypes_start_uniform_and_are_trained_without_decay_or_clipping() -> None:
    torch.manual_seed(0)
    j = msn(optim=dataclasses.replace(SLOW, clip_grad=1e-6, clip="joint"), num_prototypes=32, output_dim=64)
    q = j.method.prototypes
    assert isinstance(q, torch.nn.Parameter) and q.shape == (32, 64)
    bound = 64**-0.5
    assert q.abs().max() <= bound and q.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    free = j.optimizer.param_groups[1]["params"]
    assert any(p is q for p in free) and not j.optimizer.param_groups[1]["decay"]
    before = q.detach().clone()
    step(j, 0)
    assert q.grad is not None and q.grad.norm() > 1e-3
    torch.testing.assert_close(before - j.optimizer.param_groups[0]["lr"] * q.grad, q.detach())
    clipped = [p.grad for p in j.method.anchor.parameters() if p.grad is not None]
    assert torch.stack([g.norm() for g in clipped]).norm() < 1.1e-6


@pytest.mark.parametrize("per_size", [True, False])
def test_the_target_follows_linearly_and_keeps_its_own_batch_statistics(per_size: bool) -> None:
    j = msn(head_per_size=per_size)
    momenta = []
    for number in range(3):
        before = [p.clone() for p in j.method.target.parameters()]
        step(j, number)
        m = j.method.settings(j.clock(number))["momentum"]
        momenta.append(m)
        for old, new, now in zip(before, j.method.target.parameters(), j.method.anchor.parameters(), strict=True):
            torch.testing.assert_close(new, m * old + (1 - m) * now)
    assert momenta == pytest.approx([0.9 + 0.1 * n / 40 for n in range(3)])
    ours, theirs = (dict(getattr(j.method, n).head.named_buffers()) for n in ("anchor", "target"))
    passes = [{int(b[k]) for k in b if k.endswith("tracked")} for b in (ours, theirs)]
    assert passes == [{6 if per_size else 3}, {3}]  # in three steps: random and focal anchors; the target's one view
    assert all(not torch.allclose(ours[k], theirs[k]) for k in ours if k.endswith("running_mean"))


def test_the_patch_embedding_starts_in_msns_way() -> None:
    j = job(dataclasses.replace(CONFIG), backbone_args=("patch_size=8", "embed_dim=192", "depth=1", "num_heads=3"))
    for network in (j.method.anchor, j.method.target):
        projection = network.backbone.model.patch_embed.proj  # type: ignore[index,union-attr]
        assert projection.weight.std().item() == pytest.approx((2 / (3 * 8 * 8)) ** 0.5, rel=0.03)
        assert not projection.bias.any()


def test_the_head_is_three_layers_with_batchnorm_between() -> None:
    kinds = [type(layer).__name__ for layer in msn().method.anchor.head]  # type: ignore[index]
    assert kinds == ["Linear", "BatchNorm1d", "GELU", "Linear", "BatchNorm1d", "GELU", "Linear"]
    assert not [m for m in msn(head_batchnorm=False).method.anchor.head.modules() if "Norm" in type(m).__name__]  # type: ignore[index]


# Training.

ADAM = OptimConfig(lr=0.064, min_lr=1e-3, warmup_epochs=0, weight_decay=0.0, weight_decay_end=0.0, clip="joint")


@pytest.mark.parametrize("settings", [{}, {"sinkhorn_rounds": 0, "memax_weight": 5.0}], ids=str)
def test_it_learns_equal_outputs_for_all_views(settings: dict[str, Any]) -> None:
    """The views of an image share a colour; me-max keeps the prototypes in use."""
    j = msn(optim=ADAM, epochs=20, **settings)
    said = [step(j, number) for number in range(80)]
    first, last = said[:5], said[-10:]
    assert sum(s["ce"] for s in last) / 10 < sum(s["ce"] for s in first) / 5 - 0.3
    assert sum(s["memax_gap"] for s in last) / 10 < 0.5
    assert sum(s["prototypes_used"] for s in last) / 10 > 6


def test_without_memax_and_sinkhorn_few_prototypes_take_all() -> None:
    """In 80 steps on the way to collapse: the cross-entropy is the lowest of all, and says nothing."""
    j = msn(optim=ADAM, epochs=20, memax_weight=0.0, sinkhorn_rounds=0)
    last = [step(j, number) for number in range(80)][-10:]
    assert sum(s["memax_gap"] for s in last) / 10 > 1.2
    assert sum(s["prototypes_used"] for s in last) / 10 < 6


def test_the_first_loss_in_bf16_is_that_of_float32() -> None:
    """Root mean square over eight networks and batches: 1 %; single ones are off by up to 1.3 %."""
    errors = []
    for seed in range(8):
        exact, half = msn(seed=seed), msn(seed=seed, precision="bf16")
        batch = views(exact, seed)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = half.method(batch, half.clock(0))["loss"].item()
        errors.append(mixed / exact.method(batch, exact.clock(0))["loss"].item() - 1)
    assert 0 < torch.tensor(errors).square().mean().sqrt() < 0.01


def test_bf16_stays_near_float32_for_200_steps() -> None:
    """Two runs that differ in rounding drift apart; what is learned must not: means of 20 steps agree to 10 %."""
    one_block = ("patch_size=8", "embed_dim=32", "depth=1", "num_heads=2")
    optim = dataclasses.replace(ADAM, lr=0.016)
    runs = []
    for precision in ("fp32", "bf16"):
        j = msn(epochs=50, optim=optim, precision=precision, num_focal=1, backbone_args=one_block)
        runs.append([step(j, number)["loss"] for number in range(200)])
    exact, half = (torch.tensor(r).view(10, 20).mean(1) for r in runs)
    assert ((half - exact).abs() / exact).max() < 0.1
    assert exact[-1] < exact[0] - 0.5
    assert all(math.isfinite(x) for run in runs for x in run)
