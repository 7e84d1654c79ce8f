"""`nolabel pack`: the images of DATA in a few large files, for fast and exact reading."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from nolabel import console
from nolabel.cli.arguments import AnyImages
from nolabel.data.names import printable
from nolabel.data.packing import Packing, pack
from nolabel.errors import UsageError


@dataclass(frozen=True)
class PackOptions:
    """Pack the images of DATA into a few tar files with an index. docs/reference/data-formats.md explains when."""

    data: AnyImages
    out: Path
    """New folder for the shards."""
    short_side: int | None = None
    """Shrink larger images until their shorter side has this many pixels, as JPEG; by default files stay."""
    quality: int = 95
    """Quality of these JPEGs, 1 to 100."""
    shard_mb: int = 256
    """Megabytes per shard."""
    subfolder: str | None = None
    """Pack only the images below this folder of DATA."""
    threads: int | None = None
    """Threads that read, decode and encode; by default one per core, at most 8."""


def run(args: list[str]) -> None:
    """Run the command with the arguments after its name."""
    o = tyro.cli(PackOptions, prog="nolabel pack", args=args)
    if o.threads is not None and o.threads < 1:
        raise UsageError(f"--threads {o.threads} is too few: 1 or more.")
    packing = Packing(o.short_side, o.quality, o.shard_mb, o.threads)
    done = pack(o.data, o.out, packing, o.subfolder, _progress if console.live().isatty() else None)
    for bad in done.left_out[:5]:
        console.note(f"left out {printable(bad.name)}: {bad.reason}, {printable(bad.detail)}")
    if len(done.left_out) > 5:
        console.note(f"and {len(done.left_out) - 5} more")
    resized = f", {done.num_resized:,} of them made smaller" if o.short_side else ""
    shards = f"{done.num_shards} shard" + "s" * (done.num_shards > 1)
    what = f"{done.num_images:,} images{resized}, {shards}, {done.bytes / 1e6:,.1f} MB"
    console.result(f"{printable(str(done.path))}: {what}, fingerprint {done.fingerprint}")


def _progress(done: int, total: int) -> None:
    console.note(f"{done:,} of {total:,}", end="\r" if done < total else "\n")
