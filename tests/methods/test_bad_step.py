"""A step whose loss or gradient is not finite says so and leaves no trace in anything that remembers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sizes import SMALL
from tiny import SGD, changed, everything, job, step, views
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nolabel.optim.optimizers import OptimConfig
from nolabel.training.job import Job
from nolabel.training.step import training_step

ADAMW = OptimConfig("adamw", lr=0.03, warmup_epochs=0)
LARS = OptimConfig("lars", lr=3.2, warmup_epochs=0, weight_decay=1e-4, weight_decay_end=1e-4, clip_grad=0)
LARS_INSIDE = dataclasses.replace(LARS, lars_rate="inside")


def nan_pixel(j: Job) -> list[Tensor]:
    batch = views(j, 2)
    batch[1][3, 1, 5, 7] = torch.nan
    return batch


def infinite_gradient(j: Job) -> list[Tensor]:
    """The loss stays finite."""
    p = [p for p in j.method.parameters() if p.requires_grad][-1]

    def spoil(grad: Tensor) -> Tensor:
        handle.remove()
        return grad + torch.inf

    handle = p.register_hook(spoil)
    return views(j, 2)


@pytest.mark.parametrize("spoil", [nan_pixel, infinite_gradient])
@pytest.mark.parametrize(
    ("method", "backbone", "optim"),
    [
        ("dino", "vit", ADAMW),
        ("dino", "vit", SGD),
        ("dino", "resnet", LARS),
        ("simclr", "resnet", ADAMW),
        ("simclr", "resnet", LARS_INSIDE),
        ("msn", "vit", ADAMW),
        ("densecl", "resnet", SGD),
    ],
)
def test_a_bad_step_leaves_no_trace(
    method: str, backbone: str, optim: OptimConfig, spoil: Callable[[Job], list[Tensor]]
) -> None:
    j, undisturbed = (job(SMALL[method], backbone, optim=optim) for _ in range(2))
    for number in range(2):
        step(j, number)
        step(undisturbed, number)
    before = everything(j)
    assert any(name.startswith("optimizer") for name in before)
    assert training_step(j, spoil(j), j.clock(2))["ok"] == 0
    assert not changed(before, everything(j)), f"moved: {changed(before, everything(j))}"
    # And the step goes on as if the bad one had never been.
    assert step(j, 2) == step(undisturbed, 2)
    assert not changed(everything(j), everything(undisturbed))


def test_a_counter_beyond_float32_is_put_back_exactly() -> None:
    j = job(SMALL["simclr"], "resnet", optim=SGD)
    counters = [b for n, b in j.method.named_buffers() if n.endswith("num_batches_tracked")]
    for number, counter in enumerate(counters):
        counter.fill_(2**24 + 1 + 2 * number)
    assert training_step(j, nan_pixel(j), j.clock(0))["ok"] == 0
    assert [int(c) for c in counters] == [2**24 + 1 + 2 * number for number in range(len(counters))]


def test_statistics_are_put_back_all_at_once() -> None:
    """As many selections for a deep network as for a flat one."""

    class Selections(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.number += func is torch.ops.aten.where.self
            return func(*args, **(kwargs or {}))

    found = []
    for layers in ("layers=[1,1,1,1]", "layers=[2,2,1,1]"):
        args = (layers, "channels=[8,16,24,32]", "output_stride=8")
        j = job(SMALL["simclr"], "resnet", optim=SGD, backbone_args=args)
        with Selections() as seen:
            step(j, 0)
        found.append(seen.number)
    assert 0 < found[0] == found[1]


@pytest.mark.parametrize("method", SMALL)
def test_the_very_first_step_may_be_bad(method: str) -> None:
    j = job(SMALL[method], "resnet", optim=SGD)
    before = {k: v.clone() for k, v in j.method.state_dict().items()}
    assert training_step(j, nan_pixel(j), j.clock(0))["ok"] == 0
    assert not changed(before, j.method.state_dict())
    assert not any(v.any() for k, v in everything(j).items() if k.startswith("optimizer"))


def test_one_bad_micro_batch_spoils_the_step() -> None:
    j = job(SMALL["dino"], micro_batch=2)
    step(j, 0)
    before = everything(j)
    assert training_step(j, nan_pixel(j), j.clock(1))["ok"] == 0
    assert not changed(before, everything(j))


def test_fp16_skips_an_overflow_lowers_its_scale_and_goes_on() -> None:
    """The ordinary way in which fp16 finds its scale: no error, nothing moves, the next step is fine."""
    j = job(SMALL["dino"], precision="fp16")
    j.scaler.scale(torch.zeros(()))  # makes the scale tensor
    scale = j.scaler.get_scale()
    before = {k: v.clone() for k, v in j.method.state_dict().items()}
    assert training_step(j, infinite_gradient(j), j.clock(0))["ok"] == 1
    assert not changed(before, j.method.state_dict())
    assert j.scaler.get_scale() == scale / 2
    skipped = 1
    while not changed(before, j.method.state_dict()):
        assert skipped < 20 and j.scaler.get_scale() == scale / 2**skipped
        step(j, skipped)
        skipped += 1
    moved = changed(before, j.method.state_dict())
    assert any("student" in k for k in moved) and "center" in moved
    assert all(v.isfinite().all() for v in everything(j).values())


def test_fp16_still_sees_a_loss_that_is_not_finite() -> None:
    j = job(SMALL["dino"], precision="fp16")
    assert training_step(j, nan_pixel(j), j.clock(0))["ok"] == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("method", "backbone"), [("dino", "vit"), ("msn", "vit"), *((m, "resnet") for m in SMALL)])
def test_a_batch_of_one_image_many_times_gives_finite_numbers(method: str, backbone: str, precision: str) -> None:
    """Duplicates in a folder, or dead data: no distance of zero, no variance of zero may become a NaN."""
    j = job(SMALL[method], backbone, optim=ADAMW, precision=precision)
    for number, fill in enumerate((None, 0.0)):  # one picture; and one of one colour
        batch = [v[:1].expand_as(v).clone() if fill is None else torch.full_like(v, fill) for v in views(j, number)]
        said = training_step(j, batch, j.clock(number))
        assert said["ok"] == 1
        assert all(torch.as_tensor(value).isfinite() for name, value in said.items() if name != "grad_norm"), said
    assert all(v.isfinite().all() for v in everything(j).values())
    if precision != "fp16":  # which finds its scale by gradients that are not
        assert torch.as_tensor(said["grad_norm"]).isfinite()
