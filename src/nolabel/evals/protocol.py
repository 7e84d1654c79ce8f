"""The common frame of evaluation protocols: settings, the run, the result, the floor.

The floor of a protocol is what needs no training, measured in the same way: random weights, often raw pixels, too.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nolabel.data.images import scanned_in
from nolabel.data.levels import check_range
from nolabel.errors import DataError, ResultNotWritten, StorageError, UsageError
from nolabel.evals.shared.results import data_fingerprint, data_name, write_result
from nolabel.files import check_no_links
from nolabel.networks.backbones import backbone
from nolabel.networks.precision import DTYPES, Precision
from nolabel.weights.load import MAX_SIDE, Loaded


@dataclass(frozen=True)
class EvalConfig:
    """Settings of every protocol."""

    image_size: int | None = None
    """Side of the image that the network sees, in pixels; by default that of the weights."""
    seed: int = 0
    """Random seed, for example for the untrained network of the floor."""
    floor: bool = True
    """Also measure what needs no training: random weights, raw pixels."""
    precision: Precision = "fp32"
    """Precision of forward passes: fp32, or mixed with bf16 or fp16."""
    device: str = "cpu"
    """Where features are computed."""
    batch_size: int = 128
    """Images per forward pass."""
    workers: int = 0
    """Processes that decode images."""
    range: tuple[float, float] | None = None
    """Values that become black and white in files of more than 8 bits; by default those that the weights were trained
    with."""
    cache: bool = True
    """Keep features on disk, in RUN/eval/cache or $NOLABEL_CACHE, and use the kept ones."""


class Folders(NamedTuple):
    """Where a protocol may write; None: nowhere."""

    cache: Path | None
    """Features that are kept for the next evaluation."""
    files: Path | None
    """Files beside the result: classifiers, masks, pictures."""


Floor = Callable[[Loaded], Mapping[str, Any]]
"""Function that gets the untrained network and returns the rows of the floor: name, and metrics as of the network."""


def no_notes(_floor: Mapping[str, Any]) -> list[str]:
    """Nothing to note about the floor."""
    return []


def no_files(_folder: Path) -> None:
    """No file beside the result."""


class Measured(NamedTuple):
    """Measurements of a protocol for one network; `run` makes the result from them."""

    metrics: Mapping[str, Any]
    data: Mapping[str, Any]
    """Facts about the data beside its name."""
    settings: Mapping[str, Any]
    """Settings beside those of `describe_weights`."""
    floor: Floor | Mapping[str, Any]
    """Rows that need no training: a function, which `run` calls unless --no-floor is given; or the rows themselves, if
    one pass over the images measures them together with the network."""
    notes: Sequence[str] = ()
    """Sentences that a reader of the numbers needs."""
    floor_notes: Callable[[Mapping[str, Any]], list[str]] = no_notes
    """Notes that follow from the rows of the floor."""
    write_files: Callable[[Path], None] = no_files
    """Writes more files into a folder, after the result is written."""
    times: Mapping[str, Any] | None = None
    """Content of NAME.time.json; by default the seconds of the network and of the floor, the device, the workers."""
    baseline: Mapping[str, Any] | None = None
    """Metrics of other weights (`all` only)."""


def anything(_data: str | Path) -> None:
    """Accept any data."""


class Protocol(NamedTuple):
    """An evaluation protocol. `run` carries it out."""

    name: str
    version: int
    """Increased when numbers are no longer comparable with earlier ones."""
    title: str
    """Meaning and unit of the numbers, for the table."""
    Config: type[EvalConfig]
    measure: Callable[[Loaded, str | Path, Any, Folders], Measured]
    """Function of (weights, DATA, settings, folders) that measures all that a result needs. Raises UsageError for
    settings that cannot work, DataError for data that cannot be used."""
    columns: Callable[[Mapping[str, Any]], dict[str, float | str]]
    """`metrics` of a result, or one row of its floor, as the columns of the table."""
    check_data: Callable[[str | Path], object] = anything
    """Raises DataError where DATA does not fit. Quick, as it opens no image."""
    unasked: bool = True
    """Whether `eval all` runs it by default; False for protocols that train the backbone or take hours."""


def run(
    protocol: Protocol, loaded: Loaded, data: str | Path, config: EvalConfig, out: Path | None = None
) -> dict[str, Any]:
    """The result of a protocol; docs/evals has a page for each one with its keys.

    With `out` the result is written there, durations to NAME.time.json beside it, more files to the folder of its name.
    Raises UsageError for settings, DataError for data that cannot be used, NumericError where training diverges, and
    StorageError.
    """
    check_common(config)
    loaded = loaded._replace(limits=config.range or loaded.limits)
    with scanned_in(loaded.limits):
        return _run(protocol, loaded, data, config, out)


def _run(protocol: Protocol, loaded: Loaded, data: str | Path, config: EvalConfig, out: Path | None) -> dict[str, Any]:
    start = time.perf_counter()
    folders = Folders(cache_folder(loaded, config), out and out.with_suffix(""))
    measured = protocol.measure(loaded, data, config, folders)
    measured_at, floor = time.perf_counter(), measured.floor
    if not isinstance(floor, Mapping):
        floor = floor(untrained(loaded, config.seed)) if config.floor else {}
    result = {
        "protocol": protocol.name,
        "version": protocol.version,
        "metrics": measured.metrics,
        "floor": floor,
        **({} if measured.baseline is None else {"baseline": measured.baseline}),
        "settings": describe_weights(loaded, config) | dict(measured.settings),
        "data": {"name": data_name(data), **measured.data},
        "seed": config.seed,
        "notes": [*measured.notes, *measured.floor_notes(floor)],
    }
    if out is not None:
        seconds = {"weights": measured_at - start, "floor": time.perf_counter() - measured_at}
        times = dict(measured.times or time_record(seconds, config))
        if fingerprint := data_fingerprint(data):
            times["data"] = fingerprint
        try:
            write_result(out, result, times)
            measured.write_files(out.with_suffix(""))
        except (OSError, StorageError) as error:
            raise ResultNotWritten(f"The result cannot be written to {out}: {error}", result) from error
    return result


def time_record(seconds: Mapping[str, float], config: EvalConfig) -> dict[str, Any]:
    """Content of NAME.time.json, by default."""
    return {"seconds": seconds, "device": config.device, "workers": config.workers}


def refusal(protocol: Protocol, data: str | Path) -> str | None:
    """The reason, in one line, why DATA does not fit a protocol; None where it fits."""
    try:
        protocol.check_data(data)
    except DataError as error:
        return str(error).splitlines()[0]
    return None


def check_common(config: EvalConfig) -> None:
    """UsageError for common settings that cannot work."""
    check_at_least(config, 1, "image_size", "batch_size")
    check_at_least(config, 0, "workers")
    if not 0 <= config.seed < 2**62:
        raise UsageError(f"seed must be from 0 to 2**62, not {config.seed}.")
    if (config.image_size or 1) > MAX_SIDE:
        raise UsageError(f"image_size must be at most {MAX_SIDE}, not {config.image_size}.")
    if config.precision not in DTYPES:
        raise UsageError(f"There is no precision {config.precision!r}: use one of {', '.join(DTYPES)}.")
    check_range(config.range)


def check_at_least(config: EvalConfig, least: int, *names: str) -> None:
    """UsageError where one of these settings is below `least`; None is allowed."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise UsageError(f"{name} must be at least {least}, not {value}.")


def cache_folder(loaded: Loaded, config: EvalConfig) -> Path | None:
    """The folder of kept features; None without `config.cache`.

    $NOLABEL_CACHE where it is set; RUN/eval/cache for the weights of a run; else the user's cache folder. StorageError
    where a link would lead out of the run.
    """
    if not config.cache:
        return None
    if os.environ.get("NOLABEL_CACHE"):
        return Path(os.environ["NOLABEL_CACHE"])
    run_folder = Path(loaded.name)
    if (run_folder / "config.yaml").is_file():
        check_no_links(run_folder, ("eval",))
        return run_folder / "eval" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nolabel"


def describe_weights(loaded: Loaded, config: EvalConfig) -> dict[str, Any]:
    """Facts about weights and preprocessing that decide the numbers, without a path: the start of `settings`."""
    positions = loaded.backbone.positions
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
        **({} if positions == "timm" else {"positions": positions}),
        **({} if loaded.limits is None else {"range": loaded.limits}),
    }


def untrained(loaded: Loaded, seed: int) -> Loaded:
    """The same network with random weights, and the same preprocessing: the floor of a protocol."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = backbone(loaded.backbone.name, loaded.backbone.args, positions=loaded.backbone.positions)
    net.eval().requires_grad_(False)
    return loaded._replace(backbone=net, name=f"random:{loaded.backbone.name}", fingerprint=f"random-{seed}")


def format_result(result: Mapping[str, Any], protocol: Protocol) -> str:
    """A result and its floors as a table, one line each."""
    weights = str(result["settings"]["weights"])
    rows = [(name.replace("_", " "), values) for name, values in result["floor"].items()]
    rows = [("untrained network" if name == "random weights" else name, values) for name, values in rows]
    rows.append((weights[:20] if weights.startswith("random:") else "trained network", result["metrics"]))
    table = [(name, protocol.columns(values)) for name, values in rows]
    names = list(table[-1][1])
    width = max(10, *(len(name) + 3 for name in names))
    lines = [f"{protocol.title:<24}" + "".join(f"{name:>{width}}" for name in names)]
    lines += [f"{name:<24}" + "".join(f"{format_cell(row.get(n)):>{width}}" for n in names) for name, row in table]
    lines.append(f"{result['data']['name']}: {_about(result['data'])}")
    return "\n".join(lines + [f"note: {note}" for note in result["notes"]])


def format_cell(value: float | str | None) -> str:
    """A number with one decimal; nothing for None."""
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.1f}"


def _about(data: Mapping[str, Any]) -> str:
    """`3 classes, reported on val`, from the facts about the data of a result."""
    counts = [f"{data[key]} {key.removeprefix('num_')}" for key in data if key.startswith("num_")]
    split = data.get("reported_on")
    return ", ".join([*counts, *([f"reported on {split}"] if split else [])])
