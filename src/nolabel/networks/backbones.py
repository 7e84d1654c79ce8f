"""One contract over every timm network: an image batch goes in, Features come out.

Methods, evaluations, pictures and export know a network only through this file.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import timm
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from nolabel.errors import UsageError, nearest
from nolabel.networks import lean_blocks
from nolabel.networks.arguments import check_args, check_size
from nolabel.networks.features import Features as Features  # a backbone and its Features come together
from nolabel.networks.features import KeepPatches, find_grid, read_features
from nolabel.networks.fitting import Form, first_words, fitted, measure, own_size, stochastic_depth, wrong_size
from nolabel.networks.initial import initialize_vit, is_plain_vit, is_resnet
from nolabel.networks.positions import Resampling, use_resampling


class Backbone(nn.Module):
    """A timm network without its classifier. `model` is the timm module: its state dict is what we ship."""

    def __init__(self, model: Any, name: str, args: Mapping[str, Any], positions: Resampling = "timm") -> None:
        super().__init__()
        self.model = model
        self.name, self.args = name, dict(args)
        self.positions: Resampling = positions if use_resampling(model, positions) else "timm"
        self.num_features = self.patch_features = int(model.num_features)
        """Widths of the pooled vector and of the vector of a location. Most networks have one for both."""
        embed = getattr(model, "patch_embed", None)
        size = getattr(embed, "patch_size", None)
        self.patch_size: int | None = size[0] if isinstance(size, tuple) else size
        # A CNN: convolutions are mostly faster in this layout.
        self._channels_last = self.patch_size is None and not _breaks_channels_last(model)
        self._stride: int | None = None
        self._proven: set[tuple[int, int]] | None = None
        """Sizes of images that the network took; None for networks that take every size."""
        if self.can_drop:
            model.patch_drop = KeepPatches(model.num_prefix_tokens)

    @property
    def can_drop(self) -> bool:
        """Whether `forward` takes `keep`: plain vision transformers."""
        return isinstance(self.model, VisionTransformer)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Features:
        """Features of normalised images `x` (B, 3, H, W).

        `keep` holds indices of the patches to look at, (n,) for the whole batch or (B, n): the blocks never see the
        others, and `patches` is (B, n, D) in the order of `keep`. UsageError where the network has no patches to drop.
        """
        self._check_size(x)
        if keep is not None:
            return self._forward_kept(x, keep)
        if self._channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with self._in_words(x):
            return read_features(self.model, x)

    def _forward_kept(self, x: Tensor, keep: Tensor) -> Features:
        if not self.can_drop:
            raise UsageError(f"{self.name} has no patches that could be dropped: masking needs a ViT.")
        self.model.patch_drop.keep = keep
        try:
            out = self.model.forward_features(x)
        finally:
            self.model.patch_drop.keep = None
        assert self.patch_size is not None
        grid = (x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size)
        patches = out[:, self.model.num_prefix_tokens :]
        return Features(self.model.forward_head(out, pre_logits=True), patches, grid)

    def intermediate(self, x: Tensor, num_blocks: int, norm: bool = True) -> list[Features]:
        """Features after each of the last `num_blocks` blocks of a ViT, earlier first; `pooled` is the class token.

        With `norm` each goes through the network's final norm, as DINO's linear probe has it; without, they are the raw
        residual stream (MSN's low-shot features). Other networks have one block in this sense: their features.
        """
        if not self.can_drop:
            return [self(x)]
        if not 1 <= num_blocks <= len(self.model.blocks):
            raise UsageError(
                f"{self.name} has {len(self.model.blocks)} blocks: take 1 to all of them, not {num_blocks}."
            )
        self._check_size(x)
        outs = self.model.forward_intermediates(
            x, num_blocks, return_prefix_tokens=True, norm=norm, output_fmt="NLC", intermediates_only=True
        )
        features = []
        for patches, prefix in outs:
            pooled = prefix[:, 0] if self.model.num_prefix_tokens else patches.mean(1)
            features.append(Features(pooled, patches, find_grid(patches.shape[1], 0, *x.shape[-2:])[1]))
        return features

    def stages(self, x: Tensor) -> list[Tensor]:
        """Four maps (B, C, h, w): the stages of a CNN at its strides, or four blocks evenly over the depth of a ViT."""
        self._check_size(x)
        if self.can_drop:
            depth = len(self.model.blocks)
            indices = [max(depth * (i + 1) // 4 - 1, 0) for i in range(4)]
        else:
            indices = list(range(len(self.model.feature_info)))[-4:]
        chosen = sorted(set(indices))
        maps: list[Tensor] = self.model.forward_intermediates(
            x, chosen, output_fmt="NCHW", intermediates_only=True, norm=False
        )
        return [maps[chosen.index(i)] for i in indices]

    @property
    def has_attention(self) -> bool:
        """Whether `attention` works: plain vision transformers with a class token."""
        if not isinstance(self.model, VisionTransformer) or self.model.cls_token is None:
            return False
        return isinstance(getattr(self.model.blocks[-1], "attn", None), Attention)

    def attention(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Attention of the class token over the patches in the last block: (B, heads, N) float32, and the grid.

        Each row sums to less than one: the share of the class token itself is left out (Caron et al. 2021).
        """
        if not self.has_attention:
            raise UsageError(f"{self.name} has no class token whose attention could be shown: use a ViT.")
        self._check_size(x)
        attn = self.model.blocks[-1].attn
        seen: list[Tensor] = []
        handle = attn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self.model.forward_features(x)
        finally:
            handle.remove()
        tokens = seen[0]
        qkv = attn.qkv(tokens).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = attn.q_norm(qkv[0]), attn.k_norm(qkv[1])
        weights = ((q[:, :, :1] * attn.scale) @ k.transpose(-2, -1)).float().softmax(-1)
        patches = weights[:, :, 0, self.model.num_prefix_tokens :]
        return patches, find_grid(patches.shape[-1], 0, *x.shape[-2:])[1]

    def plain_attention(self, image_size: int) -> None:
        """Compute attention of ViTs by two products and a softmax, without the fused function: faster in bf16 on CPUs.

        It keeps the weights of all pairs of tokens for the backward pass, so only for at most 1,024 patches.
        """
        if self.patch_size is not None and (image_size // self.patch_size) ** 2 <= 1024:
            for module in self.model.modules():
                if isinstance(module, Attention):
                    module.fused_attn = False  # type: ignore[misc]  # timm's own switch, but for TorchScript

    def keep_less(self) -> None:
        """Let a plain ViT keep less for the backward pass (`lean_blocks.py`); UsageError for other networks."""
        if not self.can_drop:
            raise UsageError(f"--keep-less is for plain ViTs, which {self.name} is not: use --grad-checkpointing.")
        lean_blocks.keep_less(self.model)

    def compile_blocks(self) -> None:
        """torch.compile block by block (a ViT) or as a whole, in place: the names of the state dict stay timm's."""
        parts = self.model.blocks if self.can_drop else [self.model]
        # Each block's drop path makes a graph of its own, each size and each mode another; beyond dynamo's limit of 8
        # blocks would fall back to eager without a word.
        from torch._dynamo import config  # slow to import, and seldom needed

        config.recompile_limit = max(config.recompile_limit, 8 * len(parts))
        config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 16 * len(parts))
        for part in parts:
            part.compile()

    @property
    def stride(self) -> int:
        """Pixels from one location to the next."""
        return self._stride or self.patch_size or int(self.model.feature_info[-1]["reduction"])

    def takes(self, size: int) -> bool:
        """Whether the network takes square images of this size (pixels)."""
        if self.patch_size is not None and size % self.patch_size:
            return False
        return self._proven is None or isinstance(measure(self.name, self.args, size), Form)

    def take_form(self, form: Form, size: int) -> None:
        """Set widths and patch size by what a forward pass of images of `size` pixels has shown."""
        self.num_features, self.patch_features = form.pooled, form.patches
        self._proven = {(size, size)}
        self._stride = stride = size // form.rows
        if self.patch_size is not None and self.can_drop:  # patches of the map of a CNN (hybrid networks)
            self.patch_size = stride
        elif self.patch_size is not None and stride % self.patch_size:  # overlapping patches
            self.patch_size = None

    def check_sizes(self, sizes: Iterable[int]) -> None:
        """UsageError where the network does not take square images of one of these sizes (pixels)."""
        for size in sorted(set(sizes)) if self._proven is not None else ():
            form = measure(self.name, self.args, size)
            if isinstance(form, str):
                raise wrong_size(self.name, own_size(self.model, self.args), (size, size), form)

    @contextmanager
    def _in_words(self, x: Tensor) -> Iterator[None]:
        """Turn an error of the network at a size that it does not take into a UsageError."""
        size = (x.shape[-2], x.shape[-1])
        try:
            yield
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if self._proven is None or size in self._proven or isinstance(error, (torch.OutOfMemoryError, UsageError)):
                raise
            if size[0] == size[1] and self.takes(size[0]):
                raise  # the size is not the reason
            raise wrong_size(self.name, own_size(self.model, self.args), size, first_words(error)) from error
        if self._proven is not None:
            self._proven.add(size)

    def _check_size(self, x: Tensor) -> None:
        p = self.patch_size
        if p is not None and (x.shape[-2] % p or x.shape[-1] % p):
            raise UsageError(
                f"{self.name} cuts images into patches of {p} px, and {x.shape[-2]}x{x.shape[-1]} is no multiple.\n"
                f"Use a size such as {max(x.shape[-2] // p, 1) * p}."
            )


def backbone(
    name: str,
    args: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    drop_path: float = 0.0,
    grad_checkpointing: bool = False,
    most_bytes: int | None = None,
    positions: Resampling = "timm",
) -> Backbone:
    """A randomly initialised backbone.

    `name` is a timm name, `args` shape the network, `image_size` (pixels) fixes the stored position grid of a ViT,
    `drop_path` is the rate of stochastic depth, `positions` the way to resample position embeddings. Raises UsageError
    for names and arguments timm doesn't know, those that `arguments.py` does not let through, and a network of more
    than `most_bytes` or than the memory.
    """
    if not timm.is_model(name):
        raise UsageError(
            f"There is no backbone {name!r} in timm {timm.__version__}.{nearest(name, timm.list_models())}\n"
            "`nolabel list backbones` shows a selection."
        )
    check_args(name, args or {})
    options: dict[str, Any] = dict(args or {})
    if is_plain_vit(name):
        options = {"dynamic_img_size": True, **options}
        if image_size is not None:
            options = {"img_size": image_size, **options}
    if args or most_bytes is not None:
        check_size(name, partial(timm.create_model, name, pretrained=False, num_classes=0, **options), most_bytes)
    try:
        net = _build(name, options, image_size, drop_path, positions)
    except UsageError:
        raise
    except Exception as error:  # timm raises nearly anything for values that make no network
        raise UsageError(
            f"timm could not build {name} with {str(options)[:300]}: {first_words(error)}.\n"
            "Some recipes bring arguments for their own backbone: --backbone-args replaces them (alone: none)."
        ) from error
    if isinstance(net.model, VisionTransformer):
        initialize_vit(net.model)
    if grad_checkpointing:
        net.model.set_grad_checkpointing()
    return net


def _build(
    name: str, options: dict[str, Any], image_size: int | None, drop_path: float, positions: Resampling
) -> Backbone:
    """The network with its drop path; one that is neither a plain ViT nor a ResNet is fitted to the image size."""
    form = None
    if is_plain_vit(name):
        options = options | ({"drop_path_rate": drop_path} if drop_path else {})
    elif not is_resnet(name):
        options, form = fitted(name, options, image_size)
        options = options | stochastic_depth(name, options, drop_path)
    model = timm.create_model(name, pretrained=False, num_classes=0, **options)
    net = Backbone(model, name, {k: v for k, v in options.items() if k != "drop_path_rate"}, positions)
    if form is not None:
        net.take_form(form, image_size or own_size(model, options))
    return net


def _breaks_channels_last(model: nn.Module) -> bool:
    """Whether it has depthwise convolutions of 1 x 1 (MobileOne, FastViT).

    torch 2.15 corrupts memory in the backward pass of such networks on the CPU in the layout channels last.
    """
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    return any(conv.groups > 1 and conv.kernel_size == (1, 1) for conv in convolutions)
