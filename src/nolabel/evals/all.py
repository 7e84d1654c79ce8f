"""Every protocol that the data allows, one after the other, and their numbers in one table."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from nolabel.console import note
from nolabel.errors import DataError, UsageError, nearest
from nolabel.evals.protocol import (
    EvalConfig,
    Folders,
    Measured,
    Protocol,
    describe_weights,
    format_cell,
    refusal,
    run,
    time_record,
)
from nolabel.evals.protocols import PROTOCOLS
from nolabel.evals.shared.results import result_path
from nolabel.weights.load import Loaded, load_weights


@dataclass(frozen=True)
class AllConfig(EvalConfig):
    """Settings that all protocols have; the others keep their defaults."""

    baseline: str | None = None
    """Other weights for the table, such as a supervised network: anything WEIGHTS may be."""
    baseline_backbone: str | None = None
    """timm name of a bare baseline file."""
    only: tuple[str, ...] = ()
    """Protocols to run, also those that train the backbone; by default all that need minutes and not hours."""
    skip: tuple[str, ...] = ()
    """Protocols to leave out."""


def measure(loaded: Loaded, data: str | Path, config: AllConfig, folders: Folders) -> Measured:
    """The columns of every protocol that `data` fits, by its name.

    Each protocol's own result is written as soon as it is there: where it would be alone in a run, else in the folder
    of the table's name. Raises DataError where the data fits no protocol.
    """
    chosen = _chosen(config)
    refused = {name: reason for name in chosen if (reason := refusal(PROTOCOLS[name], data))}
    fitting = [name for name in chosen if name not in refused]
    notes = [_left_out(name, reason) for name, reason in refused.items()]
    other = _baseline(config)
    metrics, floor, baseline, seconds = _run_all(loaded, other, data, config, fitting, notes, folders.files)
    if not metrics:
        raise DataError("No protocol fits the data.\n" + "\n".join(notes[:4]))
    return Measured(
        metrics=metrics,
        data={},
        settings={"baseline": other and describe_weights(other, config)},
        notes=notes,
        floor=floor,
        times=time_record(seconds, config),
        baseline=baseline,
    )


def format_all(result: Mapping[str, Any]) -> str:
    """The table, one line per number: the network, the baseline and each floor side by side."""
    weights = str(result["settings"]["weights"])
    values = {weights[:20] if weights.startswith("random:") else "trained": result["metrics"]}
    if result["settings"]["baseline"]:
        values["baseline"] = result["baseline"]
    values |= {name.replace("_", " "): rows for name, rows in result["floor"].items()}
    width = max(12, *(len(name) + 3 for name in values))
    lines = [" " * 36 + "".join(f"{name:>{width}}" for name in values)]
    for protocol, row in result["metrics"].items():
        for i, key in enumerate(row):
            cells = [format_cell(column.get(protocol, {}).get(key)) for column in values.values()]
            lines.append(f"{'' if i else protocol:<14}{key:<22}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join([*lines, str(result["data"]["name"]), *(f"note: {note}" for note in result["notes"])])


def columns(metrics: Mapping[str, Any]) -> dict[str, float | str]:
    """Every number with its protocol."""
    return {f"{protocol} {key}": value for protocol, row in metrics.items() for key, value in row.items()}


EVERY: dict[str, Protocol] = {**PROTOCOLS, "all": Protocol("all", 1, "all protocols, %", AllConfig, measure, columns)}
"""The protocols of `nolabel eval` and `nolabel.evaluate`."""


def _chosen(config: AllConfig) -> list[str]:
    for name in (*config.only, *config.skip):
        if name not in PROTOCOLS:
            raise UsageError(f"There is no protocol {name!r}.{nearest(name, PROTOCOLS)}")
    asked = config.only or [name for name, protocol in PROTOCOLS.items() if protocol.unasked]
    return [name for name in PROTOCOLS if name in asked and name not in config.skip]


def _run_all(
    loaded: Loaded,
    other: Loaded | None,
    data: str | Path,
    config: AllConfig,
    names: Sequence[str],
    notes: list[str],
    folder: Path | None,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, Any], dict[str, float]]:
    """Metrics, floors and baseline as columns by protocol, and seconds; `notes` gets theirs, and what was left out."""
    metrics, baseline = dict[str, Any](), dict[str, Any]()
    floor = dict[str, dict[str, Any]]()
    seconds = dict[str, float]()
    for name in names:
        protocol, started = PROTOCOLS[name], time.perf_counter()
        note(f"{name} ...")
        settings = protocol.Config(**{field.name: getattr(config, field.name) for field in fields(EvalConfig)})
        try:
            result = run(protocol, loaded, data, settings, folder and _own_path(folder, name, data))
        except (DataError, UsageError) as error:
            notes.append(_left_out(name, str(error).splitlines()[0]))
            continue
        known = {note.partition(": ")[2] for note in notes}
        notes += [f"{name}: {note}" for note in result["notes"] if note not in known]
        if other is not None:
            try:
                bare = run(protocol, other, data, replace(settings, floor=False))
                baseline[name] = protocol.columns(bare["metrics"])
            except (DataError, UsageError) as error:  # such as a CNN, which has no attention to show
                notes.append(_left_out(f"the baseline's {name}", str(error).splitlines()[0]))
        metrics[name] = protocol.columns(result["metrics"])
        for kind, values in result["floor"].items():
            floor.setdefault(kind, {})[name] = protocol.columns(values)
        seconds[name] = time.perf_counter() - started
    return metrics, floor, baseline, seconds


def _baseline(config: AllConfig) -> Loaded | None:
    if config.baseline is None:
        return None
    try:
        return load_weights(config.baseline, config.baseline_backbone)
    except UsageError as error:
        raise UsageError(f"--baseline: {error}".replace(" --backbone", " --baseline-backbone")) from None


def _left_out(name: str, reason: str) -> str:
    return f"{name} is left out: {reason}"


def _own_path(folder: Path, name: str, data: str | Path) -> Path:
    run_folder = folder.parent.parent
    if folder.parent.name == "eval" and (run_folder / "config.yaml").is_file():
        return result_path(run_folder, name, data)
    return folder / f"{name}.json"
