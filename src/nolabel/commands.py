"""The commands that do work. Options are typed dataclasses; tyro reads them, its help is generated from them."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro
from tyro.conf import Positional

from nolabel import recipes, tour
from nolabel.api import evaluate_loaded, file_config
from nolabel.config import find_device
from nolabel.data.check import as_dict, check, format_check
from nolabel.embed import embed
from nolabel.errors import UsageError
from nolabel.estimate import estimate, format_estimate
from nolabel.evals.all import EVERY, format_all
from nolabel.evals.protocol import EvalConfig, format_result
from nolabel.job import OLD_DEFAULTS, config_from, recipe_config
from nolabel.pack import run as pack
from nolabel.report import report
from nolabel.run import Run
from nolabel.show import show
from nolabel.train import resume, train
from nolabel.weights import load_weights


def run(command: str, args: list[str]) -> None:
    """Run one command of COMMANDS with the arguments after its name."""
    COMMANDS[command](args)


C = TypeVar("C", bound=EvalConfig)
Weights = Annotated[str, Positional, tyro.conf.arg(metavar="WEIGHTS")]
Data = Annotated[str, Positional, tyro.conf.arg(metavar="DATA")]

TRAIN_HELP = (
    "Pre-train a backbone on the images of DATA; --out names the new run folder. Besides the options below: --dry-run "
    "only says what would happen, --overwrite replaces an earlier run, --config FILE starts from its settings. "
    "`auto` is resolved before the first step and kept on resume."
)


def _train(args: list[str]) -> None:
    overwrite, dry = _take_flag(args, "--overwrite"), _take_flag(args, "--dry-run")
    file = _take_value(args, "--config")
    recipe = args.pop(0) if args and not args[0].startswith("-") and not file else None
    if not recipe and not file:
        print(
            "nolabel train RECIPE DATA --out RUN [options]      start from a recipe: nolabel list recipes\n"
            "nolabel train --config FILE [DATA] --out RUN       start from the config.yaml of another run\n\n"
            "  --overwrite    replace the run at RUN\n"
            "  --dry-run      only say what would happen\n\n"
            "Every other option: nolabel train dino --help"
        )
        return
    if any(a.split("=")[0] == "--epochs" for a in args) and any(a.split("=")[0] == "--steps" for a in args):
        raise UsageError("--epochs and --steps both say how long to train: give one of them.")
    default = file_config(Path(file)) if file else recipe_config(recipe or "")
    title = f"nolabel train {recipe or '--config FILE'}"
    config = _parse(type(default)[type(default.method)], args, title, default, TRAIN_HELP)  # type: ignore[index]
    if not (config.data and config.out):
        raise UsageError(f"{title} DATA --out RUN: {'--out RUN' if config.data else 'DATA'} is missing.")
    if dry:
        print(format_estimate(config, estimate(config)))
    else:
        say_weights(train(config, overwrite))


RESUME_HELP = (
    "Go on with the run at RUN from its newest checkpoint. Options change settings from here on: some are safe, such "
    "as --workers, --epochs or --eval-every; others, such as --optim.lr, need --allow-change, too; what the saved "
    "state does not fit is refused."
)


def _resume(args: list[str]) -> None:
    allow = _take_flag(args, "--allow-change")
    if not args or args[0].startswith("-"):
        raise UsageError("Usage: nolabel resume RUN [options]      every option: nolabel resume RUN --help")
    found = Run(args.pop(0))
    changed: dict[str, Any] = {}
    if args:
        stored = config_from(OLD_DEFAULTS | found.config() | {"out": str(found.path)}, str(found.path / "config.yaml"))
        kind = type(stored)[type(stored.method)]  # type: ignore[index]
        asked = _parse(kind, args, f"nolabel resume {found.path}", stored, RESUME_HELP)
        changed = dataclasses.asdict(asked)
    if found.status()["state"] == "done" and not changed:
        print(f"{found.path} is finished: nothing to do.", file=sys.stderr)
    say_weights(resume(found.path, changed, allow))


@dataclass(frozen=True)
class EvalOptions(Generic[C]):
    """Where the weights and the data are; the settings of the protocol."""

    weights: Weights
    """A run, a folder in timm's layout, a .safetensors file, random:BACKBONE, or a cached timm name."""
    data: Data
    """What is measured on; docs/evals has a page for each protocol with the layouts it takes."""
    settings: Annotated[C, tyro.conf.arg(name="")]
    out: Path | None = None
    """File for the result; by default RUN/eval/PROTOCOL.json for a run, else only stdout."""
    backbone: str | None = None
    """timm name of a bare weight file."""
    allow_pth: bool = False
    """Read a .pth file from a source you trust; only its tensors."""
    json: bool = False
    """Print the result as JSON."""


def _eval(args: list[str]) -> None:
    if args[0] in ("-h", "--help"):
        print("nolabel eval PROTOCOL WEIGHTS DATA [options]\n\nProtocols: nolabel list protocols")
        print("Every option: nolabel eval knn --help")
        return
    name, protocol = args[0], EVERY[args[0]]
    default = EvalOptions(tyro.MISSING, tyro.MISSING, protocol.Config(device="auto"))
    summary = recipes.PROTOCOLS[name]
    about = f"{summary[0].upper()}{summary[1:]}. docs/evals/{name}.md says exactly what is measured."
    options = _parse(EvalOptions[protocol.Config], args[1:], f"nolabel eval {name}", default, about)  # type: ignore[name-defined]
    loaded = load_weights(options.weights, options.backbone, options.allow_pth)
    settings = dataclasses.replace(options.settings, device=str(find_device(options.settings.device)))
    result = evaluate_loaded(name, loaded, Path(options.weights), options.data, options.out, settings)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print(format_all(result) if name == "all" else format_result(result, protocol))


@dataclass(frozen=True)
class CheckOptions:
    """What is in the data, and what training will skip and why. Decodes every image."""

    data: Data
    """A folder, a zip, shards, or a text file of paths."""
    json: bool = False
    """Print everything as JSON."""


def _check(args: list[str]) -> None:
    options = _parse(CheckOptions, args, "nolabel check")
    found = check(options.data)
    print(json.dumps(as_dict(found), indent=2) if options.json else format_check(found))


def _report(args: list[str]) -> None:
    print(report(Run(_only(args, "nolabel report RUN"))))


@dataclass(frozen=True)
class DemoOptions:
    """The whole tour on pictures of a small made-up world: train, measure, look, hand over the weights."""

    out: Path = Path("nolabel-demo")
    """Run folder; the pictures lie beside it in OUT-world."""
    recipe: Literal["simclr-small", "dino-small"] = "simclr-small"
    """SimCLR learns in minutes; DINO needs thousands of steps: give it more --minutes."""
    minutes: float = 3.0
    """Training time on this machine, measured before the start."""
    seed: int = 0
    overwrite: bool = False
    """Replace an earlier demo at OUT."""


def _demo(args: list[str]) -> None:
    o = _parse(DemoOptions, args, "nolabel demo")
    tour.demo(o.out, o.recipe, o.minutes, o.seed, o.overwrite)


def say_weights(finished: Run) -> None:
    """What a user needs at the end: where the weights are, and how to load them."""
    if os.environ.get("RANK", "0") == "0":  # the other processes of torchrun keep silent; the group is gone by now
        print(tour.ending(finished))


def _parse(kind: Any, args: Sequence[str], program: str, default: Any = None, help: str | None = None) -> Any:
    given = {} if default is None else {"default": default}
    return tyro.cli(kind, prog=program, args=args, description=help, **given)


def _take_flag(args: list[str], flag: str) -> bool:
    found = flag in args
    if found:
        args.remove(flag)
    return found


def _take_value(args: list[str], option: str) -> str | None:
    for i, arg in enumerate(args):
        if arg.startswith(option + "="):
            return args.pop(i).partition("=")[2]
        if arg == option:
            if i + 1 == len(args):
                raise UsageError(f"{option} takes a file.")
            args.pop(i)
            return args.pop(i)
    return None


def _only(args: Sequence[str], usage: str) -> str:
    if len(args) != 1 or args[0].startswith("-"):
        raise UsageError(f"Usage: {usage}")
    return args[0]


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "resume": _resume,
    "eval": _eval,
    "embed": embed,
    "pack": pack,
    "show": show,
    "check": _check,
    "report": _report,
    "demo": _demo,
}
