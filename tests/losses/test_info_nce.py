"""MoCo's loss against a slow loop, and its chunks against the whole in value and gradient."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nolabel.losses import contrastive, distillation
from nolabel.losses.contrastive import info_nce

R, Q, D = 7, 33, 5


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def slow_info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> tuple[float, float]:
    total, first = 0.0, 0
    for q, k in zip(query.tolist(), key.tolist(), strict=True):
        positive = sum(a * b for a, b in zip(q, k, strict=True)) / temperature
        negatives = [sum(a * b for a, b in zip(q, n, strict=True)) / temperature for n in queue.tolist()]
        total += math.log(math.exp(positive) + sum(map(math.exp, negatives))) - positive
        first += positive >= max(negatives)
    return total / len(query), first / len(query)


def whole(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """The same from torch's own parts, every logit at once."""
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_the_loss_is_the_slow_loop(temperature: float) -> None:
    query, queue = unit(R, D), unit(Q, D, seed=2)
    key = F.normalize(query + 0.5 * unit(R, D, seed=1), dim=1)
    said = info_nce(query, key, queue, temperature)
    loss, first = slow_info_nce(query, key, queue, temperature)
    assert said.loss.item() == pytest.approx(loss, rel=1e-9)
    assert said.first.item() == pytest.approx(first) and 0 < first < 1
    assert said.positive.item() == pytest.approx((query * key).sum(1).mean().item())
    assert said.negative.item() == pytest.approx((query @ queue.T).mean().item())


@pytest.mark.parametrize("at_once", [1, 2 * Q, 3 * Q + 5, 1000 * Q])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_chunks_are_the_whole(at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tolerance: 1e-12 in float64; 1e-6 in float32, value and gradient of size one, against float64."""
    for losses in (contrastive, distillation):
        monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
    query, key, queue = unit(R, D).requires_grad_(), unit(R, D, seed=1), unit(Q, D, seed=2)
    exact = whole(query, key, queue, 0.2)
    (wanted,) = torch.autograd.grad(3 * exact, query)
    mine = query.detach().to(dtype).requires_grad_()
    said = info_nce(mine, key.to(dtype), queue.to(dtype), 0.2)
    (3 * said.loss).backward()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(said.loss.double(), exact, rtol=tolerance, atol=tolerance)
    assert mine.grad is not None
    torch.testing.assert_close(mine.grad.double(), wanted, rtol=tolerance, atol=tolerance)


def test_the_gradient_is_that_of_finite_differences() -> None:
    query, key, queue = unit(3, D).requires_grad_(), unit(3, D, seed=1), unit(9, D, seed=2)
    assert torch.autograd.gradcheck(lambda q: info_nce(q, key, queue, 0.2).loss, [query])


def test_bf16_is_near_float32() -> None:
    """Stated tolerance of bf16 products: 1e-3 of the loss, 1 % of the gradient's length; positives are exact."""
    query, key = unit(64, 128).float().requires_grad_(), unit(64, 128, seed=1).float()
    queue = unit(4096, 128, seed=2).float()
    exact = info_nce(query, key, queue, 0.2)
    (wanted,) = torch.autograd.grad(exact.loss, query)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = info_nce(query, key, queue, 0.2)
    assert mixed.loss.dtype == torch.float32 and torch.equal(mixed.positive, exact.positive)
    (found,) = torch.autograd.grad(mixed.loss, query)
    assert mixed.loss.item() == pytest.approx(exact.loss.item(), abs=1e-3 * exact.loss.item())
    assert not torch.equal(mixed.loss, exact.loss), "nothing was done in bf16"
    assert (found - wanted).norm() < 0.01 * wanted.norm()
    with torch.autocast("cpu", torch.float16):  # float16 has too little range for 65,536 weights
        assert torch.equal(info_nce(query, key, queue, 0.2).loss, exact.loss)


@pytest.mark.parametrize("cosine", [0.0, 0.5, 1.0])
def test_the_start_value(cosine: float) -> None:
    """A random queue of 65,536 x 128: ln 65,536 + 1 / (2 * 128 * T^2) = 11.19, less cosine / T."""
    query, queue = unit(32, 128), unit(65536, 128, seed=2)
    away = unit(32, 128, seed=1)
    away = F.normalize(away - (away * query).sum(1, keepdim=True) * query, dim=1)
    key = cosine * query + math.sqrt(1 - cosine**2) * away
    said = info_nce(query.float(), key.float(), queue.float(), 0.2)
    assert said.loss.item() == pytest.approx(11.188 - cosine / 0.2, abs=0.02)
    assert said.negative.abs() < 1e-3 and said.positive.item() == pytest.approx(cosine, abs=1e-6)


def test_key_and_queue_get_no_gradient() -> None:
    query, key, queue = (unit(R, D, seed=seed).requires_grad_() for seed in range(3))
    info_nce(query, key, queue, 0.2).loss.backward()
    assert query.grad is not None and key.grad is None and queue.grad is None


def test_equal_candidates_give_the_logarithm_of_their_number() -> None:
    same = torch.ones(4, 1)
    said = info_nce(same, same, torch.ones(9, 1), 0.2)
    assert said.loss.item() == pytest.approx(math.log(10)) and said.first == 1


def test_lightly_agrees() -> None:
    """NTXentLoss with a memory bank: queries against keys and the bank, which it starts with random unit vectors."""
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    theirs = loss.NTXentLoss(temperature=0.2, memory_bank_size=(Q, D))
    query, key = unit(R, D).float(), unit(R, D, seed=1).float()
    theirs(query, key)  # makes the bank
    bank = F.normalize(unit(Q, D, seed=2).float(), dim=1)
    theirs.memory_bank.bank.copy_(bank if theirs.memory_bank.bank.shape == bank.shape else bank.T)
    expected = theirs(query, key)
    torch.testing.assert_close(info_nce(query, key, bank, 0.2).loss, expected, rtol=1e-5, atol=1e-6)
