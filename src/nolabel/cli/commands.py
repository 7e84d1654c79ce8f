"""The table of commands that do work."""

from collections.abc import Callable

from nolabel.cli.check import run_check
from nolabel.cli.demo import run_demo
from nolabel.cli.embed import embed
from nolabel.cli.evaluate import run_evaluate
from nolabel.cli.export import run_export
from nolabel.cli.pack import run as pack
from nolabel.cli.report import run_report
from nolabel.cli.resume import run_resume
from nolabel.cli.show import show
from nolabel.cli.train import run_train


def run(command: str, args: list[str]) -> None:
    """Run one command of COMMANDS with the arguments after its name."""
    COMMANDS[command](args)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": run_train,
    "resume": run_resume,
    "eval": run_evaluate,
    "embed": embed,
    "export": run_export,
    "pack": pack,
    "show": show,
    "check": run_check,
    "report": run_report,
    "demo": run_demo,
}
