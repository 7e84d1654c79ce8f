"""`nolabel train`."""

import os
from pathlib import Path

from nolabel import console
from nolabel.cli.arguments import parse, take_flag, take_value
from nolabel.cli.help import format_help
from nolabel.config.load import check_length, load_file, load_recipe
from nolabel.errors import UsageError
from nolabel.runs.folder import Run, check_apart
from nolabel.training.dry_run import estimate, format_estimate
from nolabel.training.start import train

TRAIN_HELP = (
    "Pre-train a backbone on the images of DATA; --out names the new run folder. Besides the options below: --dry-run "
    "only reports what would happen, --overwrite replaces an earlier run, --config FILE starts from its settings. "
    "`auto` is resolved before the first step and kept on resume."
)


def run_train(args: list[str]) -> None:
    overwrite, dry = take_flag(args, "--overwrite"), take_flag(args, "--dry-run")
    file = take_value(args, "--config")
    recipe = args.pop(0) if args and not args[0].startswith("-") and not file else None
    if not recipe and not file:
        console.result(
            "nolabel train RECIPE DATA --out RUN [options]      start from a recipe: nolabel list recipes\n"
            "nolabel train --config FILE [DATA] --out RUN       start from the config.yaml of another run\n\n"
            "  --overwrite    replace the run at RUN\n"
            "  --dry-run      only report what would happen\n\n"
            "Every other option: nolabel train dino --help"
        )
        return
    check_length([a.split("=")[0].removeprefix("--") for a in args])
    default = load_file(Path(file)) if file else load_recipe(recipe or "")
    title = f"nolabel train {recipe or '--config FILE'}"
    if any(a in ("-h", "--help") for a in args):
        console.result(format_help(default, f"{title} DATA --out RUN [options]", TRAIN_HELP))
        return
    config = parse(type(default)[type(default.method)], args, title, default, TRAIN_HELP)  # type: ignore[index]
    if not (config.data and config.out):
        raise UsageError(f"{title} DATA --out RUN: {'--out RUN' if config.data else 'DATA'} is missing.")
    if overwrite and file:
        check_apart(Path(config.out), {"--config": file})
    if dry:
        console.result(format_estimate(config, estimate(config)))
    else:
        print_weights(train(config, overwrite))


def print_weights(finished: Run) -> None:
    """Closing words for the user: where the weights are, and how to load them."""
    if os.environ.get("RANK", "0") == "0":  # the other processes of torchrun keep silent; the group is gone by now
        console.closing_words(closing_words(finished))


def closing_words(run: Run) -> str:
    """Closing words for the user: where the weights are, and three lines that load them."""
    return (
        f"The weights are in {run.path}/weights. Load them with\n\n"
        "    import timm\n"
        f'    model = timm.create_model("local-dir:{run.path}/weights", pretrained=True)\n'
        "    model.eval()\n\n"
        f"The report is {run.path}/report.html."
    )
