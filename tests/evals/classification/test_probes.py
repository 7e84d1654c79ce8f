"""Heads trained side by side against plain torch, one at a time; the sweep; scores known by hand."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from nolabel.data.order import order
from nolabel.errors import DataError, NumericError
from nolabel.evals.classification.probes import HEADS, Head, Heads, Plan, Score, score, table_batches, train_heads
from nolabel.evals.classification.sweep import Probe, Samples, sweep
from nolabel.evals.shared.pieces import Layout
from nolabel.optim.optimizers import LARS

ONE, TWO = Layout(1), Layout(2)


def blobs(num_images: int, seed: int, num_classes: int = 3, dim: int = 8, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Noise around one point per class."""
    centers = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(99))
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % num_classes
    return centers[labels] + noise * torch.randn(num_images, dim, generator=rng), labels


def trained(head: Head, lrs: list[float], seed: int = 0, **changes: int | bool) -> Heads:
    x, labels = blobs(60, 1)
    plan = Plan(head, steps=20, steps_per_epoch=5, batch_size=12, seed=seed)._replace(**changes)
    heads = Heads(head, len(lrs), 3, 8, seed)
    train_heads({ONE: heads}, lrs, table_batches({ONE: x}, labels, plan), plan)
    return heads


def by_hand(head: Head, lr: float, by_epoch: bool = False, warmup: int = 0) -> nn.Module:
    """The same with modules and optimizers of torch, one batch after the other."""
    x, labels = blobs(60, 1)
    linear = nn.Linear(8, 3)
    with torch.no_grad():
        linear.weight.copy_(0.01 * torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
        linear.bias.zero_()
    parts = {
        "plain": [],
        "batchnorm": [nn.BatchNorm1d(8, eps=1e-6, affine=False)],
        "layernorm_l2": [nn.LayerNorm(8), Unit()],
    }
    net = nn.Sequential(*parts[head], linear).train()
    groups = [{"params": list(net.parameters())}]
    optimizer: torch.optim.Optimizer
    if head == "plain":
        optimizer = torch.optim.SGD(groups, momentum=0.9)
    else:
        optimizer = LARS(groups, rate_inside=True) if head == "batchnorm" else Nesterov(groups, {})
    for step in range(20):
        rows = order(60, 0, step // 5)[step % 5 * 12 : step % 5 * 12 + 12]
        done = (step - step % 5) / 20 if by_epoch else max(step - warmup, 0) / (20 - warmup)
        factor = step / (warmup - 1) if step < warmup else (1 + math.cos(math.pi * done)) / 2
        for group in optimizer.param_groups:
            group.update({"lr": lr * 12 / 256 * factor, "weight_decay": 0.0, "momentum": 0.9})
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), labels[rows]).backward()
        optimizer.step()
    return net.eval()


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x)


class Nesterov(torch.optim.Optimizer):
    """The learning rate multiplies the gradient as it enters the momentum buffer (Assran et al. 2022)."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("buffer", torch.zeros_like(p))
                buffer.copy_(0.9 * buffer + group["lr"] * p.grad)
                p.sub_(group["lr"] * p.grad + 0.9 * buffer)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_that_of_plain_torch(head: Head) -> None:
    lrs = [0.1, 8.0]
    heads = trained(head, lrs)
    x, _ = blobs(40, 2)
    for i, lr in enumerate(lrs):
        expected = by_hand(head, lr)(x)
        start = Heads(head, 1, 3, 8).eval()(x)[0].T
        torch.testing.assert_close(heads(x)[i].T, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(heads.only(i)(x)[0].T, expected, rtol=1e-4, atol=1e-5)
        assert (expected - start).abs().max() > 1e-3  # it moved


def test_schedules() -> None:
    x, _ = blobs(40, 2)
    torch.testing.assert_close(trained("plain", [3.0], by_epoch=True)(x)[0].T, by_hand("plain", 3.0, by_epoch=True)(x))
    torch.testing.assert_close(
        trained("batchnorm", [8.0], warmup_steps=4)(x)[0].T,
        by_hand("batchnorm", 8.0, warmup=4)(x),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("head", HEADS)
def test_settings_do_not_touch_each_other(head: Head) -> None:
    """Not even one that explodes."""
    alone, together = trained(head, [0.5]), trained(head, [0.5, 1e30, 2.0])
    x, labels = blobs(40, 2)
    torch.testing.assert_close(together(x)[0], alone(x)[0], rtol=1e-4, atol=1e-5)
    scores = score(together, x, labels).top1
    assert math.isfinite(scores[0]) and math.isfinite(scores[2])
    if head == "plain":
        assert math.isnan(scores[1]) or scores[1] < 100


@pytest.mark.parametrize("head", HEADS)
def test_bfloat16_is_for_the_products_alone(head: Head) -> None:
    exact, rough = trained(head, [0.1, 2.0]), trained(head, [0.1, 2.0], bf16=True)
    moved = (exact.weight - Heads(head, 2, 3, 8).weight).abs().amax((1, 2))
    apart = (rough.weight - exact.weight).abs().amax((1, 2))
    assert rough.weight.dtype == torch.float32
    assert (apart > 0).all() and (apart < 0.05 * moved).all()


def test_layouts_do_not_touch_each_other() -> None:
    x, labels = blobs(60, 1)
    plan = Plan("plain", 20, 5, 12)
    groups = {ONE: Heads("plain", 1, 3, 8), TWO: Heads("plain", 1, 3, 16)}
    train_heads(groups, [0.5], table_batches({ONE: x, TWO: torch.cat([x, x], 1)}, labels, plan), plan)
    torch.testing.assert_close(groups[ONE](x), trained("plain", [0.5])(x), rtol=1e-4, atol=1e-5)
    assert groups[TWO].weight.shape == (1, 3, 16)


def test_every_image_once_an_epoch() -> None:
    labels = torch.arange(10)
    plan = Plan("plain", steps=6, steps_per_epoch=3, batch_size=3, seed=1)
    batches = [y.tolist() for _, y in table_batches({ONE: torch.zeros(10, 1)}, labels, plan)]
    epochs = [[y for batch in part for y in batch] for part in (batches[:3], batches[3:])]
    assert [len(set(epoch)) for epoch in epochs] == [9, 9]
    assert epochs[0] != epochs[1]


def test_scores_by_hand() -> None:
    heads = Heads("plain", 2, 7, 7)
    with torch.no_grad():
        heads.weight[0], heads.weight[1] = torch.eye(7), torch.zeros(7, 7)
    x = torch.tensor([[0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]]).repeat(3, 1)
    labels = torch.tensor([0, 4, 5])
    expected = Score([100 / 3, 100 / 3], [200 / 3, 200 / 3])  # the second head says the same of all: lowest ids first
    for chunk_size in (4096, 2):
        for found, percent in zip(score(heads, x, labels, chunk_size), expected, strict=True):
            assert found == pytest.approx(percent)
    with torch.no_grad():
        heads.bias[1, 3] = torch.nan
    assert math.isnan(score(heads, x, labels).top1[1])


def samples(num_images: int, seed: int, noise: float = 1.0) -> Samples:
    x, labels = blobs(num_images, seed, noise=noise)
    return Samples({ONE: x, TWO: x[:, :2]}, labels, tuple(f"{i:03}" for i in range(num_images)))


def plan(num_images: int) -> Plan:
    return Plan("plain", 4 * (num_images // 10), num_images // 10, 10)


def test_the_best_setting_on_val_is_tested() -> None:
    probe = Probe(samples(90, 1), samples(60, 2, 1.5), samples(60, 3, 1.5), 3)
    best = sweep(probe, [TWO, ONE], [1e-6, 0.01, 1.0], plan)
    tops = {(t["blocks"], t["lr"]): t["top1"] for t in best.tried}
    assert len(tops) == 6
    assert tops[best.layout.blocks, best.lr] == max(tops.values()) > min(tops.values())
    assert (best.chosen_on, best.retrained) == ("val", False)
    found = score(best.head, probe.test.features[best.layout], probe.test.labels)
    assert [best.top1, best.top5] == pytest.approx([found.top1[0], found.top5[0]], abs=1e-4)
    liar = probe._replace(test=probe.test._replace(labels=(probe.test.labels + 1) % 3))
    again = sweep(liar, [TWO, ONE], [1e-6, 0.01, 1.0], plan)  # the test labels decide nothing
    assert (again.layout, again.lr, again.tried) == (best.layout, best.lr, best.tried)
    assert again.top1 < best.top1


def test_without_val_a_tenth_of_train_decides_and_all_of_it_is_learned() -> None:
    probe = Probe(samples(90, 1), None, samples(60, 3), 3)
    best = sweep(probe, [ONE], [1e-6, 1.0], plan)
    assert (best.chosen_on, best.retrained, best.steps) == ("10 % of train", True, 36)
    assert best.lr == 1.0
    alone = sweep(probe, [ONE], [1.0], plan)
    assert (alone.chosen_on, alone.retrained, alone.tried) == ("nothing", False, [])
    assert torch.equal(alone.head.weight, best.head.weight)
    held = [t["top1"] for t in best.tried]
    assert all((top * 9 / 100) == pytest.approx(round(top * 9 / 100), abs=1e-3) for top in held)  # of nine images


def test_nothing_to_choose_on() -> None:
    probe = Probe(samples(3, 1), None, samples(60, 3), 3)
    with pytest.raises(DataError, match=r"--lrs 0\.1 --blocks 1"):
        sweep(probe, [ONE], [0.1, 1.0], lambda n: Plan("plain", 5, 1, n))
    assert sweep(probe, [ONE], [0.1], lambda n: Plan("plain", 5, 1, n)).chosen_on == "nothing"


def test_a_sweep_that_explodes() -> None:
    probe = Probe(samples(90, 1), samples(60, 2), samples(60, 3), 3)
    huge = Samples({ONE: probe.train.features[ONE] * 1e30}, probe.train.labels, probe.train.ids)
    with pytest.raises(NumericError, match="smaller --lrs"):
        sweep(probe._replace(train=huge), [ONE], [1e20, 1e21], plan)
    best = sweep(probe, [ONE], [0.1, 1e38], plan)
    assert best.lr == 0.1


def test_it_finds_what_logistic_regression_finds() -> None:
    train, test = blobs(600, 1, noise=1.5), blobs(600, 2, noise=1.5)
    oracle = LogisticRegression(C=1e4, max_iter=1000).fit(train[0].numpy(), train[1].numpy())
    expected = 100 * oracle.score(test[0].numpy(), test[1].numpy())
    ids = tuple(f"{i:03}" for i in range(600))
    sets = [Samples({ONE: x}, labels, ids) for x, labels in (train, test)]
    best = sweep(Probe(sets[0], None, sets[1], 3), [ONE], [0.01, 0.1, 1.0], lambda n: Plan("plain", 400, 20, n // 20))
    assert 60 < expected < 99
    assert best.top1 == pytest.approx(expected, abs=1.5)
