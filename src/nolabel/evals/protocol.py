"""What every evaluation protocol shares: common settings, the record of what was measured, the untrained floor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nolabel.errors import UsageError
from nolabel.networks.backbones import backbone
from nolabel.weights.load import Loaded


@dataclass(frozen=True)
class EvalConfig:
    """Settings that every protocol has."""

    image_size: int | None = None
    """Side of the image that the network sees, in pixels; by default that of the weights."""
    seed: int = 0
    """Of everything random, such as the weights of the untrained floor."""
    floor: bool = True
    """Measure what needs no training, too: random weights, raw pixels."""
    precision: str = "fp32"
    """fp32, bf16 or fp16."""
    device: str = "cpu"
    """Where features are computed."""
    batch_size: int = 128
    """Images a forward pass."""
    workers: int = 0
    """Processes that decode images."""
    cache: bool = True
    """Keep features on disk, in RUN/eval/cache or $NOLABEL_CACHE, and use those that are there."""


def anything(_data: str | Path) -> str | None:
    """No opinion: a protocol that does not say beforehand which data it takes."""
    return None


class Protocol(NamedTuple):
    """An evaluation protocol as commands and Python see it."""

    title: str
    """What its numbers are, for the table."""
    Config: type[EvalConfig]
    evaluate: Callable[[Loaded, str | Path, Any, Path | None], dict[str, Any]]
    """(weights, DATA, settings, file for the result or None) to the result, which is also written to the file."""
    columns: Callable[[Mapping[str, Any]], dict[str, float | str]]
    """`metrics` of a result, or one of its floors, as the columns of the table."""
    accepts: Callable[[str | Path], str | None] = anything
    """None where DATA fits, else why not, in one line; quick, as it opens no image."""
    unasked: bool = True
    """Whether `eval all` runs it without being told: not what trains the backbone or takes hours."""


def check_common(config: EvalConfig) -> None:
    """UsageError for common settings that cannot work."""
    for name, value, least in (
        ("image_size", config.image_size, 1),
        ("batch_size", config.batch_size, 1),
        ("workers", config.workers, 0),
    ):
        if value is not None and value < least:
            raise UsageError(f"{name} must be at least {least}, not {value}.")


def describe_weights(loaded: Loaded, config: EvalConfig) -> dict[str, Any]:
    """What the numbers depend on in weights and preprocessing, and no path: the start of a result's `settings`."""
    return {
        "weights": Path(loaded.name).name,
        "weights_fingerprint": loaded.fingerprint,
        "backbone": loaded.backbone.name,
        "backbone_args": loaded.backbone.args,
        "image_size": config.image_size or loaded.image_size,
        "interpolation": loaded.interpolation,
        "mean": loaded.mean,
        "std": loaded.std,
        "precision": config.precision,
    }


def untrained(loaded: Loaded, seed: int) -> Loaded:
    """The same network with random weights, and the same preprocessing: the floor of a protocol."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = backbone(loaded.backbone.name, loaded.backbone.args)
    net.eval().requires_grad_(False)
    return loaded._replace(backbone=net, name=f"random:{loaded.backbone.name}", fingerprint=f"random-{seed}")


def format_result(result: Mapping[str, Any], protocol: Protocol) -> str:
    """A result with its floors for people: a line each."""
    weights = str(result["settings"]["weights"])
    rows = [(name.replace("_", " "), values) for name, values in result["floor"].items()]
    rows = [("untrained network" if name == "random weights" else name, values) for name, values in rows]
    rows.append((weights[:20] if weights.startswith("random:") else "trained network", result["metrics"]))
    table = [(name, protocol.columns(values)) for name, values in rows]
    names = list(table[-1][1])
    width = max(10, *(len(name) + 3 for name in names))
    lines = [f"{protocol.title:<24}" + "".join(f"{name:>{width}}" for name in names)]
    lines += [f"{name:<24}" + "".join(f"{_cell(row.get(n)):>{width}}" for n in names) for name, row in table]
    lines.append(f"{result['data']['name']}: {_about(result['data'])}")
    return "\n".join(lines + [f"note: {note}" for note in result["notes"]])


def _cell(value: float | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.1f}"


def _about(data: Mapping[str, Any]) -> str:
    known = ((f"{data[k]} {k.removeprefix('num_')}" for k in data if k.startswith("num_")), data.get("reported_on"))
    return ", ".join([*known[0], *([f"reported on {known[1]}"] if known[1] else [])])
