"""`nolabel report`."""

from nolabel import console
from nolabel.cli.arguments import only_argument
from nolabel.report import report
from nolabel.runs.folder import Run


def run_report(args: list[str]) -> None:
    console.result(str(report(Run(only_argument(args, "nolabel report RUN")))))
