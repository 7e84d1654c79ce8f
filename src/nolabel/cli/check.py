"""`nolabel check`."""

import json
from dataclasses import dataclass

from nolabel import console
from nolabel.cli.arguments import AnyImages, parse
from nolabel.data.check import as_dict, check, format_check


@dataclass(frozen=True)
class CheckOptions:
    """Report what is in the data, and which files training will skip and why. Decodes every image."""

    data: AnyImages
    range: tuple[float, float] | None = None
    """Values that become black and white in files of more than 8 bits, as in training."""
    json: bool = False
    """Print everything as JSON."""


def run_check(args: list[str]) -> None:
    options = parse(CheckOptions, args, "nolabel check")
    result = check(options.data, limits=options.range)
    console.result(json.dumps(as_dict(result), indent=2) if options.json else format_check(result))
