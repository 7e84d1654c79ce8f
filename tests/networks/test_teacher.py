"""The teacher's move: an exponential average of parameters, gated by `ok`, buffers left alone."""

import pytest
import torch
from torch import Tensor, nn

from nolabel.networks.teacher import move_teacher

ONE, ZERO = torch.ones(()), torch.zeros(())


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def test_steps_follow_the_recursion() -> None:
    teacher, momentum = net(0), 0.9
    expected = [p.detach().double() for p in teacher.parameters()]
    for seed in range(1, 6):
        student = net(seed)
        move_teacher(teacher.parameters(), student.parameters(), momentum, ONE)
        expected = [
            momentum * t + (1 - momentum) * s.detach().double()
            for t, s in zip(expected, student.parameters(), strict=True)
        ]
    for t, e in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(t.detach().double(), e, rtol=1e-5, atol=1e-6)


def test_momentum_one_keeps_and_momentum_zero_copies() -> None:
    teacher, student = net(0), net(1)
    before = state(teacher)
    move_teacher(teacher.parameters(), student.parameters(), 1.0, ONE)
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    move_teacher(teacher.parameters(), student.parameters(), 0.0, ONE)
    assert all(torch.equal(t, s) for t, s in zip(teacher.parameters(), student.parameters(), strict=True))


def test_batchnorm_statistics_stay_the_teachers_own() -> None:
    teacher, student = net(0), net(1)
    student(torch.randn(8, 5))  # moves the student's statistics
    move_teacher(teacher.parameters(), student.parameters(), 0.5, ONE)
    assert torch.equal(teacher[1].running_mean, torch.zeros(4))
    assert teacher[1].num_batches_tracked == 0


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.996])
def test_a_bad_step_moves_no_bit(momentum: float) -> None:
    teacher, student = net(0), net(1)
    before = state(teacher)
    move_teacher(teacher.parameters(), student.parameters(), momentum, ZERO)
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
