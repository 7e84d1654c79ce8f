"""Every loss, value and gradient, against the same equation in float64 from torch's own parts, all logits at once.

Tolerances, relative to the loss and to the length of each gradient: 1e-12 in float64, 1e-5 in float32, and under bf16
autocast 2e-3 of the loss and 2 % of the gradients. docs/internals/decisions.md promises them.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nolabel.losses import contrastive, distillation
from nolabel.losses.assignments import log_assignments, memax_gap, sinkhorn
from nolabel.losses.contrastive import info_nce, nt_xent
from nolabel.losses.distillation import Outputs, dino_loss
from nolabel.losses.products import product_dtype
from nolabel.networks.heads import Prototypes

V, B, K, D = 4, 6, 512, 64
LIMITS = {"float64": (1e-12, 1e-12), "float32": (1e-5, 1e-5), "bf16": (2e-3, 2e-2)}
Loss = Callable[..., Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(random(*shape, seed=seed), dim=-1)


def outputs(z: Tensor, rows: Tensor, temperature: float) -> Outputs:
    return Outputs(z, rows.to(product_dtype(rows)), temperature)


def dino(z: Tensor, w: Tensor, tz: Tensor, tw: Tensor, center: Tensor) -> Tensor:
    return dino_loss(outputs(z, w, 0.1), outputs(tz, tw, 0.04), center).loss


def exact_dino(z: Tensor, w: Tensor, tz: Tensor, tw: Tensor, center: Tensor) -> Tensor:
    """Every pair by itself."""
    p, logs = ((tz @ tw.T - center) / 0.04).softmax(-1), (z @ w.T / 0.1).log_softmax(-1)
    pairs = [-(p[q] * logs[v]).sum(-1).mean() for q in range(2) for v in range(len(z)) if v != q]
    return torch.stack(pairs).mean()


def msn(z: Tensor, prototypes: Tensor, target: Tensor) -> Tensor:
    log_p = log_assignments(z, prototypes, 0.1, 0.01)
    told = sinkhorn((log_assignments(target, prototypes.detach(), 0.1) / 0.25).softmax(-1)).to(z.dtype)
    return -(told * log_p.view(-1, *told.shape)).sum(-1).mean() + 5 * memax_gap(log_p.exp())


def exact_msn(z: Tensor, prototypes: Tensor, target: Tensor) -> Tensor:
    q = F.normalize(prototypes, dim=1)
    p = 0.99 * (F.normalize(z, dim=1) @ q.T / 0.1).softmax(-1) + 0.01 / len(q)
    told = ((F.normalize(target, dim=1) @ q.detach().T / 0.1).softmax(-1) ** 4).detach()
    told = told / told.sum(1, keepdim=True)
    for _ in range(3):
        told = told / told.sum(0)
        told = told / told.sum(1, keepdim=True)
    mean = p.mean(0)
    gap = math.log(len(q)) + (mean * mean.log()).sum()
    return -(told * p.log().view(-1, *told.shape)).sum(-1).mean() + 5 * gap


def contrast(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    return info_nce(query, key, queue, 0.2).loss


def exact_contrast(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    logits = torch.cat([(query * key.detach()).sum(1, keepdim=True), query @ queue.T], dim=1) / 0.2
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))


def simclr(a: Tensor, b: Tensor) -> Tensor:
    return nt_xent(a, b, 0.1)[0]


def exact_simclr(a: Tensor, b: Tensor) -> Tensor:
    """All 2B views at once, each against all but itself."""
    views = F.normalize(torch.cat([a, b]), dim=1)
    logits = (views @ views.T / 0.1).masked_fill(torch.eye(len(views), dtype=torch.bool), -torch.inf)
    partners = torch.arange(len(views)).roll(len(a))
    return 2 * F.cross_entropy(logits, partners)


LOSSES: dict[str, tuple[Loss, Loss, list[Tensor], int]] = {  # ours, exact, arguments, how many of them have a gradient
    "DINO": (dino, exact_dino, [unit(V, B, D), unit(K, D, seed=1), unit(2, B, D, seed=2), unit(K, D, seed=3)], 2),
    "MSN": (msn, exact_msn, [random(V * B, D), random(32, D, seed=1), random(B, D, seed=2)], 2),
    "InfoNCE": (contrast, exact_contrast, [unit(B, D), unit(B, D, seed=1), unit(K, D, seed=2)], 1),
    "dense InfoNCE": (contrast, exact_contrast, [unit(49 * B, D), unit(49 * B, D, seed=1), unit(K, D, seed=2)], 1),
    "NT-Xent": (simclr, exact_simclr, [random(B, D), random(B, D, seed=1)], 2),
}
LOSSES["DINO"][2].append(0.1 * random(1, K, seed=4))


def both(loss: Loss, arguments: list[Tensor], number: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    inputs = [x.clone().requires_grad_(i < number) for i, x in enumerate(arguments)]
    value = loss(*inputs)
    return value.detach(), torch.autograd.grad(3 * value, inputs[:number])


def far(found: tuple[Tensor, tuple[Tensor, ...]], exact: tuple[Tensor, tuple[Tensor, ...]]) -> tuple[float, float]:
    """Relative error of the loss and the largest of the gradients."""
    slopes = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found[1], exact[1], strict=True)]
    return ((found[0].double() - exact[0]).abs() / exact[0].abs()).item(), max(slopes)


@pytest.mark.parametrize("at_once", [2**24, 1])
@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_the_equations(
    name: str, precision: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, exact, arguments, number = LOSSES[name]
    if precision == "float64" and name in ("MSN", "NT-Xent"):
        pytest.skip("counts in float32 whatever it gets")
    if name in ("MSN", "NT-Xent") and at_once == 1:
        pytest.skip("has no pieces")
    for losses in (contrastive, distillation):
        monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
    given = [x if precision == "float64" else x.float() for x in arguments]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        found = both(ours, given, number)
    loss, slope = far(found, both(exact, arguments, number))
    limits = LIMITS[precision]
    assert loss <= limits[0] and slope <= limits[1], (loss, slope)


class Largest(TorchDispatchMode):
    """The largest tensor that anything inside makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, (tuple, list)) else (made,):
            self.numel = max(self.numel, x.numel() if isinstance(x, Tensor) else 0)
        return made


@pytest.mark.parametrize(
    ("ours", "exact", "arguments", "number"),
    [
        (dino, exact_dino, [unit(V, 40, 4), unit(4096, 4), unit(2, 40, 4, seed=2), unit(4096, 4), random(1, 4096)], 2),
        (contrast, exact_contrast, [unit(300, 4), unit(300, 4, seed=1), unit(4096, 4, seed=2)], 1),
    ],
)
def test_the_logits_are_never_held_whole(
    ours: Loss, exact: Loss, arguments: list[Tensor], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that a loss makes is larger than what it was told to hold at once."""
    for losses in (contrastive, distillation):
        monkeypatch.setattr(losses, "LOGITS_AT_ONCE", 2**16)
    with Largest() as seen:
        both(ours, arguments, number)
    assert seen.numel <= 2**16
    with Largest() as seen:
        both(exact, arguments, number)
    assert seen.numel >= V * 40 * 4096


@pytest.mark.parametrize("learned", [True, False])
def test_the_gradient_of_weight_normalised_rows_is_that_of_torch(learned: bool) -> None:
    layer = Prototypes(5, 7, learned).double()
    with torch.no_grad():
        layer.weight_g.copy_(random(7, 1).exp())
    parameters = [p for p in layer.parameters() if p.requires_grad]
    plain = layer.weight_g * F.normalize(layer.weight_v, dim=1)
    torch.testing.assert_close(layer.rows(), plain)
    weights = random(7, 5, seed=1)
    wanted = torch.autograd.grad((plain * weights).sum(), parameters)
    for a, b in zip(torch.autograd.grad((layer.rows() * weights).sum(), parameters), wanted, strict=True):
        torch.testing.assert_close(a, b)
