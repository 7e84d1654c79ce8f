"""`nolabel embed`: features of any images in a file for other tools."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from nolabel import console
from nolabel.cli.arguments import AnyImages
from nolabel.config import find_device
from nolabel.errors import UsageError
from nolabel.evals.embed import check_format, embed_images, is_embedding
from nolabel.evals.protocol import EvalConfig, check_common
from nolabel.evals.shared.pieces import Layout
from nolabel.networks.precision import Precision
from nolabel.weights.load import load_weights


@dataclass(frozen=True)
class EmbedOptions:
    """Write the features of all images of DATA to one file. docs/reference/embed.md describes it."""

    weights: Annotated[str, Positional, tyro.conf.arg(metavar="WEIGHTS")]
    """Weights: a run, a folder in timm's layout, a .safetensors file, random:BACKBONE, or a cached timm name."""
    data: AnyImages
    out: Path
    """File to write: FILE.npz or FILE.parquet."""
    labelled: bool = False
    """Write split and class, too: DATA has class folders, with or without splits. Other images are left out."""
    blocks: int = 1
    """Number of last blocks of a plain ViT whose class tokens are joined, earlier first."""
    mean_patches: bool = False
    """Join the mean of the last block's patches, too (plain ViTs)."""
    before_norm: bool = False
    """Take class tokens before the final norm (plain ViTs)."""
    overwrite: bool = False
    """Replace the file at --out."""
    image_size: int | None = None
    """Side of the image that the network sees, in pixels; by default that of the weights."""
    precision: Precision = "fp32"
    """Precision of forward passes: fp32, or mixed with bf16 or fp16."""
    device: str = "auto"
    """Device on which features are computed."""
    batch_size: int = 128
    """Images per forward pass."""
    workers: int = 0
    """Processes that decode images."""
    range: tuple[float, float] | None = None
    """Values that become black and white in files of more than 8 bits; by default those of the weights."""
    cache: bool = True
    """Keep features on disk, in RUN/eval/cache or $NOLABEL_CACHE, and use those that are there."""
    backbone: str | None = None
    """timm name of a bare weight file."""
    allow_pth: bool = False
    """Read a .pth file from a source you trust; only its tensors."""


def embed(args: list[str]) -> None:
    """Run the command with the arguments after its name."""
    o = tyro.cli(EmbedOptions, prog="nolabel embed", args=args)
    if o.out.exists() and not o.overwrite:
        raise UsageError(f"{o.out} exists: choose another --out, or --overwrite.")
    check_format(o.out)
    if os.path.lexists(o.out) and not is_embedding(o.out):
        raise UsageError(f"{o.out} was not written by nolabel embed, so it is not replaced: choose another --out.")
    config = EvalConfig(
        image_size=o.image_size,
        precision=o.precision,
        device=str(find_device(o.device)),
        batch_size=o.batch_size,
        workers=o.workers,
        range=o.range,
        cache=o.cache,
    )
    check_common(config)
    loaded = load_weights(o.weights, o.backbone, o.allow_pth)
    layout = Layout(o.blocks, o.mean_patches)
    done = embed_images(loaded, o.data, o.out, layout, config, o.before_norm, o.labelled)
    if done.num_unreadable:
        left_out = f"{done.num_unreadable} images that can't be read are left out"
        console.note(f"{left_out}: `nolabel check {o.data}` reports why")
    console.result(f"{done.path}: {done.num_images} images, {done.width} numbers each")
