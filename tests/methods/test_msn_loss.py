"""MSN's loss, Sinkhorn and me-max: slow loops from the equations, closed forms, lightly (Assran et al. 2022)."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from test_contract import shake
from test_msn import CONFIG, msn, random
from tiny import step, views
from torch import Tensor, nn

from nolabel.losses.assignments import log_assignments, memax_gap, sinkhorn
from nolabel.losses.distillation import entropy
from nolabel.methods.msn import MSNConfig
from nolabel.training.job import Job


def slow_softmax(z: list[float], prototypes: list[list[float]], temperature: float, smoothing: float) -> list[float]:
    def unit(v: list[float]) -> list[float]:
        length = math.sqrt(sum(x * x for x in v))
        return [x / length for x in v]

    cosines = [sum(a * b for a, b in zip(unit(z), unit(q), strict=True)) for q in prototypes]
    weights = [math.exp(c / temperature) for c in cosines]
    return [(1 - smoothing) * w / sum(weights) + smoothing / len(weights) for w in weights]


def slow_sinkhorn(rows: list[list[float]], rounds: int) -> list[list[float]]:
    """As the paper's appendix has it: on Q = p^T, normalised to sum 1, rows to 1/K, columns to 1/B, times B."""
    q = [list(column) for column in zip(*rows, strict=True)]
    k, b = len(q), len(rows)
    total = sum(map(sum, q))
    q = [[x / total for x in row] for row in q]
    for _ in range(rounds):
        q = [[x / sum(row) / k for x in row] for row in q]
        columns = [sum(column) for column in zip(*q, strict=True)]
        q = [[x / columns[i] / b for i, x in enumerate(row)] for row in q]
    return [[x * b for x in column] for column in zip(*q, strict=True)]


def slow_entropy(rows: list[list[float]]) -> float:
    return -sum(x * math.log(x) for row in rows for x in row if x) / len(rows)


def slow_loss(c: MSNConfig, anchors: Tensor, targets: Tensor, prototypes: Tensor) -> dict[str, float]:
    """`anchors` (M, B, D), `targets` (B, D)."""
    q = prototypes.tolist()
    wanted = [slow_softmax(h, q, c.temperature, c.label_smoothing) for h in targets.tolist()]
    wanted = [[x ** (1 / c.sharpening) for x in row] for row in wanted]
    sharpened = [[x / sum(row) for x in row] for row in wanted]
    wanted = slow_sinkhorn(sharpened, c.sinkhorn_rounds)
    ce, ent, mean, number = 0.0, 0.0, [0.0] * len(q), anchors.shape[0] * anchors.shape[1]
    for view in anchors.tolist():
        for z, target in zip(view, wanted, strict=True):
            p = slow_softmax(z, q, c.temperature, c.label_smoothing)
            ce -= sum(t * math.log(x) for t, x in zip(target, p, strict=True)) / number
            ent -= sum(x * math.log(x) for x in p) / number
            mean = [m + x / number for m, x in zip(mean, p, strict=True)]
    gap = math.log(len(q)) + sum(m * math.log(m) for m in mean)
    return {
        "loss": ce + c.memax_weight * gap + c.entropy_weight * ent,
        "ce": ce,
        "memax_gap": gap,
        "target_entropy": slow_entropy(sharpened),
        "assignment_information": slow_entropy([[sum(x) / len(x) for x in zip(*sharpened, strict=True)]])
        - slow_entropy(sharpened),
        "target_max": sum(map(max, wanted)) / len(wanted),
        "prototypes_used": len({row.index(max(row)) for row in wanted}),
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sinkhorn_rounds": 0, "memax_weight": 5.0},
        {"memax_weight": 0.0, "entropy_weight": 0.3},
        {"label_smoothing": 0.2},
        {"label_smoothing": 0.1, "sinkhorn_rounds": 1, "temperature": 0.2, "sharpening": 0.5},
        {"num_random": 2, "num_focal": 1, "mask_per_sample": True},
        {"head_per_size": False},
    ],
    ids=str,
)
def test_the_loss_is_the_slow_loop(settings: dict[str, Any]) -> None:
    """After some steps, so that the two networks differ."""
    j = msn(**settings)
    for number in range(3):
        step(j, number)
    batch, m, seen = views(j, 9), j.method, outputs_of_the_heads(j)
    said = m(batch, j.clock(3))
    anchors = torch.cat(seen["anchor"]).view(len(batch) - 1, 8, 16)
    expected = slow_loss(j.config.method, anchors, seen["target"][0], m.prototypes.detach())  # type: ignore[arg-type]
    assert {name: value.item() for name, value in said.items()} == pytest.approx(expected, rel=1e-4, abs=1e-5)


def outputs_of_the_heads(j: Job) -> dict[str, list[Tensor]]:
    """Lists that every pass through a head of the method adds its output to, by network."""
    seen: dict[str, list[Tensor]] = {"anchor": [], "target": []}
    for name, outputs in seen.items():
        head = getattr(j.method, name).head
        head.register_forward_hook(lambda _, i, out, outputs=outputs: outputs.append(out.detach()))
    return seen


# Head: one group of rows is normalised by its own mean and variance.


def slow_head(head: nn.Module, rows: list[list[float]], running: dict[str, list[list[float]]]) -> list[list[float]]:
    """Linear, BatchNorm of these rows, GELU, and so on, number by number; `running` moves by a tenth, as in torch."""
    for name, layer in head.named_children():
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight.tolist(), layer.bias.tolist()
            rows = [
                [b + sum(x * y for x, y in zip(row, w, strict=True)) for w, b in zip(weight, bias, strict=True)]
                for row in rows
            ]
        elif isinstance(layer, nn.BatchNorm1d):
            columns, n = list(zip(*rows, strict=True)), len(rows)
            means = [sum(c) / n for c in columns]
            spreads = [sum((x - m) ** 2 for x in c) / n for c, m in zip(columns, means, strict=True)]
            remembered = means, [v * n / (n - 1) for v in spreads]
            running[name] = [
                [0.9 * old + 0.1 * new for old, new in zip(*pair, strict=True)]
                for pair in zip(running[name], remembered, strict=True)
            ]
            scales = [w / math.sqrt(v + layer.eps) for w, v in zip(layer.weight.tolist(), spreads, strict=True)]
            shifts = layer.bias.tolist()
            rows = [[(x - m) * s + b for x, m, s, b in zip(row, means, scales, shifts, strict=True)] for row in rows]
        else:
            rows = [[x / 2 * (1 + math.erf(x / math.sqrt(2))) for x in row] for row in rows]
    return rows


@pytest.mark.parametrize("settings", [{}, {"num_random": 2, "num_focal": 1}], ids=str)
def test_each_size_of_anchors_has_its_own_statistics_in_the_head(settings: dict[str, Any]) -> None:
    """Loss and running statistics from the features of the backbone, with a slow head on each of two groups."""
    j = msn(**settings)
    for number in range(3):
        step(j, number)
    m, batch, number_of_random = j.method, views(j, 9), j.config.method.num_random
    running = {n: [b.running_mean.tolist(), b.running_var.tolist()] for n, b in batchnorms(m.anchor.head)}
    with torch.no_grad():
        random, focal = torch.cat(batch[1 : 1 + number_of_random]), torch.cat(batch[1 + number_of_random :])
        pooled = m.anchor.backbone(random, m._keep(batch[1], j.clock(3))).pooled, m.anchor.backbone(focal).pooled
        target = m.target.backbone(batch[0]).pooled
    own = {n: [b.running_mean.tolist(), b.running_var.tolist()] for n, b in batchnorms(m.target.head)}
    anchors = [row for group in pooled for row in slow_head(m.anchor.head, group.tolist(), running)]
    targets = torch.tensor(slow_head(m.target.head, target.tolist(), own))
    expected = slow_loss(
        j.config.method, torch.tensor(anchors).view(len(batch) - 1, 8, -1), targets, m.prototypes.detach()
    )
    said = m(batch, j.clock(3))
    assert {name: value.item() for name, value in said.items()} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    for name, norm in batchnorms(m.anchor.head):
        assert norm.running_mean.tolist() == pytest.approx(running[name][0], rel=1e-4, abs=1e-6)
        assert norm.running_var.tolist() == pytest.approx(running[name][1], rel=1e-4, abs=1e-6)


def batchnorms(head: nn.Module) -> list[tuple[str, nn.BatchNorm1d]]:
    return [(name, layer) for name, layer in head.named_children() if isinstance(layer, nn.BatchNorm1d)]


def test_each_anchor_is_compared_with_the_target_of_its_own_image() -> None:
    """The rows of the anchors are random views of all images, then the first focal views of all images, and so on."""
    j = msn("resnet", num_focal=1)
    m = j.method.eval()
    shake(m)  # or all images would look much the same
    batch = views(j)
    z = m._anchors(batch[1:], j.clock(0)).view(2, 8, -1)  # type: ignore[operator]
    for v in range(2):
        for i in range(8):
            alone = m.anchor.head(m.anchor.backbone(batch[1 + v][i : i + 1]).pooled)  # type: ignore[index,operator]
            torch.testing.assert_close(z[v, i], alone[0], rtol=1e-4, atol=1e-5)


# Closed forms.


def test_identical_rows_leave_the_whole_gap_and_a_uniform_mean_none() -> None:
    p = random(1, 12).softmax(-1)
    assert memax_gap(p.expand(5, 12)).item() == pytest.approx(math.log(12) - entropy(p).item(), rel=1e-5)
    assert memax_gap(torch.eye(12)).item() == pytest.approx(0, abs=1e-6)
    one = torch.zeros(5, 12)
    one[:, 3] = 1
    one.requires_grad_()
    gap = memax_gap(one)
    gap.backward()
    assert gap.item() == pytest.approx(math.log(12), rel=1e-6) and one.grad is not None and one.grad.isfinite().all()


def test_sharpening_with_one_is_the_identity_and_with_zero_picks_one() -> None:
    j = msn(sinkhorn_rounds=0, sharpening=1.0)
    h = random(5, 16)
    p = log_assignments(h, j.method.prototypes, 0.1).exp()  # type: ignore[arg-type]
    torch.testing.assert_close(j.method._sharpened(h), p)  # type: ignore[operator]
    j.method.config = dataclasses.replace(CONFIG, sinkhorn_rounds=0, sharpening=1e-6)  # type: ignore[assignment]
    assert torch.equal(j.method._sharpened(h), torch.eye(16)[p.argmax(1)])  # type: ignore[operator]


def test_sinkhorn_rows_sum_to_one_and_columns_nearly_to_their_share() -> None:
    p = (random(64, 8) * 2).softmax(-1)
    q = sinkhorn(p, 3)
    torch.testing.assert_close(q.sum(1), torch.ones(64))
    assert (q.sum(0) / 8 - 1).abs().max() < 0.1 < (p.sum(0) / 8 - 1).abs().max()
    assert (sinkhorn(p, 50).sum(0) / 8 - 1).abs().max() < 1e-5
    assert torch.equal(sinkhorn(p, 0), p)
    assert torch.equal(sinkhorn(torch.full((4, 8), 1 / 8)), torch.full((4, 8), 1 / 8))


def test_sinkhorn_is_the_slow_loop_and_survives_an_unused_prototype() -> None:
    p = (random(6, 4) * 3).softmax(-1)
    torch.testing.assert_close(sinkhorn(p), torch.tensor(slow_sinkhorn(p.tolist(), 3)))
    p[:, 1] = 0
    assert sinkhorn(p).isfinite().all() and not sinkhorn(p)[:, 1].any()


def test_equal_prototypes_cost_ln_k() -> None:
    j = msn()
    with torch.no_grad():
        j.method.prototypes.copy_(torch.ones(16, 16))  # type: ignore[operator]
    said = j.method(views(j), j.clock(0))
    assert [said[n].item() for n in ("ce", "target_entropy")] == pytest.approx([math.log(16)] * 2, rel=1e-6)
    assert said["memax_gap"].item() == pytest.approx(0, abs=1e-6)


def test_the_length_of_prototypes_and_embeddings_never_matters() -> None:
    z, q = random(6, 8), random(5, 8, seed=1)
    torch.testing.assert_close(log_assignments(z * 7, q * 0.01, 0.1), log_assignments(z, q, 0.1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nothing_overflows_in_low_precision(dtype: torch.dtype) -> None:
    z = (random(4, 8) * 100).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        log_p = log_assignments(z, random(32, 8, seed=1), 0.01)
    assert log_p.dtype == torch.float32 and log_p.isfinite().all() and log_p.min() < -90  # p itself would be 0
    (log_p.exp().sum() - log_p.mean()).backward()
    assert z.grad is not None and z.grad.isfinite().all()


@pytest.mark.parametrize("rounds", [0, 3])
@pytest.mark.parametrize("weight", [0.0, 1.0, 5.0])
def test_lightly_agrees(rounds: int, weight: float) -> None:
    """An independent implementation, of which only the result is looked at."""
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    anchors, targets, prototypes = random(3, 6, 16), random(6, 16, seed=1), random(10, 16, seed=2)
    config = MSNConfig(sinkhorn_rounds=rounds, memax_weight=weight)
    theirs = lightly.MSNLoss(sinkhorn_iterations=rounds, regularization_weight=weight)
    expected = slow_loss(config, anchors, targets, prototypes)["loss"]
    assert theirs(anchors.flatten(0, 1), targets, prototypes).item() == pytest.approx(expected, rel=1e-4)


def test_gradients_come_from_the_side_of_the_anchors_alone() -> None:
    """The targets are constants: the gradient of the prototypes is that of the cross-entropy against fixed targets."""
    j = msn()
    m, batch, seen = j.method, views(j), outputs_of_the_heads(j)
    m(batch, j.clock(0))["loss"].backward()
    fixed = sinkhorn(m._sharpened(seen["target"][0]))  # type: ignore[operator]
    q = m.prototypes.detach().clone().requires_grad_()  # type: ignore[operator]
    log_p = log_assignments(torch.cat(seen["anchor"]), q, 0.1)
    (-(fixed.repeat(3, 1) * log_p).sum(-1).mean() + memax_gap(log_p.exp())).backward()
    torch.testing.assert_close(m.prototypes.grad, q.grad, rtol=1e-4, atol=1e-7)
    assert not fixed.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in m.target.parameters())
