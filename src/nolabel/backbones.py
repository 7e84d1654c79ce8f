"""One contract over every timm network: an image batch goes in, Features come out.

Methods, evaluations, pictures and export know a network only through this file.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from nolabel.errors import UsageError, nearest


class Features(NamedTuple):
    """What a backbone says about a batch of images."""

    pooled: Tensor
    """(B, D): the class token of a ViT, the spatial mean of a CNN."""
    patches: Tensor
    """(B, N, D): one vector a location, row by row."""
    grid: tuple[int, int]
    """Rows and columns of `patches`; their product is N."""


class Backbone(nn.Module):
    """A timm network without its classifier. `model` is the timm module: its state dict is what we ship."""

    def __init__(self, model: Any, name: str, args: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.name, self.args = name, dict(args)
        self.num_features = int(model.num_features)
        embed = getattr(model, "patch_embed", None)
        size = getattr(embed, "patch_size", None)
        self.patch_size: int | None = size[0] if isinstance(size, tuple) else size

    def forward(self, x: Tensor) -> Features:
        """Features of normalised images `x` (B, 3, H, W)."""
        self._check_size(x)
        if self.patch_size is None:  # a CNN: convolutions are mostly faster in channels-last layout
            x = x.contiguous(memory_format=torch.channels_last)
        out = self.model.forward_features(x)
        pooled = self.model.forward_head(out, pre_logits=True)
        if out.dim() == 4:
            if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
                out = out.permute(0, 3, 1, 2)
            return Features(pooled, out.flatten(2).transpose(1, 2), (out.shape[2], out.shape[3]))
        patches = out[:, self.model.num_prefix_tokens :]
        return Features(pooled, patches, self._grid(x, patches.shape[1]))

    @property
    def has_attention(self) -> bool:
        """Whether `attention` works: plain vision transformers with a class token."""
        return isinstance(self.model, VisionTransformer) and self.model.cls_token is not None

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
        return patches, self._grid(x, patches.shape[-1])

    def compile_blocks(self) -> None:
        """torch.compile block by block (a ViT) or as a whole, in place: the names of the state dict stay timm's."""
        blocks = self.model.blocks if isinstance(self.model, VisionTransformer) else [self.model]
        # Each block's drop path makes a graph of its own, each size and each mode another; beyond dynamo's limit of 8
        # blocks would fall back to eager without a word.
        from torch._dynamo import config  # slow to import, and seldom needed

        config.recompile_limit = max(config.recompile_limit, 8 * len(blocks))
        config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 16 * len(blocks))
        for block in blocks:
            block.compile()

    def _grid(self, x: Tensor, num_patches: int) -> tuple[int, int]:
        assert self.patch_size is not None
        rows, columns = x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size
        assert rows * columns == num_patches
        return rows, columns

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
) -> Backbone:
    """A randomly initialised backbone.

    `name` is a timm name, `args` go to `timm.create_model`, `image_size` (pixels) fixes the stored position grid of
    a ViT, `drop_path` is the rate of stochastic depth. Raises UsageError for names and arguments timm doesn't know.
    """
    if not timm.is_model(name):
        raise UsageError(
            f"There is no backbone {name!r} in timm {timm.__version__}.{nearest(name, timm.list_models())}\n"
            "`nolabel list backbones` shows a selection."
        )
    options: dict[str, Any] = dict(args or {})
    if _is_plain_vit(name):
        options = {"dynamic_img_size": True, **options}
        if image_size is not None:
            options = {"img_size": image_size, **options}
    if drop_path and not _is_resnet(name):
        options["drop_path_rate"] = drop_path
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UsageError(f"timm could not build {name} with {options}: {error}") from error
    if isinstance(model, VisionTransformer):
        _initialize_vit(model)
    net = Backbone(model, name, {k: v for k, v in options.items() if k != "drop_path_rate"})
    if grad_checkpointing:
        net.model.set_grad_checkpointing()
    return net


def _is_plain_vit(name: str) -> bool:
    return timm.model_entrypoint(name).__module__ == VisionTransformer.__module__


def _is_resnet(name: str) -> bool:
    """ResNets of the papers have no stochastic depth."""
    return timm.model_entrypoint(name).__module__ == "timm.models.resnet"


def _initialize_vit(model: VisionTransformer) -> None:
    """timm's initialisation is DINO's (A1.1) but for the class token (std 1e-6 against 0.02)."""
    if model.cls_token is not None:
        nn.init.trunc_normal_(model.cls_token, std=0.02)


def parse_args(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`("patch_size=4", "layers=[1,1,1,1]")` as a mapping; values are YAML scalars or lists, lists become tuples."""
    import yaml

    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UsageError(f"--backbone-args takes key=value pairs such as patch_size=4, not {pair!r}.")
        try:
            loaded = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(
                f"--backbone-args {pair!r} has no readable value: {str(error).splitlines()[0]}."
            ) from error
        parsed[key] = tuple(loaded) if isinstance(loaded, list) else loaded
    return parsed


def cosine_to_pooled(features: Features) -> Tensor:
    """(B, N) cosine of each location with the pooled feature: what stands in for attention in a CNN."""
    return F.cosine_similarity(features.patches, features.pooled[:, None], dim=-1)
