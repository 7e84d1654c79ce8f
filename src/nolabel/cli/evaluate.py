"""`nolabel eval`."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from nolabel import console
from nolabel.api import evaluate_loaded
from nolabel.catalog import PROTOCOLS
from nolabel.cli.arguments import Data, Weights, parse
from nolabel.config import find_device
from nolabel.errors import ResultNotWritten
from nolabel.evals.all import EVERY, format_all
from nolabel.evals.protocol import EvalConfig, format_result
from nolabel.weights.load import load_weights

C = TypeVar("C", bound=EvalConfig)


@dataclass(frozen=True)
class EvalOptions(Generic[C]):
    """Weights and data; settings of the protocol."""

    weights: Weights
    """Weights: a run, a folder in timm's layout, a .safetensors file, random:BACKBONE, or a cached timm name."""
    data: Data
    """Images to measure on; docs/evals has a page for each protocol with the layouts it takes."""
    settings: Annotated[C, tyro.conf.arg(name="")]
    out: Path | None = None
    """File for the result; by default RUN/eval/PROTOCOL.json for a run, else only stdout."""
    backbone: str | None = None
    """timm name of a bare weight file."""
    allow_pth: bool = False
    """Read a .pth file from a source you trust; only its tensors."""
    json: bool = False
    """Print the result as JSON."""


def run_evaluate(args: list[str]) -> None:
    if args[0] in ("-h", "--help"):
        console.result(
            "nolabel eval PROTOCOL WEIGHTS DATA [options]\n\nProtocols: nolabel list protocols\n"
            "Every option: nolabel eval knn --help"
        )
        return
    name, protocol = args[0], EVERY[args[0]]
    default = EvalOptions(tyro.MISSING, tyro.MISSING, protocol.Config(device="auto"))
    summary = PROTOCOLS[name]
    about = f"{summary[0].upper()}{summary[1:]}. docs/evals/{name}.md describes exactly what is measured."
    options = parse(EvalOptions[protocol.Config], args[1:], f"nolabel eval {name}", default, about)  # type: ignore[name-defined]
    loaded = load_weights(options.weights, options.backbone, options.allow_pth)
    settings = dataclasses.replace(options.settings, device=str(find_device(options.settings.device)))
    try:
        result = evaluate_loaded(name, loaded, Path(options.weights), options.data, options.out, settings)
    except ResultNotWritten as error:  # hours may be in it
        _print(error.result, name, options.json)
        raise
    _print(result, name, options.json)


def _print(result: dict[str, Any], name: str, as_json: bool) -> None:
    if as_json:
        console.result(json.dumps(result, indent=2))
    else:
        console.result(format_all(result) if name == "all" else format_result(result, EVERY[name]))
