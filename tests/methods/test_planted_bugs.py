"""Planted bugs, most of them found in the wild: for each one the contract names what is wrong."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_contract import (
    OK,
    Make,
    evaluates_a_backbone_without_randomness,
    freezes_the_last_layer_in_the_first_epoch,
    gives_a_finite_loss_and_a_gradient_to_every_parameter,
    keeps_its_state_in_the_checkpoint,
    learns_one_batch,
    maker,
    moves_nothing_when_the_step_is_bad,
    moves_what_it_remembers_in_after_step_alone,
    reads_every_part_of_the_teacher,
    starts_with_a_teacher_that_copies_the_student,
    sums_micro_batches_to_the_whole_batch,
)
from torch import Tensor, nn

from nolabel.methods import METHODS
from nolabel.methods.base import MakeBackbone
from nolabel.methods.dino import DINO, DINOConfig
from nolabel.networks.heads import DINOHead
from nolabel.networks.network import Network
from nolabel.networks.teacher import move_teacher
from nolabel.optim.schedules import Clock


class HeadNotCopied(DINO):
    def __init__(self, config: DINOConfig, make_backbone: MakeBackbone) -> None:
        super().__init__(config, make_backbone)
        self.teacher.head = DINOHead(self.backbone.num_features, 64, 32, 16).requires_grad_(False)


class TeacherIsTheStudent(DINO):
    def __init__(self, config: DINOConfig, make_backbone: MakeBackbone) -> None:
        super().__init__(config, make_backbone)
        for ours, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            ours.data = theirs.data


class TeacherTakesGradients(DINO):
    def __init__(self, config: DINOConfig, make_backbone: MakeBackbone) -> None:
        super().__init__(config, make_backbone)
        self.teacher.requires_grad_(True)


class TeacherNeverRead(DINO):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        teacher, self.teacher = self.teacher, self.student
        said = super().forward(views, clock)
        self.teacher = teacher
        return said


class TeacherHeadNeverRead(DINO):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        teacher, self.teacher = (
            self.teacher,
            Network(self.teacher.backbone, self.student.head),
        )
        said = super().forward(views, clock)
        self.teacher = teacher
        return said


class TeacherMovesInForward(DINO):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        move_teacher(self.teacher.parameters(), self.student.parameters(), 0.99, OK)
        return super().forward(views, clock)


class CenterMovesInForward(DINO):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        said = super().forward(views, clock)
        self.center.add_(0.1 * self.teacher.head.last_layer(self._teacher_sum / self._num_summed))  # type: ignore[operator,union-attr]
        return said


class TeacherNeverMoves(DINO):
    def after_step(self, clock: Clock, ok: Tensor) -> None:
        kept = [p.clone() for p in self.teacher.parameters()]
        super().after_step(clock, ok)
        for p, old in zip(self.teacher.parameters(), kept, strict=True):
            p.copy_(old)


class HeadNeverMoves(DINO):
    def after_step(self, clock: Clock, ok: Tensor) -> None:
        kept = [p.clone() for p in self.teacher.head.parameters()]
        super().after_step(clock, ok)
        for p, old in zip(self.teacher.head.parameters(), kept, strict=True):
            p.copy_(old)


class BadStepMoves(DINO):
    def after_step(self, clock: Clock, ok: Tensor) -> None:
        super().after_step(clock, OK)


class TeacherWithDropPath(DINO):
    def __init__(self, config: DINOConfig, make_backbone: MakeBackbone) -> None:
        super().__init__(config, lambda rate: make_backbone(config.drop_path))


class NeverFrozen(DINO):
    def before_step(self, clock: Clock) -> None:
        pass


class FrozenForever(DINO):
    def before_step(self, clock: Clock) -> None:
        super().before_step(clock._replace(step=0))


class FrozenByZeros(DINO):
    """Zero gradients instead of none: weight decay still moves the layer."""

    def before_step(self, clock: Clock) -> None:
        if clock.epoch < 1:
            for p in self.student.head.last_layer.parameters():  # type: ignore[union-attr]
                if p.grad is not None:
                    p.grad.zero_()


class UntrainedPart(DINO):
    def __init__(self, config: DINOConfig, make_backbone: MakeBackbone) -> None:
        super().__init__(config, make_backbone)
        self.extra = nn.Linear(3, 3)


class NoGradient(DINO):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        said = super().forward(views, clock)
        return {**said, "loss": said["loss"] * 0}


PLANTED: list[tuple[type[DINO], Callable[[Make], None], str]] = [
    (HeadNotCopied, starts_with_a_teacher_that_copies_the_student, "not copied: .*head"),
    (TeacherIsTheStudent, starts_with_a_teacher_that_copies_the_student, "shared"),
    (TeacherTakesGradients, starts_with_a_teacher_that_copies_the_student, "takes gradients"),
    (TeacherNeverRead, reads_every_part_of_the_teacher, "backbone of the teacher is never read"),
    (TeacherHeadNeverRead, reads_every_part_of_the_teacher, "head of the teacher is never read"),
    (TeacherMovesInForward, moves_what_it_remembers_in_after_step_alone, "moved before after_step: .*teacher"),
    (CenterMovesInForward, moves_what_it_remembers_in_after_step_alone, "moved before after_step: .*center"),
    (TeacherNeverMoves, moves_what_it_remembers_in_after_step_alone, "never moved: .*teacher"),
    (HeadNeverMoves, moves_what_it_remembers_in_after_step_alone, "never moved: .*teacher.head"),
    (BadStepMoves, moves_nothing_when_the_step_is_bad, "moved in a bad step: .*center"),
    (TeacherWithDropPath, evaluates_a_backbone_without_randomness, "two features"),
    (NeverFrozen, freezes_the_last_layer_in_the_first_epoch, "moved while it was frozen"),
    (FrozenByZeros, freezes_the_last_layer_in_the_first_epoch, "moved while it was frozen"),
    (FrozenForever, freezes_the_last_layer_in_the_first_epoch, "never moves"),
    (UntrainedPart, gives_a_finite_loss_and_a_gradient_to_every_parameter, "no gradient for .*extra"),
    (NoGradient, gives_a_finite_loss_and_a_gradient_to_every_parameter, "no gradient for .*student"),
    (NoGradient, learns_one_batch, "from"),
]


@pytest.mark.parametrize(("bug", "promise", "message"), PLANTED, ids=lambda x: getattr(x, "__name__", "-"))
def test_a_planted_bug_is_caught(
    bug: type[DINO], promise: Callable[[Make], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "dino", bug)
    with pytest.raises(AssertionError, match=message):
        promise(maker("dino"))


class CenterNotSaved(DINO):
    def __init__(self, config: DINOConfig, make_backbone: MakeBackbone) -> None:
        super().__init__(config, make_backbone)
        self.register_buffer("center", self.center, persistent=False)


class CenterOfTheLastMicroBatch(DINO):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        self._teacher_sum, self._num_summed = None, 0
        return super().forward(views, clock)


def test_a_state_that_is_not_saved_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "dino", CenterNotSaved)
    with pytest.raises(AssertionError, match="the next step is another one"):
        keeps_its_state_in_the_checkpoint(maker("dino"), tmp_path)


def test_micro_batches_that_are_forgotten_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "dino", CenterOfTheLastMicroBatch)
    with pytest.raises(AssertionError, match="differs"):
        sums_micro_batches_to_the_whole_batch(maker("dino"))


def test_a_coupled_loss_without_its_mark_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS["simclr"], "couples_batch", False)
    with pytest.raises(AssertionError, match="the loss differs"):
        sums_micro_batches_to_the_whole_batch(maker("simclr"))
