"""`nolabel export`: weights in the format of another tool, opened there and compared."""

from dataclasses import dataclass
from pathlib import Path

from nolabel import console
from nolabel.cli.arguments import Weights, parse
from nolabel.errors import UsageError, nearest
from nolabel.weights import FORMATS
from nolabel.weights.format import export
from nolabel.weights.load import load_weights


@dataclass(frozen=True)
class ExportOptions:
    """Write weights in the format of another tool, open them in that tool, and compare the features."""

    weights: Weights
    """Weights: a run, a folder in timm's layout, a .safetensors file, random:BACKBONE, or a cached timm name."""
    to: str
    """Format of the export: timm."""
    out: Path
    """New folder or file to write."""
    backbone: str | None = None
    """timm name of a bare weight file."""
    allow_pth: bool = False
    """Read a .pth file from a source you trust; only its tensors."""


def run_export(args: list[str]) -> None:
    """Run the command with the arguments after its name."""
    options = parse(ExportOptions, args, "nolabel export")
    if options.to not in FORMATS:
        raise UsageError(
            f"There is no format {options.to!r}.{nearest(options.to, FORMATS)}\nChoose one of: {', '.join(FORMATS)}."
        )
    if options.out.exists() and not (options.out.is_dir() and not any(options.out.iterdir())):
        raise UsageError(f"{options.out} exists: choose another --out, or remove it first.")
    loaded = load_weights(options.weights, options.backbone, options.allow_pth)
    difference = export(loaded, FORMATS[options.to], options.out)
    console.result(f"{options.out}: {FORMATS[options.to].about}; features differ by {difference:.1e} of the largest")
