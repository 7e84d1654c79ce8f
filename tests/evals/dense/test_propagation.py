"""Masks carried by patches, against a slow loop written from the protocol, and where the answer is known."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nolabel.evals.dense import propagation
from nolabel.evals.dense.propagation import Rules, propagate, to_pixels, vote


def slow_vote(target: Tensor, sources: list[Tensor], masks: list[Tensor], rules: Rules) -> Tensor:
    height, width, _ = target.shape
    out = torch.zeros(len(masks[0]), height, width)
    for y in range(height):
        for x in range(width):
            weights, values = [], []
            for source, mask in zip(sources, masks, strict=True):
                for v in range(height):
                    for u in range(width):
                        near = abs(v - y) <= rules.radius and abs(u - x) <= rules.radius
                        cosine = float(target[y, x] @ source[v, u])
                        weights.append(math.exp(cosine / rules.temperature) if near else 0.0)
                        values.append(mask[:, v, u])
            least = sorted(weights, reverse=True)[min(rules.topk, len(weights)) - 1]
            kept = [(w, v) for w, v in zip(weights, values, strict=True) if w >= least]
            out[:, y, x] = sum((w * v for w, v in kept), torch.zeros(len(masks[0]))) / sum(w for w, _ in kept)
    return out


@pytest.mark.parametrize(("tile", "radius", "topk"), [(16, 2, 5), (3, 2, 5), (4, 1, 3), (2, 12, 7), (5, 0, 2)])
def test_vote_is_that_of_a_slow_loop(monkeypatch: pytest.MonkeyPatch, tile: int, radius: int, topk: int) -> None:
    monkeypatch.setattr(propagation, "TILE", tile)
    generator = torch.Generator().manual_seed(tile)
    frames = [F.normalize(torch.randn(6, 7, 8, generator=generator), dim=-1) for _ in range(3)]
    masks = [torch.rand(3, 6, 7, generator=generator).softmax(0) for _ in range(2)]
    rules = Rules(7, radius, topk, 0.1)
    torch.testing.assert_close(
        vote(frames[2], frames[:2], masks, rules), slow_vote(frames[2], frames[:2], masks, rules)
    )


def test_the_context_is_the_first_frame_and_the_last_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = [torch.randn(3, 3, 4, generator=generator) for _ in range(6)]
    first = torch.rand(2, 3, 3, generator=generator)
    rules = Rules(num_last_frames=2, radius=1, topk=3)
    found = list(propagate(frames, first, rules))
    unit = [F.normalize(frame, dim=-1) for frame in frames]
    masks = [first, *found]
    for t, context in ((1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (5, [0, 3, 4])):
        expected = slow_vote(unit[t], [unit[i] for i in context], [masks[i] for i in context], rules)
        torch.testing.assert_close(masks[t], expected)
    assert len(found) == 5


def test_patches_that_move_take_their_mask_along() -> None:
    generator = torch.Generator().manual_seed(1)
    background, thing = torch.randn(8, generator=generator), torch.randn(8, generator=generator)
    frames, truth = [], []
    for t in range(5):
        mask = torch.zeros(10, 12, dtype=torch.bool)
        mask[3:6, 1 + t : 4 + t] = True
        truth.append(mask)
        noise = 0.01 * torch.randn(10, 12, 8, generator=generator)
        frames.append(torch.where(mask[..., None], thing, background) + noise)
    first = torch.stack([~truth[0], truth[0]]).float()
    for soft, mask in zip(propagate(frames, first), truth[1:], strict=True):
        assert torch.equal(to_pixels(soft, (10, 12)).bool(), mask)


def test_to_pixels_stretches_each_channel() -> None:
    """An object whose mask has faded to 0.3 still wins where it is at its strongest, as in the official code."""
    soft = torch.tensor([[[1.0, 0.7, 1.0]], [[0.0, 0.3, 0.0]], [[0.0, 0.0, 0.0]]])
    assert to_pixels(soft, (1, 3)).tolist() == [[0, 1, 0]]
    constant = torch.tensor([[[0.5, 0.5]], [[0.0, 0.0]]])
    assert to_pixels(constant, (1, 2)).tolist() == [[0, 0]]
    beside = torch.tensor([[[0.5, 0.5, 0.5]], [[0.0, 0.1, 0.03]]])  # a constant channel becomes 0, and loses to 0.3
    assert to_pixels(beside, (1, 3)).tolist() == [[0, 1, 1]]
