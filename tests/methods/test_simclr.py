"""SimCLR: its views and its loss, against the slow loop through the network (Chen et al. 2020)."""

import math
from typing import Any

import pytest
import torch
from tiny import job, step, views

from nolabel.methods.simclr import SimCLRConfig
from nolabel.training.job import Job
from nolabel.views import View


def simclr(backbone: str = "resnet", **values: Any) -> Job:
    return job(SimCLRConfig(size=32, projection_dim=16, **values), backbone)


def test_the_views_are_the_papers() -> None:
    j = simclr()
    j.method.config = SimCLRConfig()  # type: ignore[assignment]
    view = View(224, (0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, grayscale=0.2, blur=0.5, solarize=0.0)
    assert j.method.views() == (view, view)
    assert (view.ratio, view.flip, view.blur_sigma, view.interpolation) == ((3 / 4, 4 / 3), 0.5, (0.1, 2.0), "bicubic")
    j.method.config = SimCLRConfig(size=32, jitter=(0.4, 0.4, 0.4, 0.1), blur=0.0, scale=(0.2, 1.0))  # type: ignore[assignment]
    assert j.method.views()[1] == View(32, (0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), blur=0.0)


@pytest.mark.parametrize("layers", [2, 3])
def test_the_loss_is_the_slow_loop_over_the_views_of_the_batch(layers: int) -> None:
    j = simclr(temperature=0.2, projector_layers=layers)
    batch = views(j)
    said = j.method(batch, j.clock(0))
    z = j.method.projector(j.method.student(torch.cat(batch)).pooled)
    z = z / z.norm(dim=1, keepdim=True)
    n, total, first = 8, 0.0, 0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        scores = {k: math.exp((z[i] @ z[k]).item() / 0.2) for k in range(2 * n) if k != i}
        total -= math.log(scores[partner] / sum(scores.values()))
        first += max(scores, key=scores.__getitem__) == partner
    assert said["loss"].item() == pytest.approx(total / n, rel=1e-4)
    assert said["positive_first"].item() == pytest.approx(first / (2 * n))


def test_one_pass_over_both_views_shares_the_batch_statistics() -> None:
    j = simclr()
    passes: list[int] = []
    j.method.student.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    j.method(views(j), j.clock(0))
    assert passes == [16]


def test_everything_is_trained_and_the_student_ships() -> None:
    j = simclr()
    assert all(p.requires_grad for p in j.method.parameters())
    assert j.method.backbone is j.method.student
    assert type(j.method).couples_batch


def test_it_learns_to_find_the_partner() -> None:
    """The views of an image share a colour; a few steps on fresh batches are enough to see it."""
    j = simclr(temperature=0.2)
    said = [step(j, number) for number in range(25)]
    assert sum(s["loss"] for s in said[-5:]) < sum(s["loss"] for s in said[:5]) - 1


def test_bf16_is_near_float32() -> None:
    exact, half = simclr(), job(SimCLRConfig(size=32, projection_dim=16), "resnet", precision="bf16")
    assert step(half, 0)["loss"] == pytest.approx(step(exact, 0)["loss"], rel=0.05)
