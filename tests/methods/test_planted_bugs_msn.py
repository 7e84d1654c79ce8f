"""Planted bugs of MSN, some of them found in the wild: for each one a test of the contract or of MSN fails.

A gradient of me-max that is cut between processes is planted in test_two_processes.py.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import test_msn
import test_msn_loss
import torch
from test_contract import (
    OK,
    Make,
    gives_a_finite_loss_and_a_gradient_to_every_parameter,
    maker,
    moves_nothing_when_the_step_is_bad,
    moves_what_it_remembers_in_after_step_alone,
    reads_every_part_of_the_teacher,
    starts_with_a_teacher_that_copies_the_student,
)
from torch import Tensor

from nolabel.losses import assignments, distillation
from nolabel.methods import METHODS
from nolabel.methods import msn as module
from nolabel.methods.base import MakeBackbone
from nolabel.methods.msn import MSN, MSNConfig
from nolabel.networks.network import Network
from nolabel.optim.schedules import Clock


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


class PrototypesDetached(MSN):
    """lightly's examples and others: the prototypes never train."""

    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        real = assignments.log_assignments
        with replaced(module, "log_assignments", lambda z, q, *rest: real(z, q.detach(), *rest)):
            return super().forward(views, clock)


class TargetNeverRead(MSN):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        with replaced(self, "target", self.anchor):
            return super().forward(views, clock)


class TargetHeadIsTheAnchors(MSN):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        both = Network(self.target.backbone, self.anchor.head)
        with replaced(self, "target", both):
            return super().forward(views, clock)


class TargetTakesGradients(MSN):
    def __init__(self, config: MSNConfig, make_backbone: MakeBackbone) -> None:
        super().__init__(config, make_backbone)
        self.target.requires_grad_(True)


class NewTarget(MSN):
    def __init__(self, config: MSNConfig, make_backbone: MakeBackbone) -> None:
        super().__init__(config, make_backbone)
        self.target = self._network(make_backbone(0.0)).requires_grad_(False)


class TargetMovesInForward(MSN):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        super().after_step(clock, OK)
        return super().forward(views, clock)


class TargetNeverMoves(MSN):
    def after_step(self, clock: Clock, ok: Tensor) -> None:
        pass


class BadStepMoves(MSN):
    def after_step(self, clock: Clock, ok: Tensor) -> None:
        super().after_step(clock, OK)


class MaskedTarget(MSN):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        net, keep = self.backbone, self._keep(views[0], clock)
        with replaced(net, "forward", lambda x: type(net).forward(net, x, keep)):
            return super().forward(views, clock)


class MaskedFocalViews(MSN):
    def _anchors(self, views: Sequence[Tensor], clock: Clock) -> Tensor:
        net = self.anchor.backbone

        def masked(x: Tensor, keep: Tensor | None = None) -> Any:
            return type(net).forward(net, x, torch.arange(2) if keep is None else keep)

        with replaced(net, "forward", masked):
            return super()._anchors(views, clock)


class NothingMasked(MSN):
    def _keep(self, view: Tensor, clock: Clock) -> Tensor | None:
        return None


class MaskOfTheGlobalGenerator(MSN):
    def _keep(self, view: Tensor, clock: Clock) -> Tensor | None:
        return torch.randperm(16)[:8]


class MinimisedMeanEntropy(MSN):
    """The sign of me-max."""

    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        with replaced(module, "memax_gap", lambda p: -assignments.memax_gap(p)):
            return super().forward(views, clock)


class MeanOfEntropies(MSN):
    """me-max over each image's own probabilities, not over their mean."""

    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        with replaced(module, "memax_gap", lambda p: torch.tensor(16.0).log() - distillation.entropy(p)):
            return super().forward(views, clock)


class TargetsImageByImage(MSN):
    """Targets repeated image by image beside anchors that lie view by view."""

    def _anchors(self, views: Sequence[Tensor], clock: Clock) -> Tensor:
        z = super()._anchors(views, clock)
        return z.view(len(views), -1, z.shape[1]).transpose(0, 1).flatten(0, 1)


class OnePassOfTheHead(MSN):
    """BatchNorm over random and focal anchors together."""

    def __init__(self, config: MSNConfig, make_backbone: MakeBackbone) -> None:
        super().__init__(dataclasses.replace(config, head_per_size=False), make_backbone)


class SinkhornBeforeSharpening(MSN):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        with replaced(module, "sinkhorn", lambda p, rounds: p):
            return super().forward(views, clock)

    @torch.no_grad()
    def _sharpened(self, target: Tensor) -> Tensor:
        p = assignments.log_assignments(target, self.prototypes, self.config.temperature).exp()
        q = assignments.sinkhorn(p, self.config.sinkhorn_rounds) ** (1 / self.config.sharpening)
        return q / q.sum(1, keepdim=True)


class TargetsWithGradient(MSN):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        real = assignments.sinkhorn
        with replaced(module, "sinkhorn", lambda p, rounds: p + (real(p, rounds) - p).detach()):
            return super().forward(views, clock)

    def _sharpened(self, target: Tensor) -> Tensor:
        log_p = assignments.log_assignments(target, self.prototypes, self.config.temperature)
        return (log_p / self.config.sharpening).softmax(-1)


BROKEN_PROMISES: list[tuple[type[MSN], Callable[[Make], None], str]] = [
    (PrototypesDetached, gives_a_finite_loss_and_a_gradient_to_every_parameter, "no gradient for .*prototypes"),
    (TargetNeverRead, reads_every_part_of_the_teacher, "backbone of the teacher is never read"),
    (TargetHeadIsTheAnchors, reads_every_part_of_the_teacher, "head of the teacher is never read"),
    (TargetTakesGradients, starts_with_a_teacher_that_copies_the_student, "takes gradients"),
    (NewTarget, starts_with_a_teacher_that_copies_the_student, "not copied"),
    (TargetMovesInForward, moves_what_it_remembers_in_after_step_alone, "moved before after_step: .*target"),
    (TargetNeverMoves, moves_what_it_remembers_in_after_step_alone, "never moved: .*target"),
    (BadStepMoves, moves_nothing_when_the_step_is_bad, "moved in a bad step: .*target"),
    (MaskOfTheGlobalGenerator, reads_every_part_of_the_teacher, "the same input gives another loss"),
]


@pytest.mark.parametrize(("bug", "promise", "message"), BROKEN_PROMISES, ids=lambda x: getattr(x, "__name__", "-"))
def test_a_bug_against_the_contract_is_caught(
    bug: type[MSN], promise: Callable[[Make], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "msn", bug)
    with pytest.raises(AssertionError, match=message):
        promise(maker("msn"))


def sees(ratio: float = 0.5, kept: int = 8) -> None:
    test_msn.test_random_anchors_alone_are_masked_and_dropped_patches_cost_nothing(ratio, kept)


def loss() -> None:
    test_msn_loss.test_the_loss_is_the_slow_loop({})


def groups() -> None:
    test_msn_loss.test_each_size_of_anchors_has_its_own_statistics_in_the_head({})


BROKEN_TESTS: list[tuple[type[MSN], Callable[[], None]]] = [
    (MaskedTarget, sees),
    (MaskedTarget, test_msn.test_the_loss_reads_only_kept_patches_of_the_anchor_and_all_of_the_target),
    (MaskedFocalViews, sees),
    (NothingMasked, sees),
    (NothingMasked, test_msn.test_memory_falls_with_the_masking_ratio),
    (MaskOfTheGlobalGenerator, test_msn.test_one_mask_a_step_for_all_images),
    (MaskOfTheGlobalGenerator, test_msn.test_the_masks_take_nothing_from_the_global_generator),
    (MinimisedMeanEntropy, loss),
    (MeanOfEntropies, loss),
    (SinkhornBeforeSharpening, loss),
    (OnePassOfTheHead, groups),
    (OnePassOfTheHead, lambda: test_msn.test_the_head_sees_random_and_focal_anchors_apart({}, [8, 16])),
    (TargetsImageByImage, test_msn_loss.test_each_anchor_is_compared_with_the_target_of_its_own_image),
    (PrototypesDetached, test_msn_loss.test_gradients_come_from_the_side_of_the_anchors_alone),
    (TargetsWithGradient, test_msn_loss.test_gradients_come_from_the_side_of_the_anchors_alone),
]


@pytest.mark.parametrize(("bug", "test"), BROKEN_TESTS, ids=lambda x: getattr(x, "__name__", "-"))
def test_a_bug_against_the_paper_is_caught(
    bug: type[MSN], test: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    test()  # passes without the bug
    monkeypatch.setitem(METHODS, "msn", bug)
    with pytest.raises(AssertionError):
        test()
