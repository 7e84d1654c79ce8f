"""The vectors that describe an image to a probe: class tokens of the last blocks, the mean of the patches."""

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from nolabel.errors import UsageError
from nolabel.networks.backbones import Backbone


class Piece(NamedTuple):
    """One vector (B, D) that a network gives for an image."""

    kind: Literal["pooled", "class", "raw", "patches"]
    """Pooled feature; class token after the final norm, or before it (raw); mean of the normed patches."""
    back: int = 1
    """The block, counted from the last one (1). `pooled` and `patches` are of the last."""


POOLED = Piece("pooled")
PATCHES = Piece("patches")


class Layout(NamedTuple):
    """Features of a probe: class tokens of the last blocks, earlier first, then the mean patch (Caron et al. 2021)."""

    blocks: int = 1
    mean_patches: bool = False


def depth(net: nn.Module) -> int:
    """Number of blocks with a class token to take: those of a plain ViT, else 1 (the pooled feature)."""
    return len(net.model.blocks) if isinstance(net, Backbone) and net.can_drop else 1


def pieces_of(net: nn.Module, layout: Layout, before_norm: bool = False) -> list[Piece]:
    """The pieces of a layout in order. Raises UsageError where the network doesn't have them."""
    num_blocks = depth(net)
    name = getattr(net, "name", "the network")
    if not 1 <= layout.blocks <= num_blocks:
        what = f"1 to {num_blocks} blocks" if num_blocks > 1 else "one block (what it pools)"
        raise UsageError(f"{name} gives features of {what}, not {layout.blocks}.")
    if num_blocks == 1 and (layout.mean_patches or before_norm):
        raise UsageError(f"{name} is no plain ViT: it has neither a mean patch nor a class token before its norm.")
    backs = range(layout.blocks, 0, -1)
    pieces = [Piece("raw", back) if before_norm else _canonical(net, Piece("class", back)) for back in backs]
    return pieces + ([PATCHES] if layout.mean_patches else [])


def compute(net: nn.Module, x: Tensor, pieces: Collection[Piece]) -> dict[Piece, Tensor]:
    """The pieces (B, D) of normalised images `x` (B, 3, H, W), with as few forward passes as they allow."""
    found: dict[Piece, Tensor] = {}
    normed = [piece for piece in pieces if piece.kind in ("class", "patches")]
    if normed:
        assert isinstance(net, Backbone)
        blocks = net.intermediate(x, max(piece.back for piece in normed))
        found |= {Piece("class", back): blocks[-back].pooled for back in range(1, len(blocks) + 1)}
        found[PATCHES] = blocks[-1].patches.mean(1)
        if _canonical(net, Piece("class")) == POOLED:
            found[POOLED] = blocks[-1].pooled
    raw = [piece.back for piece in pieces if piece.kind == "raw"]
    if raw:
        assert isinstance(net, Backbone)
        blocks = net.intermediate(x, max(raw), norm=False)
        found |= {Piece("raw", back): blocks[-back].pooled for back in raw}
    if POOLED in pieces and POOLED not in found:
        found[POOLED] = net(x).pooled
    return {piece: found[piece] for piece in pieces}


def join(found: Mapping[Piece, Tensor], pieces: Collection[Piece], interleaved: bool = False) -> Tensor:
    """The pieces side by side: (B, D) each to (B, len(pieces) * D).

    `interleaved` is the layout of DINO's published heads for one block and the mean patch: [c0, p0, c1, p1, ...].
    """
    parts = [found[piece] for piece in pieces]
    if interleaved:
        if len(parts) != 2 or PATCHES not in pieces:
            raise UsageError(
                "The interleaved layout is that of one block with the mean patch: --blocks 1 and mean patches."
            )
        return torch.stack(parts, -1).flatten(1)
    return torch.cat(parts, 1)


def _canonical(net: nn.Module, piece: Piece) -> Piece:
    """The class token after the last block is what most networks pool: one name for it, so that it is computed once."""
    if piece != Piece("class"):
        return piece
    if not (isinstance(net, Backbone) and net.can_drop):
        return POOLED
    pools_token = net.model.global_pool == "token" and isinstance(net.model.fc_norm, nn.Identity)
    return POOLED if pools_token and net.model.num_prefix_tokens else piece
