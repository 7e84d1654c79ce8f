"""DINO: its views, who sees what, the center and the temperatures, against the equations (Caron et al. 2021)."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from tiny import BACKBONES, changed, everything, job, step, views
from torch import Tensor

from nolabel.config.load import load_recipe
from nolabel.losses import distillation
from nolabel.losses.distillation import Outputs
from nolabel.methods.dino import DINO, DINOConfig, outputs
from nolabel.networks.arguments import parse_args
from nolabel.networks.backbones import backbone
from nolabel.networks.network import Network
from nolabel.optim.schedules import Clock
from nolabel.training.job import Job
from nolabel.views import View

CONFIG = DINOConfig(32, 16, 2, num_prototypes=64, hidden_dim=32, bottleneck_dim=16, drop_path=0.0, freeze_last_layer=0)
OK = torch.ones(())


def dino(backbone: str = "vit", **values: Any) -> Job:
    return job(dataclasses.replace(CONFIG, **values), backbone)


def test_the_views_are_the_table_of_the_recipe() -> None:
    """Caron et al. 2021; the order of the operations is that of `View`."""
    shared: dict[str, Any] = {
        "ratio": (3 / 4, 4 / 3),
        "interpolation": "bicubic",
        "flip": 0.5,
        "jitter": (0.4, 0.4, 0.2, 0.1),
        "jitter_p": 0.8,
        "grayscale": 0.2,
        "blur_sigma": (0.1, 2.0),
    }
    first = View(size=224, scale=(0.4, 1.0), blur=1.0, solarize=0.0, **shared)
    second = View(size=224, scale=(0.4, 1.0), blur=0.1, solarize=0.2, **shared)
    local = View(size=96, scale=(0.05, 0.4), blur=0.5, solarize=0.0, **shared)
    job_of = dino()
    job_of.method.config = DINOConfig()  # type: ignore[assignment]
    assert job_of.method.views() == (first, second, *[local] * 8)
    job_of.method.config = DINOConfig(num_local=0, global_scale=(0.14, 1.0))  # type: ignore[assignment]
    assert [v.scale for v in job_of.method.views()] == [(0.14, 1.0)] * 2


def test_sizes_scales_and_counts_are_settings() -> None:
    found = dino(num_local=3, local_scale=(0.1, 0.2), global_scale=(0.2, 0.9)).method.views()
    assert [v.size for v in found] == [32, 32, 16, 16, 16]
    assert [v.scale for v in found] == [(0.2, 0.9)] * 2 + [(0.1, 0.2)] * 3


def logits_of(network: Network[Any], batch: list[Tensor]) -> Tensor:
    """(V, B, K), whole."""
    said = outputs(network, batch, 1.0)
    return said.z @ said.prototypes.T


def slow_loss(j: Job, batch: list[Tensor], center: Tensor, temp: float) -> float:
    """Every pair of a teacher view and another student view, image by image, each network on one view at a time."""
    m = j.method
    teacher = [m.teacher.head(m.teacher.backbone(v).pooled) for v in batch[:2]]  # type: ignore[index,operator]
    student = [m.student.head(m.student.backbone(v).pooled) for v in batch]  # type: ignore[index,operator]
    terms = [
        -((((teacher[q][i] - center[0]) / temp).softmax(-1)) * (student[v][i] / 0.1).log_softmax(-1)).sum().item()
        for q in range(2)
        for v in range(len(batch))
        for i in range(len(batch[0]))
        if v != q
    ]
    assert len(terms) == (2 * len(batch) - 2) * len(batch[0])
    return sum(terms) / len(terms)


def test_the_loss_is_the_slow_loop_over_pairs() -> None:
    """After some steps, so that teacher, student and center are three different things."""
    j = dino(teacher_temp=0.07, momentum=0.5)
    for number in range(3):
        step(j, number)
    batch, m = views(j, 9), j.method
    assert m.center.any()
    said = m(batch, j.clock(3))
    assert said["loss"].item() == pytest.approx(slow_loss(j, batch, m.center, 0.07), rel=1e-5)
    targets = ((logits_of(m.teacher, batch[:2]) - m.center) / 0.07).softmax(-1)
    entropy = -(targets * targets.clamp_min(1e-30).log()).sum(-1).mean()
    assert said["teacher_entropy"].item() == pytest.approx(entropy.item(), rel=1e-4)
    assert said["teacher_student_kl"].item() == pytest.approx((said["loss"] - entropy).item(), abs=1e-5)
    assert said["teacher_student_kl"] >= 0


@pytest.mark.parametrize("sizes", [(32, 32), (32, 32, 16), (32, 32, 16, 16, 16), (32, 32, 32), (32, 16, 32)])
def test_rows_are_crop_by_crop_and_one_pass_a_run_of_equal_sizes(sizes: tuple[int, ...]) -> None:
    j = dino()
    network = j.method.student
    passes: list[int] = []
    network.backbone.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    batch = [torch.randn(3, 3, s, s) for s in sizes]
    together = logits_of(network, batch)
    runs = 1 + sum(a != b for a, b in itertools.pairwise(sizes))
    assert len(passes) == runs and sum(passes) == 3 * len(sizes)
    assert together.shape == (len(sizes), 3, 64)
    for row, view in zip(together, batch, strict=True):
        torch.testing.assert_close(row, logits_of(network, [view])[0], rtol=1e-4, atol=1e-5)


def test_the_teacher_sees_the_global_crops_alone() -> None:
    j = dino(num_local=2)
    batch, seen = views(j), []
    j.method.teacher.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    j.method(batch, j.clock(0))
    assert [tuple(s) for s in seen] == [(2 * 8, 3, 32, 32)]


def test_drop_path_is_the_students_alone() -> None:
    j = dino(drop_path=0.5)
    batch = views(j)[:2]
    for network, random in ((j.method.student, True), (j.method.teacher, False)):
        found = []
        for seed in range(2):
            torch.manual_seed(seed)
            found.append(logits_of(network, batch))
        assert torch.equal(*found) is not random


def constant_step(j: Job, z: Tensor) -> Tensor:
    """A step in which the teacher says `z` for every row; gives the logits of that."""
    logits = j.method.teacher.head.last_layer(z).clone()  # type: ignore[index,operator,union-attr]
    j.method._collect(z.expand(2, 5, -1))
    j.method.after_step(j.clock(0), OK)
    return logits


def test_the_center_after_one_and_many_constant_steps() -> None:
    """0.1 mu after one step from zeros, (1 - 0.9^n) mu after n (closed form)."""
    j, z = dino(momentum=1.0), torch.randn(16)
    assert not j.method.center.any()
    mean = constant_step(j, z)
    torch.testing.assert_close(j.method.center, 0.1 * mean[None])
    for _ in range(9):
        constant_step(j, z)
    torch.testing.assert_close(j.method.center, (1 - 0.9**10) * mean[None])


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_the_center_follows_the_mean_of_the_teachers_logits(momentum: float) -> None:
    j = dino(center_momentum=momentum)
    expected = torch.zeros(1, 64)
    for number in range(3):
        logits = logits_of(j.method.teacher, views(j, number)[:2])
        step(j, number)
        expected = momentum * expected + (1 - momentum) * logits.flatten(0, 1).mean(0, keepdim=True)
        torch.testing.assert_close(j.method.center, expected)


def test_adding_a_constant_to_the_teachers_logits_changes_nothing() -> None:
    j = dino()
    batch = views(j)
    before = j.method(batch, j.clock(0))["loss"]
    j.method.center += 3.0  # the same as a constant on all logits
    torch.testing.assert_close(j.method(batch, j.clock(0))["loss"], before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("center", [0.0, -7.0])
def test_uniform_logits_cost_ln_k(center: float) -> None:
    j = dino(num_prototypes=64)
    with torch.no_grad():
        for network in (j.method.student, j.method.teacher):
            network.head.last_layer.weight_v.copy_(torch.ones(64, 16))
    j.method.center += center
    said = j.method(views(j), j.clock(0))
    assert said["loss"].item() == pytest.approx(math.log(64), rel=1e-5)
    assert said["teacher_entropy"].item() == pytest.approx(math.log(64), rel=1e-5)
    assert said["teacher_student_kl"].item() == pytest.approx(0, abs=1e-5)


def test_the_temperature_and_momentum_of_each_step() -> None:
    j = dino(warmup_teacher_temp=0.04, teacher_temp=0.07, warmup_teacher_temp_epochs=4, momentum=0.996)
    assert j.method.settings(Clock(0, 40, 4)) == pytest.approx({"teacher_temp": 0.04, "momentum": 0.996})
    assert j.method.settings(Clock(4, 40, 4))["teacher_temp"] == pytest.approx(0.05)
    assert j.method.settings(Clock(20, 40, 4)) == pytest.approx({"teacher_temp": 0.07, "momentum": 0.998})
    batch = views(j)
    warm, cold = (j.method(batch, j.clock(n))["teacher_entropy"] for n in (39, 0))
    assert warm > cold


def test_the_teacher_moves_with_the_momentum_of_the_step_after_the_optimizer() -> None:
    j = dino(momentum=0.9)
    for number in range(3):
        before = [p.clone() for p in j.method.teacher.parameters()]
        step(j, number)
        momentum = j.method.momentum(j.clock(number))
        for old, new, student in zip(before, j.method.teacher.parameters(), j.method.student.parameters(), strict=True):
            torch.testing.assert_close(new, momentum * old + (1 - momentum) * student)


def test_batchnorm_statistics_are_each_networks_own() -> None:
    """The student has seen local crops too; the average covers parameters alone (Caron et al. 2021)."""
    j = dino("resnet")
    step(j, 0)
    student, teacher = (dict(n.named_buffers()) for n in (j.method.student, j.method.teacher))
    means = [n for n in student if n.endswith("running_mean")]
    assert means and all(teacher[n].any() for n in means)
    assert any(not torch.allclose(student[n], teacher[n]) for n in means)
    # One pass of the teacher's backbone and one per size of the student's.
    assert {int(teacher[n]) for n in teacher if n.endswith("tracked")} == {1}
    assert {int(student[n]) for n in student if n.endswith("tracked")} == {2}


def test_the_learned_magnitude_learns() -> None:
    j = dino(learn_magnitude=True)
    step(j, 0)
    g = j.method.student.head.last_layer.weight_g
    assert not torch.equal(g, torch.ones_like(g))
    fixed = dino().method.student.head.last_layer.weight_g
    assert not fixed.requires_grad


def test_the_head_can_have_batchnorm() -> None:
    j = dino(head_batchnorm=True)
    assert [m for m in j.method.student.head.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert step(j, 0)["loss"] > 0


def test_what_ships_is_the_teacher() -> None:
    j = dino()
    assert j.method.backbone is j.method.teacher.backbone
    assert isinstance(j.method, DINO) and "drop_path_rate" not in j.method.backbone.args


def test_bf16_is_near_float32() -> None:
    exact, half = dino(), job(CONFIG, precision="bf16")
    assert step(half, 0)["loss"] == pytest.approx(step(exact, 0)["loss"], rel=0.02)
    assert {p.dtype for p in half.method.parameters()} == {torch.float32}
    assert half.method.center.dtype == torch.float32


def test_the_loss_is_the_one_of_the_losses_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """DINO uses the loss that tests/losses/test_losses.py proves."""
    called = []
    real = distillation.dino_loss

    def watched(*arguments: Any) -> Tensor:
        called.append(arguments)
        return real(*arguments)

    monkeypatch.setattr("nolabel.methods.dino.dino_loss", watched)
    j = dino()
    j.method(views(j), j.clock(0))
    ((student, teacher, center),) = called
    assert isinstance(student, Outputs) and student.z.shape == (4, 8, 16) and teacher.z.shape == (2, 8, 16)
    assert student.prototypes.shape == teacher.prototypes.shape == (64, 16) and center is j.method.center
    assert student.temperature == 0.1 and student.z.requires_grad and student.prototypes.requires_grad
    assert not teacher.z.requires_grad and not teacher.prototypes.requires_grad


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own looking around
def test_compiling_blocks_changes_nothing_and_none_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """More blocks than dynamo's default limit of 8, each with its own drop path, two sizes, with and without gradient.

    The backend is dynamo's own, which compiles no code: what is tested is that every block is captured.
    """
    from torch._dynamo import config

    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: real(module, backend="eager"))
    limits = {"recompile_limit": 8, "accumulated_recompile_limit": 256, "fail_on_recompile_limit_hit": True}
    with config.patch(limits):
        found = []
        for compiled in (True, False):
            method = dataclasses.replace(CONFIG, drop_path=0.2)
            args = (*BACKBONES["vit"][1], "depth=9")
            j = job(method, compile=compiled, backbone_args=args)
            assert step(j, 0)["loss"] > 0
            found.append(everything(j))
    assert not changed(*found)


@pytest.mark.parametrize(("recipe", "last"), [("dino-resnet50", 1.0), ("dino-small", 0.0)])
def test_the_last_gain_of_each_block_starts_as_in_the_authors_resnet(recipe: str, last: float) -> None:
    """At 1 as in torchvision; timm's own start, which dino-small keeps, is 0."""
    config = load_recipe(recipe)
    with torch.device("meta"):
        names = [n for n, _ in backbone(config.backbone, parse_args(config.backbone_args)).model.named_parameters()]
    net = backbone("resnet50", parse_args(config.backbone_args) | {"layers": (1, 1, 1, 1)})
    gains = {f"{n}.weight": m.weight for n, m in net.model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    ends = [gain for name, gain in gains.items() if name.endswith("bn3.weight")]
    assert len(ends) == 4 and all(torch.equal(gain, torch.full_like(gain, last)) for gain in ends)
    assert all(torch.equal(g, torch.ones_like(g)) for n, g in gains.items() if not n.endswith("bn3.weight"))
    assert "fc.weight" not in names
