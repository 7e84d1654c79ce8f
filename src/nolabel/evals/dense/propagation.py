"""Masks carried from frame to frame by the likeness of patches alone (Jabri et al. 2020; Caron et al. 2021, A5).

Nothing is trained. A patch takes the mean mask of the few patches most like it, in the first frame and in the last
ones, not too far from its own place.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 16
"""Side in patches of the tiles that targets are worked on in; memory grows with (TILE + 2 radius)^2."""


class Rules(NamedTuple):
    """Patches that may vote, and their weights; the values of DINO."""

    num_last_frames: int = 7
    """Frames before this one, beside the first."""
    radius: int = 12
    """Patches up, down, left and right that count as near: a square of 25 x 25."""
    topk: int = 5
    temperature: float = 0.1
    """A patch votes with exp(cosine / temperature)."""


def propagate(frames: Iterable[Tensor], first: Tensor, rules: Rules | None = None) -> Iterator[Tensor]:
    """Soft masks (K, h, w) of the second frame, the third, ...

    `frames` are features (h, w, D), not necessarily of length 1, the first frame's first; `first` (K, h, w) float32 is
    the first frame's mask, a channel an object and one for the background.
    """
    rules = rules or Rules()
    rest = iter(frames)
    start = F.normalize(next(rest).float(), dim=-1), first.float()
    last: deque[tuple[Tensor, Tensor]] = deque(maxlen=rules.num_last_frames)
    for frame in rest:
        features = F.normalize(frame.float(), dim=-1)
        context = [start, *last]
        masks = vote(features, [f for f, _ in context], [m for _, m in context], rules)
        last.append((features, masks))
        yield masks


def vote(target: Tensor, sources: list[Tensor], masks: list[Tensor], rules: Rules) -> Tensor:
    """The masks (K, h, w) of `target` (h, w, D) from `sources` (h, w, D) with `masks` (K, h, w); features of length 1.

    Of all sources together the `topk` most similar near patches vote, and so do all that tie with the last of them.
    """
    height, width, _ = target.shape
    out = masks[0].new_empty(len(masks[0]), height, width)
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            rows, columns = slice(top, min(top + TILE, height)), slice(left, min(left + TILE, width))
            out[:, rows, columns] = _vote_tile(target, sources, masks, rules, rows, columns)
    return out


def to_pixels(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Object ids (H, W) from soft masks (K, h, w): bilinear at `size`, each channel stretched to 0..1, the largest."""
    large = F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    return torch.where(high > 0, (large - low) / (high - low).clamp_min(1e-12), large).max(0).indices


def _vote_tile(
    target: Tensor, sources: list[Tensor], masks: list[Tensor], rules: Rules, rows: slice, columns: slice
) -> Tensor:
    height, width, dim = target.shape
    y = torch.arange(max(rows.start - rules.radius, 0), min(rows.stop + rules.radius, height), device=target.device)
    x = torch.arange(
        max(columns.start - rules.radius, 0), min(columns.stop + rules.radius, width), device=target.device
    )
    window = slice(int(y[0]), int(y[-1]) + 1), slice(int(x[0]), int(x[-1]) + 1)
    keys = torch.cat([source[window].reshape(-1, dim) for source in sources])
    values = torch.cat([mask[:, window[0], window[1]].flatten(1) for mask in masks], 1)  # (K, S)
    near_y = (torch.arange(rows.start, rows.stop, device=y.device)[:, None] - y).abs() <= rules.radius
    near_x = (torch.arange(columns.start, columns.stop, device=x.device)[:, None] - x).abs() <= rules.radius
    near = (near_y[:, None, :, None] & near_x[None, :, None, :]).flatten(2).flatten(0, 1)  # (targets, window)
    weights = (target[rows, columns].reshape(-1, dim) @ keys.T / rules.temperature).exp_()
    weights.view(len(near), len(sources), -1).mul_(near[:, None])
    least = weights.topk(min(rules.topk, weights.shape[1])).values[:, -1:]
    weights.mul_(weights >= least)
    votes = weights @ values.T / weights.sum(1, keepdim=True)
    return votes.T.reshape(-1, rows.stop - rows.start, columns.stop - columns.start)
