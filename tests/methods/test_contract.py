"""Promises of every method. test_planted_bugs.py shows that breaking a promise is noticed."""

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sizes import PAIRS, SMALL
from tiny import BACKBONES, changed, everything, job, small, step, views
from torch import Tensor, nn

from nolabel.methods import METHODS
from nolabel.networks.backbones import Features
from nolabel.optim.state import optimizer_tensors, restore_optimizer
from nolabel.runs.checkpoint import Checkpoint, load_newest, save
from nolabel.training.job import Job

OK, BAD = torch.ones(()), torch.zeros(())
Make = Callable[..., Job]


def loss_of(j: Job, seed: int = 0, number: int = 0) -> Tensor:
    return j.method(views(j, seed), j.clock(number))["loss"]  # type: ignore[no-any-return]


@torch.no_grad()
def shake(module: nn.Module, scale: float = 0.05) -> None:
    """Away from special starting points, such as the zero gains at the end of ResNet's blocks."""
    generator = torch.Generator().manual_seed(1)
    for p in module.parameters():
        p.add_(torch.randn(p.shape, generator=generator), alpha=scale)


def is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def remembers(j: Job) -> dict[str, Tensor]:
    """State that may move in `after_step` alone: all that no gradient moves, but for BatchNorm's statistics."""
    trained = {n for n, p in j.method.named_parameters() if p.requires_grad}
    return {n: v.clone() for n, v in j.method.state_dict().items() if n not in trained and not is_statistic(n)}


def teacher(j: Job) -> nn.Module | None:
    return next((getattr(j.method, name) for name in PAIRS if hasattr(j.method, name)), None)


def student(j: Job) -> nn.Module:
    found: nn.Module = next(getattr(j.method, name) for name in PAIRS.values() if hasattr(j.method, name))
    return found


def student_name(name: str) -> str:
    """The name of the parameter that the momentum network's parameter `name` follows."""
    first, _, rest = name.partition(".")
    return f"{PAIRS.get(first, first)}.{rest}"


# The contract.


def gives_a_finite_loss_and_a_gradient_to_every_parameter(make: Make) -> None:
    j = make()
    trainable = {n: p for n, p in j.method.named_parameters() if p.requires_grad}
    for p in trainable.values():
        assert p.grad is None
    shake(j.method)
    said = j.method(views(j), j.clock(0))
    assert all(value.ndim == 0 and value.isfinite() for value in said.values()), "a metric is no finite 0-d tensor"
    assert not any(value.requires_grad for name, value in said.items() if name != "loss"), "a metric keeps the graph"
    said["loss"].backward()
    without = [n for n, p in trainable.items() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert not without, f"no gradient for {without}"
    assert all(isinstance(value, float) for value in j.method.settings(j.clock(0)).values())


def starts_with_a_teacher_that_copies_the_student(make: Make) -> None:
    j = make()
    if teacher(j) is None:
        return
    ours, theirs = teacher(j).state_dict(keep_vars=True), student(j).state_dict(keep_vars=True)  # type: ignore
    assert ours.keys() == theirs.keys()
    wrong = [n for n in ours if not torch.equal(ours[n], theirs[n])]
    assert not wrong, f"not copied: {wrong}"
    assert not [n for n in ours if ours[n].data_ptr() == theirs[n].data_ptr()], "shared, not copied"
    assert not [n for n, p in ours.items() if p.requires_grad], "the teacher takes gradients"


def reads_every_part_of_the_teacher(make: Make) -> None:
    j = make()
    for name, part in teacher(j).named_children() if teacher(j) is not None else ():  # type: ignore[union-attr]
        before = loss_of(j)
        assert torch.equal(before, loss_of(j)), "the same input gives another loss"
        shake(part)
        assert abs(loss_of(j) - before) > 1e-4, f"the {name} of the teacher is never read"


def moves_what_it_remembers_in_after_step_alone(make: Make) -> None:
    j = make()
    step(j, 0)
    before, clock = remembers(j), j.clock(1)
    j.optimizer.zero_grad()
    loss_of(j, 1, 1).backward()
    j.method.before_step(clock)
    j.optimizer.step()
    assert not changed(before, remembers(j)), f"moved before after_step: {changed(before, remembers(j))}"
    j.method.after_step(clock, OK)
    state, buffers = j.method.state_dict(), {n for n, _ in j.method.named_buffers()}
    pairs = {n: student_name(n) for n in before if student_name(n) != n and student_name(n) in state}
    should = {n for n, s in pairs.items() if not torch.allclose(before[n], state[s])} | (buffers & before.keys())
    assert should or teacher(j) is None
    assert should <= set(changed(before, remembers(j))), f"never moved: {should - set(changed(before, remembers(j)))}"


def moves_nothing_when_the_step_is_bad(make: Make) -> None:
    j = make()
    step(j, 0)
    loss_of(j, 1, 1).backward()
    before = everything(j)
    j.method.after_step(j.clock(1), BAD)
    assert not changed(before, everything(j)), f"moved in a bad step: {changed(before, everything(j))}"


def evaluates_a_backbone_without_randomness(make: Make) -> None:
    """Also in training mode: what a teacher says of an image must not depend on luck."""
    j = make(drop_path=0.5)
    net, x = j.method.backbone, views(j)[0]
    assert any(net is m for m in j.method.modules())
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        features = net(x)
        assert isinstance(features, Features)
        assert features.pooled.shape == (8, net.num_features)
        assert features.patches.shape == (8, features.grid[0] * features.grid[1], net.num_features)
        found.append(features)
    assert torch.equal(found[0].pooled, found[1].pooled), "the same image has two features"
    assert torch.equal(found[0].patches, found[1].patches)


def keeps_its_state_in_the_checkpoint(make: Make, folder: Path) -> None:
    """Saved after two steps and loaded into a job with other weights, the third step is the same in every bit."""
    a, b = make(), make(seed=1)
    for number in range(2):
        step(a, number)
    step(b, 0, seed=7)
    save(folder, 2, Checkpoint(a.method.state_dict(), optimizer_tensors(a.optimizer, a.method), {}), keep=1)
    found, _ = load_newest(folder)
    assert found is not None
    b.method.load_state_dict(found.model)
    restore_optimizer(b.optimizer, b.method, found.optim)
    b = replace(b, config=a.config)  # the seed decides drop path
    assert not changed(everything(a), everything(b)), "the state does not come back"
    said = step(a, 2), step(b, 2)
    assert said[0] == said[1] and not changed(everything(a), everything(b)), "the next step is another one"


def learns_one_batch(make: Make) -> None:
    """With running statistics frozen and teacher and center standing still, the loss must fall."""
    j = make()
    for module in j.method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    optimizer = torch.optim.Adam([p for p in j.method.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(loss_of(j, number=8))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.05, f"from {losses[0]:.4f} to {losses[-1]:.4f}"


def sums_micro_batches_to_the_whole_batch(make: Make) -> None:
    """For losses that look at one image at a time; the others must say so in `couples_batch`."""
    whole, split = make(), make(micro_batch=2)
    said = [[step(j, number) for number in range(2)] for j in (whole, split)]
    difference = max(abs(a["loss"] - b["loss"]) for a, b in zip(*said, strict=True))
    if whole.method.couples_batch:
        assert difference > 1e-3, "couples_batch is set, and splitting changes nothing"
        return
    assert difference < 1e-5, f"the loss differs by {difference}"
    a, b = everything(whole), everything(split)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6, msg=f"{name} differs")


def freezes_the_last_layer_in_the_first_epoch(make: Make) -> None:
    """Methods with that setting: no step, no decay, no moments; from the second epoch on it moves."""
    j = make(freeze_last_layer=1)
    if not hasattr(j.config.method, "freeze_last_layer"):
        return
    before = everything(j)
    for number in range(j.steps_per_epoch):
        step(j, number)
    frozen = {k: v for k, v in everything(j).items() if "student" in k and "last_layer" in k}
    assert frozen, "there is no last layer"
    moved = [k for k, v in frozen.items() if k in changed(before, frozen) and v.any()]
    assert not moved, f"moved while it was frozen: {moved}"
    step(j, j.steps_per_epoch)
    after = everything(j)
    assert [k for k in frozen if k.startswith("student") and k in changed(frozen, after)], "the last layer never moves"


CONTRACT = (
    gives_a_finite_loss_and_a_gradient_to_every_parameter,
    starts_with_a_teacher_that_copies_the_student,
    reads_every_part_of_the_teacher,
    moves_what_it_remembers_in_after_step_alone,
    moves_nothing_when_the_step_is_bad,
    evaluates_a_backbone_without_randomness,
    learns_one_batch,
    freezes_the_last_layer_in_the_first_epoch,
)


def maker(method: str, backbone: str = "vit") -> Make:
    """Makes jobs of the method; settings go to the method if it has them, else to the run."""

    def make(**values: Any) -> Job:
        config = small(SMALL[method], **values)
        in_method = {f.name for f in dataclasses.fields(config)} | {"drop_path", "freeze_last_layer"}
        return job(config, backbone, **{k: v for k, v in values.items() if k not in in_method})

    return make


def test_every_method_has_small_sizes() -> None:
    assert SMALL.keys() == METHODS.keys()
    assert all(type(SMALL[name]) is method.Config for name, method in METHODS.items())


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda f: f.__name__)
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", METHODS)
def test_the_method(method: str, backbone: str, promise: Callable[[Make], None]) -> None:
    promise(maker(method, backbone))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", METHODS)
def test_the_method_keeps_its_state_in_the_checkpoint(method: str, backbone: str, tmp_path: Path) -> None:
    keeps_its_state_in_the_checkpoint(maker(method, backbone), tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_the_method_sums_micro_batches(method: str) -> None:
    sums_micro_batches_to_the_whole_batch(maker(method))  # a ViT: BatchNorm couples the batch by itself
