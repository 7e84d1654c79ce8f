"""Planted bugs of DenseCL and MoCo, most of them found in the wild: each one fails a promise or a test of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import test_densecl as own
import torch
from test_contract import (
    OK,
    Make,
    gives_a_finite_loss_and_a_gradient_to_every_parameter,
    keeps_its_state_in_the_checkpoint,
    maker,
    moves_nothing_when_the_step_is_bad,
    moves_what_it_remembers_in_after_step_alone,
    reads_every_part_of_the_teacher,
    starts_with_a_teacher_that_copies_the_student,
)
from torch import Tensor
from torch.nn import functional as F

from nolabel.methods import METHODS, densecl
from nolabel.methods.base import MakeBackbone
from nolabel.methods.densecl import DenseCL, DenseCLConfig, Seen
from nolabel.networks import matching
from nolabel.networks.heads import DenseProjector
from nolabel.networks.network import Network
from nolabel.networks.teacher import move_teacher
from nolabel.optim.schedules import Clock


class KeyNeverRead(DenseCL):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        key, self.key = self.key, self.query
        said = super().forward(views, clock)
        self.key = key
        return said


class KeyHeadNeverRead(DenseCL):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        key = self.key
        self.key = Network(key.backbone, self.query.head)
        said = super().forward(views, clock)
        self.key = key
        return said


class KeyHeadNotCopied(DenseCL):
    def __init__(self, config: DenseCLConfig, make_backbone: MakeBackbone) -> None:
        super().__init__(config, make_backbone)
        self.key.head = DenseProjector(self.backbone.num_features, 8, 32).requires_grad_(False)


class KeyMovesInForward(DenseCL):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        move_teacher(self.key.parameters(), self.query.parameters(), 0.9, OK)
        return super().forward(views, clock)


class KeyNeverMoves(DenseCL):
    def after_step(self, clock: Clock, ok: Tensor) -> None:
        kept = [p.clone() for p in self.key.parameters()]
        super().after_step(clock, ok)
        for p, old in zip(self.key.parameters(), kept, strict=True):
            p.copy_(old)


class KeyMovesBeforeTheQuery(DenseCL):
    """By the weights of the step before: the query has moved since."""

    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        self.old = [p.detach().clone() for p in self.query.parameters()]
        return super().forward(views, clock)

    def after_step(self, clock: Clock, ok: Tensor) -> None:
        new = [p.detach().clone() for p in self.query.parameters()]
        for p, old in zip(self.query.parameters(), self.old, strict=True):
            p.data.copy_(old)
        super().after_step(clock, ok)
        for p, kept in zip(self.query.parameters(), new, strict=True):
            p.data.copy_(kept)


class StatisticsFollowTheQuery(DenseCL):
    def after_step(self, clock: Clock, ok: Tensor) -> None:
        super().after_step(clock, ok)
        self.key.load_state_dict({**self.key.state_dict(), **dict(self.query.named_buffers())})


class QueueFilledInForward(DenseCL):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        said = super().forward(views, clock)
        self.queue.enqueue(self._keys[-1].pooled, OK)
        return said


class QueueFilledInABadStep(DenseCL):
    def after_step(self, clock: Clock, ok: Tensor) -> None:
        super().after_step(clock, OK)


class QueueFilledWithQueries(DenseCL):
    def _look(self, network: Network[Any], images: Tensor) -> Seen:
        seen = super()._look(network, images)
        if network is self.query:
            self.kept = seen
        return seen

    def after_step(self, clock: Clock, ok: Tensor) -> None:
        self._keys = [self.kept]
        super().after_step(clock, ok)


class DenseQueueOfOneLocation(DenseCL):
    def _look(self, network: Network[Any], images: Tensor) -> Seen:
        seen = super()._look(network, images)
        return seen if seen.dense is None else seen._replace(mean=seen.dense[:, 0])


class DenseQueueOfNormalizedMeans(DenseCL):
    def _look(self, network: Network[Any], images: Tensor) -> Seen:
        seen = super()._look(network, images)
        return seen if seen.dense is None else seen._replace(mean=F.normalize(seen.dense.mean(1), dim=-1))


class OneQueueForBoth(DenseCL):
    def __init__(self, config: DenseCLConfig, make_backbone: MakeBackbone) -> None:
        super().__init__(config, make_backbone)
        self.dense_queue = self.queue


class QueueOfTheLastMicroBatch(DenseCL):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        self._keys = []
        return super().forward(views, clock)


class PointerNotSaved(DenseCL):
    def __init__(self, config: DenseCLConfig, make_backbone: MakeBackbone) -> None:
        super().__init__(config, make_backbone)
        self.queue.register_buffer("pointer", self.queue.pointer, persistent=False)


class QueueNotSaved(DenseCL):
    def __init__(self, config: DenseCLConfig, make_backbone: MakeBackbone) -> None:
        super().__init__(config, make_backbone)
        self.queue.register_buffer("keys", self.queue.keys, persistent=False)


class FeaturesNotPooled(DenseCL):
    """The trap of num_grid: indices of one grid used in another."""

    def _look(self, network: Network[Any], images: Tensor) -> Seen:
        seen = super()._look(network, images)
        patches = network.backbone(images).patches.detach()
        return seen._replace(locations=patches[:, : seen.locations.shape[1]])  # type: ignore[union-attr]


class WarmUpLeavesTheDensePartOut(DenseCL):
    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        said = super().forward(views, clock)
        if self.dense_weight(clock) == 0:
            return {**said, "loss": self._whole(views)}
        return said

    def _whole(self, views: Sequence[Tensor]) -> Tensor:
        q, k = (self._look(network, x) for network, x in zip((self.query, self.key), views, strict=True))
        return densecl.info_nce(q.pooled, k.pooled, self.queue.keys, 0.2).loss


class KeysBothWays(DenseCL):
    """Symmetrised, as MoCo v3 and not as MoCo v2."""

    def forward(self, views: Sequence[Tensor], clock: Clock) -> Any:
        a, b = super().forward(views, clock), super().forward([views[1], views[0]], clock)
        self._keys.pop()
        return {**a, "loss": (a["loss"] + b["loss"]) / 2}


CONTRACT_BUGS: list[tuple[type[DenseCL], Callable[[Make], None], str]] = [
    (KeyNeverRead, reads_every_part_of_the_teacher, "backbone of the teacher is never read"),
    (KeyHeadNeverRead, reads_every_part_of_the_teacher, "head of the teacher is never read"),
    (KeyHeadNotCopied, starts_with_a_teacher_that_copies_the_student, "not copied: .*head"),
    (KeyMovesInForward, moves_what_it_remembers_in_after_step_alone, "moved before after_step: .*key"),
    (KeyNeverMoves, moves_what_it_remembers_in_after_step_alone, "never moved: .*key"),
    (QueueFilledInForward, moves_what_it_remembers_in_after_step_alone, "moved before after_step: .*queue"),
    (QueueFilledInABadStep, moves_nothing_when_the_step_is_bad, "moved in a bad step: .*queue"),
    (WarmUpLeavesTheDensePartOut, gives_a_finite_loss_and_a_gradient_to_every_parameter, "no gradient for .*patches"),
]


@pytest.mark.parametrize(("bug", "promise", "message"), CONTRACT_BUGS, ids=lambda x: getattr(x, "__name__", "-"))
def test_the_contract_catches(
    bug: type[DenseCL], promise: Callable[[Make], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "densecl", bug)
    if bug is WarmUpLeavesTheDensePartOut:
        monkeypatch.setattr(bug, "dense_weight", lambda self, clock: 0.0)
    with pytest.raises(AssertionError, match=message):
        promise(maker("densecl"))


@pytest.mark.parametrize("bug", [PointerNotSaved, QueueNotSaved])
def test_a_state_that_is_not_saved_is_caught(
    bug: type[DenseCL], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "densecl", bug)
    with pytest.raises(AssertionError, match="the next step is another one"):
        keeps_its_state_in_the_checkpoint(maker("densecl"), tmp_path)


OWN_BUGS: list[tuple[type[DenseCL], Callable[[], None]]] = [
    (QueueFilledWithQueries, own.test_the_queues_take_the_keys_and_not_the_queries),
    (DenseQueueOfOneLocation, own.test_the_queues_take_the_keys_and_not_the_queries),
    (DenseQueueOfNormalizedMeans, own.test_the_queues_take_the_keys_and_not_the_queries),
    (OneQueueForBoth, own.test_the_queues_take_the_keys_and_not_the_queries),
    (QueueOfTheLastMicroBatch, own.test_micro_batches_fill_the_queues_once_and_in_order),
    (KeyMovesBeforeTheQuery, own.test_the_key_moves_at_the_end_of_a_step_by_the_query_after_it),
    (StatisticsFollowTheQuery, own.test_the_statistics_of_the_key_are_its_own),
    (FeaturesNotPooled, lambda: own.test_the_losses_are_the_slow_loops({"num_grid": 2}, "resnet")),
    (WarmUpLeavesTheDensePartOut, own.test_the_dense_share_waits_for_its_warm_up),
    (KeysBothWays, lambda: own.test_without_the_dense_loss_it_is_moco_v2("vit")),
]


@pytest.mark.parametrize(("bug", "test"), OWN_BUGS, ids=lambda x: getattr(x, "__name__", "-"))
def test_the_tests_of_the_method_catch(
    bug: type[DenseCL], test: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "densecl", bug)
    with pytest.raises(AssertionError):
        test()


def test_wrong_correspondences_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locations paired by their place, and the matching read from key to query."""
    for wrong in (
        lambda a, b: matching.match(a, b)._replace(nearest=torch.arange(a.shape[1]).expand(len(a), -1)),
        lambda a, b: matching.match(b, a),
    ):
        monkeypatch.setattr(densecl, "match", wrong)
        with pytest.raises(AssertionError):
            own.test_the_losses_are_the_slow_loops({}, "resnet")


def test_timms_start_of_a_resnet_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(densecl, "initialize_resnet", lambda name, model: None)
    with pytest.raises(AssertionError):
        own.test_the_resnet_starts_as_the_papers()
