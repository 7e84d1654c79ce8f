"""The losses against slow loops written from the equations, and their closed-form values."""

import math

import pytest
import torch
from torch import Tensor

from nolabel.losses.contrastive import nt_xent
from nolabel.losses.distillation import Outputs, dino_loss, entropy

B, K, D = 3, 7, 5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


def said_of(student: Tensor, teacher: Tensor, temp: float) -> Tensor:
    """The loss of logits (V, B, K) against probabilities (2, B, K): each prototype is an axis."""
    axes = torch.eye(student.shape[-1])
    return dino_loss(
        Outputs(student, axes, temp), Outputs(teacher.log().clamp_min(-100), axes, 1.0), torch.zeros(1)
    ).loss


def slow_dino(student: Tensor, teacher: Tensor, temp: float) -> tuple[float, int]:
    """Mean over pairs of teacher view q and student view v != q of -sum P_q log S_v, a mean over images; the number."""
    terms = []
    for q in range(2):
        for v in range(len(student)):
            if v == q:
                continue
            per_image = []
            for i in range(student.shape[1]):
                exps = [math.exp(x / temp) for x in student[v, i].tolist()]
                log_s = [math.log(e / sum(exps)) for e in exps]
                per_image.append(-sum(p * s for p, s in zip(teacher[q, i].tolist(), log_s, strict=True)))
            terms.append(sum(per_image) / len(per_image))
    return sum(terms) / len(terms), len(terms)


@pytest.mark.parametrize(("num_local", "pairs"), [(0, 2), (1, 4), (6, 14), (8, 18), (10, 22)])
def test_dino_loss_is_the_mean_over_all_pairs_of_different_views(num_local: int, pairs: int) -> None:
    student = random(2 + num_local, B, K)
    teacher = (random(2, B, K, seed=1) / 0.3).softmax(-1)
    expected, count = slow_dino(student, teacher, 0.1)
    assert count == pairs == 2 * (2 + num_local) - 2
    assert said_of(student, teacher, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_dino_loss_never_pairs_a_view_with_itself() -> None:
    """Two global crops: only (q 0, v 1) and (q 1, v 0) count, so an infinitely bad match with itself costs nothing."""
    right, wrong = torch.tensor([50.0, 0.0]), torch.tensor([0.0, 50.0])
    student = torch.stack([right, wrong])[:, None]  # (2 views, 1 image, K 2)
    teacher = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])  # each equals the student's other view
    assert said_of(student, teacher, 0.1).item() == pytest.approx(0, abs=1e-6)
    assert said_of(student, teacher.flip(0), 0.1).item() == pytest.approx(500)


@pytest.mark.parametrize("num_prototypes", [2, 4096, 65536])
def test_uniform_logits_give_ln_k_for_any_target(num_prototypes: int) -> None:
    student = Outputs(torch.ones(4, 2, 1), torch.full((num_prototypes, 1), 0.7), 0.1)
    teacher = Outputs(random(2, 2, 3), random(num_prototypes, 3, seed=1), 1.0)
    said = dino_loss(student, teacher, torch.zeros(1))
    assert said.loss.item() == pytest.approx(math.log(num_prototypes), rel=1e-5)


def test_duplicating_local_crops_does_not_change_the_mean_over_them() -> None:
    """With local crops that all look alike the loss is (2 global pairs + 2L local ones) / (2 + 2L), term by term."""
    views, teacher = random(3, B, K), random(2, B, K, seed=1).softmax(-1)
    two = said_of(views[:2], teacher, 0.1)
    one_local = said_of(views, teacher, 0.1)
    local_term = (4 * one_local - 2 * two) / 2
    many = torch.cat([views, views[2:], views[2:]])
    assert said_of(many, teacher, 0.1).item() == pytest.approx(((2 * two + 6 * local_term) / 8).item(), rel=1e-5)


def test_the_gradient_of_dino_loss_is_student_minus_target() -> None:
    """d loss / d logits = (weight of the crop) * (softmax - mean target) / temperature / batch."""
    student, teacher = random(3, B, K).requires_grad_(), random(2, B, K, seed=1).softmax(-1)
    said_of(student, teacher, 0.5).backward()
    s = (student.detach() / 0.5).softmax(-1)
    by_hand = torch.stack([s[0] - teacher[1], s[1] - teacher[0], 2 * s[2] - teacher.sum(0)]) / 0.5 / B / 4
    torch.testing.assert_close(student.grad, by_hand)


def test_entropy_of_known_distributions() -> None:
    assert entropy(torch.full((2, 8), 1 / 8)).item() == pytest.approx(math.log(8))
    assert entropy(torch.eye(4)).item() == 0
    assert entropy(torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])).item() == pytest.approx(math.log(2) / 2)


def slow_nt_xent(a: Tensor, b: Tensor, temperature: float) -> tuple[float, float]:
    """SimCLR: every view must name its partner among the 2N - 1 other views; sum of the means over both sides."""
    views = [v / v.norm() for v in (*a.double(), *b.double())]
    n = len(a)
    losses, correct = [], 0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        scores = {j: (views[i] @ views[j]).item() / temperature for j in range(2 * n) if j != i}
        losses.append(math.log(sum(math.exp(s) for s in scores.values())) - scores[partner])
        correct += max(scores, key=scores.__getitem__) == partner
    return sum(losses[:n]) / n + sum(losses[n:]) / n, correct / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_the_slow_loop(temperature: float) -> None:
    a, b = random(6, D), random(6, D, seed=1)
    loss, first = nt_xent(a, b, temperature)
    slow, share = slow_nt_xent(a, b, temperature)
    assert loss.item() == pytest.approx(slow, rel=1e-5)
    assert first.item() == pytest.approx(share) and 0 < share < 1


def test_nt_xent_ignores_lengths_and_the_order_of_the_views() -> None:
    a, b = random(4, D), random(4, D, seed=1)
    torch.testing.assert_close(nt_xent(a, b, 0.2), nt_xent(3 * b, 0.5 * a, 0.2))


def test_nt_xent_of_equal_vectors_is_the_logarithm_of_the_number_of_candidates() -> None:
    same = torch.ones(5, D)
    assert nt_xent(same, same, 0.1)[0].item() == pytest.approx(2 * math.log(2 * 5 - 1), rel=1e-6)


def test_nt_xent_of_perfect_pairs_goes_to_zero() -> None:
    loss, first = nt_xent(torch.eye(4), torch.eye(4), 0.01)
    assert loss.item() == pytest.approx(0, abs=1e-6) and first.item() == 1


def test_nt_xent_is_the_same_under_autocast() -> None:
    a, b = random(6, D).requires_grad_(), random(6, D, seed=1)
    full = nt_xent(a, b, 0.1)[0]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = nt_xent(a, b, 0.1)[0]
    assert mixed.dtype == torch.float32 and torch.equal(mixed, full)
    mixed.backward()
    assert a.grad is not None and a.grad.isfinite().all() and a.grad.any()
