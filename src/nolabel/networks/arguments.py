"""Arguments of a backbone, from the command line, a config.yaml or an untrusted config.json.

Only names that shape a network are let through, with plain values of bounded size: timm takes others, such as
`checkpoint_path`, that open files, load weights or name classes.
"""

import os
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from nolabel.errors import UsageError, nearest

_COUNTS = """
    depth depths depth_list depth_token_only serial_depths transformer_depths layers stages num_blocks num_blocks_list
    block_config cls_attn_layers
"""


COUNTS = frozenset(_COUNTS.split())
"""Names of numbers of blocks: each block costs time and memory, however small it is."""


_SIZES = """
    img_size patch_size patch_sizes patch_stride patch_kernel patch_padding in_chans embed_dim embed_dims dim dims
    dim_mul channels width widths hidden_sizes base_dim base_dims base_width cardinality groups growth_rate
    growth_rates bn_size num_features head_hidden_size num_heads num_kv_heads heads head_dim head_mul key_dim
    attn_ratio mlp_ratio mlp_ratios expand_ratio sr_ratios window_size window_sizes window_ratio kernel_size
    kernel_sizes stride strides output_stride q_stride mask_unit_size stem_type stem_width stem_chs stem_size
    stem_stride stem_kernel_size reg_tokens num_reg_tokens down_kernel_size block_reduce_first pretrained_window_sizes
"""


_PARTS = """
    class_token no_embed_class pos_embed use_pos_embed use_abs_pos use_abs_pos_emb use_rel_pos use_rel_pos_bias
    use_shared_rel_pos_bias shared_rel_pos use_rot_pos_emb dynamic_img_size dynamic_img_pad strict_img_size
    ref_feat_shape rope_type rope_temperature rope_grid_indexing rope_grid_offset rope_rotate_half attn_type qkv_bias
    qkv_fused qk_norm proj_bias mlp_bias conv_bias pre_norm final_norm fc_norm use_fc_norm patch_norm tokens_norm
    use_post_norm head_norm head_norm_first scale_mlp scale_mlp_norm scale_attn_inner scale_attn_norm swiglu_mlp
    conv_mlp use_grn avg_down use_conv always_partition replace_stem_pool zero_init_last
"""


_BETWEEN = """
    global_pool pool_include_prefix act_layer norm_layer norm_eps pad_type init_values ls_init_value layerscale_value
    layer_scale_init_value layer_scale_init_values eta drop_rate attn_drop_rate proj_drop_rate pos_drop_rate
    patch_drop_rate drop_path_rate drop_block_rate
"""


SHAPES = frozenset(f"{_SIZES} {_PARTS} {_BETWEEN}".split())
"""Names of other arguments that shape a network: sizes, optional parts, and operations between its weights."""


MOST_BLOCKS, LARGEST, MOST_VALUES, LONGEST = 1000, 65_536, 256, 100
"""Limits: blocks in all; absolute value of a number; numbers in a list; letters of a word."""


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
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"--backbone-args {pair[:100]!r} has no readable value: {first[:200]}.") from error
        parsed[key] = as_tuples(loaded)
    return parsed


def as_tuples(value: Any) -> Any:
    """`value` with its lists as tuples, as deep as `check_args` allows."""
    if not isinstance(value, list):
        return value
    return tuple(tuple(v) if isinstance(v, list) else v for v in value)


def check_args(name: str, args: Mapping[str, Any]) -> None:
    """UsageError for an argument that does not shape a network, or a value that no network has."""
    for key, value in args.items():
        if key not in COUNTS | SHAPES:
            raise UsageError(
                f"{name} takes no argument {str(key)[:LONGEST]!r}.{nearest(str(key)[:LONGEST], COUNTS | SHAPES)} "
                "Only what shapes the network can be set, never files or weights.\n"
                "Some recipes bring arguments for their own backbone: --backbone-args replaces them (alone: none)."
            )
        problem = _problem(key, value)
        if problem:
            raise UsageError(f"The argument {key} of {name} cannot be {repr(value)[:LONGEST]}: expected {problem}.")


def _problem(key: str, value: Any) -> str:
    """Describe what is expected instead of `value`; an empty string if it may be tried."""
    values = list(chain.from_iterable(v if isinstance(v, tuple) else (v,) for v in _several(value)))
    if len(values) > MOST_VALUES:
        return f"at most {MOST_VALUES} values"
    if not all(v is None or isinstance(v, (bool, int, float, str)) for v in values):
        return "a number, a word, true or false, or a list of these"
    numbers = [v for v in values if isinstance(v, (int, float))]
    if not all(abs(v) <= LARGEST for v in numbers):  # also refuses NaN
        return f"numbers from -{LARGEST} to {LARGEST}"
    if key in COUNTS and sum(numbers) > MOST_BLOCKS:
        return f"at most {MOST_BLOCKS} blocks"
    if key == "in_chans" and value != 3:
        return "3: nolabel reads images as RGB only"
    return f"at most {LONGEST} letters" if any(isinstance(v, str) and len(v) > LONGEST for v in values) else ""


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def check_size(name: str, build: Callable[[], nn.Module], most_bytes: int | None) -> None:
    """UsageError if the network has more bytes than `most_bytes`, or than this machine has; it takes no memory here."""
    most = _memory() if most_bytes is None else min(most_bytes, _memory())
    try:
        with torch.device("meta"):
            network = build()
    except Exception:  # the error is reported where the network is really built
        return
    size = sum(t.numel() * t.element_size() for t in chain(network.parameters(), network.buffers()))
    if size > most:
        raise UsageError(f"{name} would take {size / 2**30:,.1f} GiB, and there is room for {most / 2**30:,.1f} GiB.")


def _memory() -> int:
    """Bytes of this machine's memory; 64 GiB where the system does not report it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**36
