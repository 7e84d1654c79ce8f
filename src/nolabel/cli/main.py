"""The command line. `--help`, `list` and wrong names are answered from here, without importing torch."""

import os
import sys
from collections.abc import Sequence

from nolabel import console
from nolabel.catalog import BACKBONES, PROTOCOLS, describe_sources, measured_backbones
from nolabel.errors import NolabelError, StorageError, UsageError, nearest
from nolabel.recipes import RECIPES, find
from nolabel.version import __version__

HELP = f"""nolabel {__version__}: self-supervised visual pre-training on a folder of images

  nolabel train RECIPE DATA --out RUN       pre-train a backbone (every setting: nolabel train RECIPE --help)
  nolabel resume RUN                        go on with a run that was stopped
  nolabel eval PROTOCOL WEIGHTS DATA        measure features: nolabel list protocols
  nolabel show attention|pca|matches WEIGHTS IMAGE... --out DIR     look inside
  nolabel embed WEIGHTS DATA --out F        features as .npz or .parquet
  nolabel export WEIGHTS --to timm --out F  weights in the format of another tool
  nolabel pack DATA --out SHARDS            the images in a few large files, for fast reading
  nolabel check DATA                        what is in the data, and what training will skip
  nolabel report RUN                        write RUN/report.html again
  nolabel list recipes|backbones [--all]|protocols
  nolabel demo [--out RUN]                  the whole tour on pictures made on the spot, minutes on a laptop CPU

DATA: {describe_sources()}.
Labelled DATA: train/ and val/ (or test/) of class folders, or class folders.
WEIGHTS: a run, a folder in timm's layout, a .safetensors file with --backbone NAME, or random:BACKBONE.
Results go to stdout, progress to stderr. nolabel uses no network and sends nothing anywhere."""


NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed", "Unable to allocate")
"""Words of torch and numpy for what does not fit into memory; their errors have no type of their own."""


COMMANDS = ("train", "resume", "eval", "embed", "export", "pack", "show", "check", "report", "list", "demo")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `nolabel` command; leaves through SystemExit with a code of docs/reference/exit-codes.md."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    with console.kept_streams() as why_lost:
        code = _exit_code(args)
        if not code and (reason := why_lost()):
            console.note(f"nolabel: the result could not be written to stdout: {reason}.")
            code = StorageError.code
    if code is not None:
        sys.exit(code)


def _exit_code(args: list[str]) -> str | int | None:
    """Run a command; None where it ended without a code of its own."""
    try:
        _run(args)
    except NolabelError as error:
        if os.environ.get("NOLABEL_DEBUG"):
            raise
        console.note(f"nolabel: {error}")
        return error.code
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:  # of the parser of options
        return error.code
    except Exception as error:
        if os.environ.get("NOLABEL_DEBUG"):
            raise
        known = _of_the_machine(error)
        if known is not None:
            console.note(f"nolabel: {known}")
            return known.code
        console.note(f"nolabel: internal error, {type(error).__name__}: {error}")
        console.note("Please report it with what NOLABEL_DEBUG=1 shows before the same command.")
        return 1
    return None


def _of_the_machine(error: Exception) -> NolabelError | None:
    """The error in words where a disk, a permission or the memory is the reason; None for a bug."""
    if isinstance(error, OSError):
        names = [str(name)[:300] for name in (error.filename, error.filename2) if name is not None]
        return StorageError(
            f"{' and '.join(names) or 'A file'} cannot be read or written: {error.strerror or error}.\n"
            "Expected a place that this user may read and write, with room on the disk. Mend it, or name another place."
        )
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY):
        return UsageError(
            f"There is not enough memory ({text.strip().partition(chr(10))[0][:200] or type(error).__name__}).\n"
            "Use fewer images at once (--batch-size, --micro-batch), smaller images or a smaller network."
        )
    return None


def _run(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help", "help"):
        console.result(HELP)
    elif args[0] in ("-V", "--version"):
        console.result(f"nolabel {__version__}")
    elif args[0] not in COMMANDS:
        raise UsageError(f"There is no command {args[0]!r}.{nearest(args[0], COMMANDS)}\n`nolabel --help` lists them.")
    elif args[0] == "list":
        _list(args[1:])
    else:
        _check_names(args)
        from nolabel.cli.commands import run  # imports torch

        run(args[0], args[1:])


def _check_names(args: list[str]) -> None:
    """Answer a wrong recipe, protocol or picture before torch is imported."""
    name = args[1] if len(args) > 1 else ""
    if args[0] == "train" and not name.startswith("-"):
        if not name:
            raise UsageError("nolabel train RECIPE DATA --out RUN: RECIPE is missing; see `nolabel list recipes`.")
        find(name)
    choices = {"eval": tuple(PROTOCOLS), "show": ("attention", "pca", "matches")}.get(args[0])
    if choices and name not in (*choices, "-h", "--help"):
        given = f"There is no `nolabel {args[0]} {name}`.{nearest(name, choices)} " if name else ""
        raise UsageError(f"{given}Choose one of: nolabel {args[0]} {'|'.join(choices)} ...")


def _list(args: list[str]) -> None:
    if args == ["backbones", "--all"]:
        measured = measured_backbones()
        _print_table({name: f"{sizes} ({family})" for name, (family, sizes) in measured.items()})
        console.result(
            f"\nMeasured: {len(measured)} networks, one or two of each family of timm, with the sizes of images they "
            "take.\nOthers of a family work alike. Each network is checked when it is built, before any training."
        )
        return
    tables = {
        "recipes": {name: recipe.summary for name, recipe in RECIPES.items()},
        "backbones": BACKBONES,
        "protocols": PROTOCOLS,
    }
    if len(args) != 1 or args[0] not in tables:
        wrong = f"There is nothing to list under {args[0]!r}.{nearest(args[0], tables)} " if args else ""
        raise UsageError(f"{wrong}Choose one of: nolabel list {'|'.join(tables)}")
    _print_table(tables[args[0]])
    if args[0] == "backbones":
        console.result(
            "\nA selection: any ViT size and patch, ResNet, XCiT, ConvNeXt. Every family of timm with a feature map:\n"
            "nolabel list backbones --all"
        )


def _print_table(table: dict[str, str]) -> None:
    width = max(map(len, table))
    for name, summary in table.items():
        console.result(f"{name:<{width}}  {summary}")
