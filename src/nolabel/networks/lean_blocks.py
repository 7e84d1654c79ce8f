"""timm's transformer blocks, keeping less for the backward pass: cheap tensors are computed a second time.

A block of width D in bf16 keeps 36 D bytes per token and the attention's weights; this one keeps 22 D. Each of its
numbers is the one that timm's block computes, and the parameters stay timm's own.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn


def keep_less(model: VisionTransformer) -> None:
    """Let the blocks of `model` keep less, in place. Blocks that differ from timm's plain ones stay as they are.

    Not together with torch.compile, which chooses for itself, or with activation checkpointing, which keeps less still.
    """
    for block in model.blocks:
        if type(block) is Block:
            block.__class__ = LeanBlock  # the same modules under the same names with another forward
            mlp, attn = block.mlp, block.attn
            if type(mlp) is Mlp and _do_nothing(mlp.norm, mlp.drop1):
                mlp.__class__ = LeanMlp
            nothing = type(attn) is Attention and _do_nothing(attn.q_norm, attn.k_norm, attn.norm, attn.attn_drop)
            if nothing and attn.gate is None and not attn.fused_attn:
                attn.__class__ = LeanAttention


def _do_nothing(*modules: nn.Module) -> bool:
    return all(isinstance(m, nn.Identity) or (isinstance(m, nn.Dropout) and m.p == 0) for m in modules)


@contextlib.contextmanager
def remade(result: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """Within, what keeps `result` (contiguous) for the backward pass keeps nothing, and gets `make()` then.

    `make` gives the same bits under any autocast setting, and must not hold `result`.
    """
    storage, dtype = result.untyped_storage().data_ptr(), result.dtype

    def pack(kept: Tensor) -> Any:
        same = kept.untyped_storage().data_ptr() == storage and kept.dtype == dtype
        return (kept.size(), kept.stride(), kept.storage_offset()) if same else kept

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return make().as_strided(*kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


class LeanBlock(Block):
    """Make the outputs of its norms again, and in mixed precision the sum between attention and MLP, too."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if not torch.is_grad_enabled() or attn_mask is not None or is_causal:
            return super().forward(x, attn_mask, is_causal)
        dtype = _product_dtype(x)
        n = self.norm1(x).to(dtype)
        with remade(n, lambda: self.norm1(x).to(dtype)):
            y = self.drop_path1(self.ls1(self.attn(n)))
        middle = x + y
        narrow = y.element_size() < x.element_size()  # then y is less to keep than the sum
        with remade(middle, lambda: x + y) if narrow else contextlib.nullcontext():
            n = self.norm2(middle)
        n = n.to(dtype)
        # Two functions, because a function holds all that it names.
        keep: Callable[[], Tensor] = (lambda: x + y) if narrow else (lambda: middle)
        with remade(n, lambda: self.norm2(keep()).to(dtype)):
            z = self.drop_path2(self.ls2(self.mlp(n)))
        return middle + z  # type: ignore[no-any-return]


class LeanMlp(Mlp):
    """Make the output of its activation function again."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)  # type: ignore[no-any-return,no-untyped-call]
        hidden = self.fc1(x)
        active = self.act(hidden)
        with remade(active, lambda: self.act(hidden)):
            return self.drop2(self.fc2(active))  # type: ignore[no-any-return]


def _product_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class LeanAttention(Attention):
    """Attention by two products and a softmax. Makes the weights of all pairs of tokens again."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or is_causal:
            return super().forward(x, attn_mask, is_causal)
        return self.proj_drop(self.proj(_Attend.apply(self.qkv(x), self.num_heads, self.scale)))  # type: ignore[no-any-return]


class _Attend(torch.autograd.Function):
    """Queries, keys and values of all heads (B, N, 3 H d) to (B, N, H d)."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_heads: int, scale: float) -> Tensor:
        b, n, _ = qkv.shape
        parts = qkv.view(b, n, 3, num_heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2)  # (3, B H, N, d), a copy
        q, k, v = parts.unbind(0)
        q.mul_(scale)
        with torch.autocast(qkv.device.type, enabled=False):
            out = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        ctx.save_for_backward(parts)
        ctx.num_heads, ctx.scale = num_heads, scale
        return out.view(b, num_heads, n, -1).transpose(1, 2).flatten(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        q, k, v = ctx.saved_tensors[0].unbind(0)
        b, n, _ = grad.shape
        weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
        y = grad.reshape(b, n, ctx.num_heads, -1).transpose(1, 2).flatten(0, 1)  # (B H, N, d)
        felt = torch.bmm(y, v.transpose(1, 2))
        scores = torch._softmax_backward_data(felt, weights, -1, felt.dtype)
        grads = grad.new_empty(b, n, 3, ctx.num_heads, y.shape[-1])
        parts = torch.bmm(scores, k).mul_(ctx.scale), torch.bmm(scores.transpose(1, 2), q)
        for i, part in enumerate((*parts, torch.bmm(weights.transpose(1, 2), y))):
            grads[:, :, i].copy_(part.view(b, ctx.num_heads, n, -1).transpose(1, 2))
        return grads.view(b, n, -1), None, None
