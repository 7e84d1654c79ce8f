"""DenseCL and MoCo v2 through the network, against slow loops (Wang et al. 2021, Chen et al. 2020)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import (
    CONTRACT,
    SMALL,
    Make,
    keeps_its_state_in_the_checkpoint,
    sums_micro_batches_to_the_whole_batch,
)
from tiny import SGD, job, step, views
from torch import Tensor, nn
from torch.nn import functional as F

from nolabel.config.load import load_recipe
from nolabel.errors import UsageError
from nolabel.methods.densecl import DenseCLConfig
from nolabel.networks.backbones import backbone
from nolabel.networks.network import Network
from nolabel.recipes import RECIPES
from nolabel.training.job import Job
from nolabel.views import View

DENSE = dataclasses.replace(SMALL["densecl"], queue_size=64, projection_dim=16)  # type: ignore[call-arg]
OK = torch.ones(())


def densecl(kind: str = "resnet", run: dict[str, Any] | None = None, **values: Any) -> Job:
    return job(dataclasses.replace(DENSE, **values), kind, **(run or {}))


def parts(j: Job, network: Network[Any], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised global projection, raw dense projections and backbone map (B, D, S, S) of one view."""
    features = network.backbone(x)
    head = network.head
    grid = features.patches.transpose(1, 2).unflatten(2, features.grid)
    n = j.config.method.num_grid
    if n is not None:
        side = grid.shape[-1] // n
        rows = [grid[..., r * side : (r + 1) * side, :] for r in range(n)]
        cells = [[row[..., c * side : (c + 1) * side].mean((2, 3)) for c in range(n)] for row in rows]
        grid = torch.stack([torch.stack(row, -1) for row in cells], -2)
    # The dense branch as the paper has it: 1x1 convolutions over the map.
    hidden = F.conv2d(grid, head.patches[0].weight[..., None, None], head.patches[0].bias).relu()
    dense = F.conv2d(hidden, head.patches[2].weight[..., None, None], head.patches[2].bias)
    pooled = F.linear(F.linear(grid.mean((2, 3)), *head.pooled[0].parameters()).relu(), *head.pooled[2].parameters())
    return F.normalize(pooled, dim=1), dense, grid


def slow_infonce(q: Tensor, k: Tensor, queue: Tensor, temperature: float = 0.2) -> float:
    scores = [float(q @ k) / temperature, *((queue @ q) / temperature).tolist()]
    return math.log(sum(map(math.exp, scores))) - scores[0]


@torch.no_grad()
def slow_losses(j: Job, batch: list[Tensor]) -> tuple[float, float]:
    """Global and dense loss, location by location."""
    m = j.method
    q, q_dense, q_map = parts(j, m.query, batch[0])
    k, k_dense, k_map = parts(j, m.key, batch[1])
    whole = [slow_infonce(q[b], k[b], m.queue.keys) for b in range(len(q))]
    dense = []
    n = q_map.shape[-1]
    for b in range(len(q)):
        source, target = (q_dense, k_dense) if j.config.method.match == "projection" else (q_map, k_map)
        for row in range(n):
            for column in range(n):
                here = source[b, :, row, column]
                best, place = -2.0, (0, 0)
                for r in range(n):
                    for c in range(n):
                        there = target[b, :, r, c]
                        like = float(here @ there / here.norm() / there.norm())
                        if like > best:
                            best, place = like, (r, c)
                a = F.normalize(q_dense[b, :, row, column], dim=0)
                p = F.normalize(k_dense[b, :, *place], dim=0)
                dense.append(slow_infonce(a, p, m.dense_queue.keys))
    return sum(whole) / len(whole), sum(dense) / len(dense)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("values", [{}, {"match": "projection"}, {"num_grid": 2}, {"num_grid": 1}], ids=str)
def test_the_losses_are_the_slow_loops(values: dict[str, Any], kind: str) -> None:
    j = densecl(kind, dense_weight=0.3, **values)
    step(j, 0)  # the key is no longer the query
    batch = views(j, 1)
    if kind == "vit":  # there the global projection is that of the class token: ours, not the paper's
        j.method.backbone.model.global_pool = j.method.key.backbone.model.global_pool = "avg"
    said = j.method(batch, j.clock(1))
    whole, dense = slow_losses(j, batch)
    assert said["loss_global"].item() == pytest.approx(whole, rel=1e-5)
    assert said["loss_dense"].item() == pytest.approx(dense, rel=1e-5)
    assert said["loss"].item() == pytest.approx(0.7 * whole + 0.3 * dense, rel=1e-5)


def test_the_views_are_the_papers() -> None:
    j = densecl()
    j.method.config = DenseCLConfig()  # type: ignore[assignment]
    (view, other) = j.method.views()
    assert view == other == View(224, (0.2, 1.0), interpolation="bilinear", jitter=(0.4, 0.4, 0.4, 0.1), blur=0.5)
    assert (view.jitter_p, view.grayscale, view.flip, view.blur_sigma, view.solarize) == (0.8, 0.2, 0.5, (0.1, 2.0), 0)


def test_the_defaults_are_the_papers() -> None:
    c = DenseCLConfig()
    assert (c.temperature, c.queue_size, c.momentum, c.dense_weight, c.projection_dim) == (0.2, 65536, 0.999, 0.5, 128)
    assert (c.hidden_dim, c.num_grid, c.match, c.dense_warmup_steps) == (2048, None, "backbone", 0)


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.method == "densecl"])
def test_the_recipes_are_sgd_as_in_the_paper(name: str) -> None:
    config = load_recipe(name)
    o = config.optim
    assert (o.name, o.sgd_momentum, o.weight_decay, o.weight_decay_end, o.decay_all) == ("sgd", 0.9, 1e-4, 1e-4, True)
    assert (o.min_lr, o.warmup_epochs, o.clip_grad, o.lr_by_epoch) == (0, 0, 0, True)
    assert (config.method.dense_weight == 0) is name.startswith("mocov2")
    if "small" not in name:
        coco = name == "densecl-coco"
        assert (config.backbone, config.batch_size) == ("resnet50", 256)
        assert (o.lr, config.epochs) == ((0.3, 800) if coco else (0.03, 200))
        assert config.method == DenseCLConfig(dense_weight=config.method.dense_weight)


def test_the_small_recipes_differ_in_the_dense_loss_alone() -> None:
    a, b = load_recipe("densecl-small"), load_recipe("mocov2-small")
    same = dataclasses.replace(b, recipe=a.recipe, method=dataclasses.replace(b.method, dense_weight=0.5))
    assert a == same and (a.method.queue_size, a.method.momentum) == ("auto", 0.99)


@pytest.mark.parametrize(
    ("images", "batch", "size"),
    [(128_000, 256, 16384), (9469, 64, 2048), (4096, 64, 1024), (4095, 64, 512), (262_144, 256, 65536), (70, 64, 64)],
)
def test_the_queue_follows_the_number_of_images(images: int, batch: int, size: int) -> None:
    resolved = DenseCLConfig(queue_size="auto").resolve(images, batch, 1000)
    assert (resolved.queue_size, resolved.num_images) == (size, images)
    assert resolved.resolve(images, batch, 1000) == resolved


def test_the_resnet_starts_as_the_papers() -> None:
    """timm zeroes the last gain of each block and draws by fan-out."""
    ours, theirs = densecl().method.backbone.model, backbone("resnet18").model
    assert not theirs.layer1[0].bn2.weight.any()
    for network in (ours, densecl().method.key.backbone.model):
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all((m.weight == 1).all() and not m.bias.any() for m in norms) and len(norms) > 5
    conv = densecl(run={"backbone_args": ("layers=[1,1,1,1]",)}, dense_weight=0.0).method.backbone.model.layer3[0].conv1
    assert conv.weight.shape == (256, 128, 3, 3)  # by fan-out the deviation would be the root of a half of this
    assert conv.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)


def test_the_head_starts_as_the_papers() -> None:
    head = densecl(hidden_dim=512, projection_dim=128).method.query.head
    for layer in (head.pooled[0], head.pooled[2]):
        assert layer.weight.std().item() == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.03)
        assert not layer.bias.any()
    for layer in (head.patches[0], head.patches[2]):  # what nn.Conv2d(..., 1) does
        bound = layer.in_features**-0.5
        assert bound * 0.99 < layer.weight.abs().max() <= bound and 0 < layer.bias.abs().max() <= bound
    assert head.pooled[0].weight.shape == (512, 32) and head.pooled[2].weight.shape == (128, 512)
    assert densecl(hidden_dim=None).method.query.head.pooled[0].weight.shape == (32, 32)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_without_the_dense_loss_it_is_moco_v2(kind: str) -> None:
    """The loss of MoCo written here once more, from torch's parts, over three steps; nothing dense is built."""
    j = densecl(kind, dense_weight=0.0)
    assert not [n for n, _ in j.method.named_parameters() if "patches" in n.split(".")[-3:]]
    assert j.method.dense_queue is None
    queue = j.method.queue.keys.clone()
    for number in range(3):
        batch, m = views(j, number), j.method
        with torch.no_grad():
            q = F.normalize(m.query.head.pooled(m.query.backbone(batch[0]).pooled), dim=1)
            k = F.normalize(m.key.head.pooled(m.key.backbone(batch[1]).pooled), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / 0.2
        assert step(j, number)["loss"] == pytest.approx(
            F.cross_entropy(logits, torch.zeros(8, dtype=torch.int64)).item(), rel=1e-5
        )
        queue[8 * number : 8 * number + 8] = k
        torch.testing.assert_close(m.queue.keys, queue, rtol=1e-5, atol=1e-6)


def test_the_global_part_is_the_same_with_and_without_the_dense_one() -> None:
    batch = views(densecl())
    a, b = densecl(dense_weight=0.0), densecl(dense_weight=0.5)
    a.method.load_state_dict(b.method.state_dict(), strict=False)
    assert a.method(batch, a.clock(0))["loss"] == b.method(batch, b.clock(0))["loss_global"]


def gradients(j: Job, number: int = 0) -> dict[str, Tensor]:
    j.method(views(j), j.clock(number))["loss"].backward()
    return {n: p.grad for n, p in j.method.named_parameters() if p.grad is not None}


def test_a_share_of_one_leaves_the_global_projector_without_push() -> None:
    found = gradients(densecl(dense_weight=1.0))
    ours = {n: g for n, g in found.items() if "head.pooled" in n}
    assert len(ours) == 4 and not any(g.any() for g in ours.values())
    assert all(g.any() for n, g in found.items() if "head.patches" in n)


def test_the_dense_share_waits_for_its_warm_up() -> None:
    j = densecl(dense_warmup_steps=2)
    assert [j.method.settings(j.clock(number))["dense_weight"] for number in range(4)] == [0, 0, 0.5, 0.5]
    found = gradients(j, 1)  # every parameter keeps a gradient path: DistributedDataParallel waits for all of them
    dense = [g for n, g in found.items() if "head.patches" in n]
    assert len(dense) == 4 and not any(g.any() for g in dense)
    said = j.method(views(j), j.clock(1))
    assert said["loss"] == said["loss_global"] and said["loss_dense"] > 0
    after = j.method(views(j), j.clock(2))
    assert after["loss"].item() == pytest.approx((0.5 * (after["loss_global"] + after["loss_dense"])).item())


@pytest.mark.parametrize("num_grid", [None, 2])
def test_identical_views_match_location_by_location(num_grid: int | None) -> None:
    """At the start the key is the query: the same view twice gives the identity."""
    j = densecl(num_grid=num_grid)
    view = views(j)[0]
    said = j.method([view, view], j.clock(0))
    assert said["matches_mutual"] == 1 and said["matches_distinct"] == 1
    for name in ("positive_similarity", "dense_positive_similarity"):
        assert said[name].item() == pytest.approx(1, abs=1e-6)


def test_random_matching_is_seeded_by_the_step_and_moves() -> None:
    a, b = densecl(match="random"), densecl(match="random")
    said = [(step(a, n), step(b, n)) for n in range(2)]
    assert all(x == y for x, y in said)
    j = densecl(match="random")
    assert j.method(views(j), j.clock(0))["loss"] != j.method(views(j), j.clock(0))["loss"]


def test_the_loss_starts_at_the_log_of_the_queue_size() -> None:
    """ln 65,536 + 1 / (2 * 128 * T^2) = 11.19, less s / T for the cosine s of query and key."""
    j = densecl(queue_size=65536, projection_dim=128, num_images=65536)
    said = j.method(views(j), j.clock(0))
    for name, cosine in (("loss_global", "positive_similarity"), ("loss_dense", "dense_positive_similarity")):
        assert said[name].item() == pytest.approx(11.19 - said[cosine].item() / 0.2, abs=0.06)
    assert said["negative_similarity"].abs() < 0.01


def test_the_queues_take_the_keys_and_not_the_queries() -> None:
    j = densecl()
    step(j, 0)
    batch, before = views(j, 1), j.method.queue.keys.clone()
    with torch.no_grad():
        k, dense, _ = parts(j, j.method.key, batch[1])
    j.method(batch, j.clock(1))["loss"].backward()
    j.method.after_step(j.clock(1), OK)
    keys, dense_keys = j.method.queue.keys, j.method.dense_queue.keys  # type: ignore[union-attr]
    torch.testing.assert_close(keys[8:16], k, rtol=1e-5, atol=1e-5)
    # One vector per image, the mean over locations before they are made unit vectors.
    torch.testing.assert_close(dense_keys[8:16], F.normalize(dense.mean((2, 3)), dim=1), rtol=1e-5, atol=1e-5)
    of_units = F.normalize(F.normalize(dense, dim=1).mean((2, 3)), dim=1)
    assert (of_units - dense_keys[8:16]).abs().max() > 1e-3
    assert torch.equal(keys[16:], before[16:]) and torch.equal(keys[:8], before[:8])
    assert j.method.queue.pointer == 16 and j.method.dense_queue.pointer == 16  # type: ignore[union-attr]


def test_the_key_moves_at_the_end_of_a_step_by_the_query_after_it() -> None:
    j = densecl()
    before = {n: p.clone() for n, p in j.method.key.named_parameters()}
    step(j, 0)
    for name, p in j.method.key.named_parameters():
        query = j.method.query.get_parameter(name)
        torch.testing.assert_close(p, 0.9 * before[name] + 0.1 * query)
        assert not torch.equal(p, before[name])


def test_the_statistics_of_the_key_are_its_own() -> None:
    j = densecl(momentum=0.0)  # the parameters of the key are those of the query
    step(j, 0)
    ours, theirs = (dict(n.named_buffers()) for n in (j.method.query, j.method.key))
    assert all(not torch.equal(ours[n], theirs[n]) for n in ours if n.endswith("running_mean"))
    assert all(torch.equal(p, j.method.query.get_parameter(n)) for n, p in j.method.key.named_parameters())


def test_micro_batches_fill_the_queues_once_and_in_order() -> None:
    a, b = densecl("vit"), densecl("vit", {"micro_batch": 2})
    for j in (a, b):
        step(j, 0)
    assert b.method.queue.pointer == 8
    torch.testing.assert_close(a.method.queue.keys, b.method.queue.keys, rtol=1e-5, atol=1e-6)


def test_everything_is_decayed() -> None:
    config = load_recipe("densecl")
    j = densecl(run={"optim": config.optim})
    assert [len(g["params"]) for g in j.optimizer.param_groups] == [len(list(j.method.query.parameters())), 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"queue_size": 4}, "queue-size 4 holds less than the 8 images"),
        ({"dense_weight": 1.5}, "dense-weight 1.5 is no share"),
        ({"dense_weight": -0.1}, "dense-weight -0.1 is no share"),
        ({"dense_weight": math.nan}, "dense-weight is nan: expected a finite number"),
        ({"num_grid": 3}, "num-grid 3 does not divide the 4 x 4"),
        ({"num_grid": 8}, "num-grid 8 does not divide the 4 x 4"),
        ({"size": 8}, "one location"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_the_first_step(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        densecl(**values)
    assert len(str(caught.value).splitlines()) <= 5


def test_moco_v2_needs_no_map() -> None:
    densecl(size=8, dense_weight=0.0)


def test_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    densecl(queue_size=16)
    assert "warning" not in capsys.readouterr().err
    densecl(queue_size=24)
    assert "queue of 24 holds more than half of the 32 images" in capsys.readouterr().err
    densecl(queue_size=16, shuffle_bn=True)
    assert "shuffle-bn does nothing in a single process" in capsys.readouterr().err


VARIANTS = {
    "mocov2": {"dense_weight": 0.0},
    "projection": {"match": "projection"},
    "pooled": {"num_grid": 2},
}


def making(variant: str, kind: str) -> Make:
    def make(**values: Any) -> Job:
        run = {k: v for k, v in values.items() if k not in ("drop_path", "freeze_last_layer")}
        return job(dataclasses.replace(SMALL["densecl"], **VARIANTS[variant]), kind, **run)

    return make


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda f: f.__name__)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variants_keep_the_contract(variant: str, promise: Callable[[Make], None]) -> None:
    promise(making(variant, "resnet"))


@pytest.mark.parametrize("variant", ["mocov2", "pooled"])
def test_the_variants_keep_their_state_and_sum_micro_batches(variant: str, tmp_path: Any) -> None:
    keeps_its_state_in_the_checkpoint(making(variant, "resnet"), tmp_path)
    sums_micro_batches_to_the_whole_batch(making(variant, "vit"))


def test_it_learns_and_bf16_learns_the_same() -> None:
    """200 steps. Tolerance: the mean of each loss over the last 50 steps within 1 % of float32's."""
    run = {
        "optim": dataclasses.replace(SGD, lr=1.6, weight_decay=1e-4, weight_decay_end=1e-4),
        "epochs": 50,
        "backbone_args": ("patch_size=16", "embed_dim=32", "depth=1", "num_heads=2"),
    }
    curves = {}
    for precision in ("fp32", "bf16"):
        j = densecl("vit", run | {"precision": precision}, momentum=0.99)
        curves[precision] = [step(j, number) for number in range(200)]
    assert curves["bf16"][0] != curves["fp32"][0]
    for name in ("loss_global", "loss_dense"):
        exact, mixed = (sum(s[name] for s in curves[p][-50:]) / 50 for p in ("fp32", "bf16"))
        assert mixed == pytest.approx(exact, rel=0.01)
        # The loss first rises, while the queue fills with keys of the network.
        assert exact < sum(s[name] for s in curves["fp32"][20:40]) / 20 - 0.1, f"{name} learned nothing"
