"""`nolabel resume`."""

import dataclasses
from typing import Any

from nolabel import console
from nolabel.cli.arguments import parse, take_flag
from nolabel.cli.help import format_help
from nolabel.cli.train import print_weights
from nolabel.config.load import load_run
from nolabel.errors import UsageError
from nolabel.runs.folder import Run
from nolabel.training.start import resume

RESUME_HELP = (
    "Go on with the run at RUN from its newest checkpoint. Options change settings from here on: some are safe, such "
    "as --workers, --epochs or --eval-every; others, such as --optim.lr, need --allow-change, too; what the saved "
    "state does not fit is refused."
)


def run_resume(args: list[str]) -> None:
    allow = take_flag(args, "--allow-change")
    if not args or args[0].startswith("-"):
        raise UsageError("Usage: nolabel resume RUN [options]      every option: nolabel resume RUN --help")
    run = Run(args.pop(0))
    changed: dict[str, Any] = {}
    if args:
        stored = load_run(run.path)
        kind = type(stored)[type(stored.method)]  # type: ignore[index]
        if any(a in ("-h", "--help") for a in args):
            console.result(format_help(stored, f"nolabel resume {run.path} [options]", RESUME_HELP))
            return
        asked = parse(kind, args, f"nolabel resume {run.path}", stored, RESUME_HELP)
        changed = dataclasses.asdict(asked)
    if run.status()["state"] == "done" and not changed:
        console.note(f"{run.path} is finished: nothing to do.")
    print_weights(resume(run.path, changed, allow))
