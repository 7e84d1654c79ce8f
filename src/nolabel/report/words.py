"""Numbers and states in words, for the top of the report."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from nolabel.health.signals import LABELS

Record = Mapping[str, Any]


class KeyNumber(NamedTuple):
    """One tile of the report: a big number and what to know about it."""

    name: str
    value: str
    note: str = ""


class Score(NamedTuple):
    """One k-NN accuracy in percent, with the share of the bar's width."""

    name: str
    value: float


def number(value: Any) -> str:
    """A number for people: thousands apart, four significant digits, a dash for none."""
    if not is_number(value):
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u202f")
    if abs(value) >= 10_000:
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.4g}"


def is_number(value: Any) -> bool:
    """Whether a value of a JSON record can be drawn: finite, not absurdly large, and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def column(metrics: Sequence[Record], key: str) -> list[float]:
    """The finite values of one metric, in order."""
    return [float(m[key]) for m in metrics if is_number(m.get(key))]


def scores(metrics: Sequence[Record]) -> list[Score]:
    """k-NN of raw pixels, of the untrained and of the trained network, as far as they were measured."""
    columns = [(LABELS[key], column(metrics, key)) for key in ("knn_raw", "knn_untrained", "knn")]
    return [Score(name, values[-1]) for name, values in columns if values]


def headline(status: Record, metrics: Sequence[Record], total_steps: int | None) -> str:
    """State of the run, in one sentence."""
    step, reason = number(status.get("step", 0)), str(status.get("reason") or "")
    of = f" of {number(total_steps)}" if total_steps else ""
    match status.get("state"):
        case "done":
            return f"Finished after {step} steps."
        case "running":
            return f"Running: at step {step}{of} when this page was written."
        case "stopped":
            return f"Stopped at step {step}{of}{_because(reason)} nolabel resume continues it."
        case "failed":
            return f"Failed at step {step}{of}{_because(reason)}"
    return "Nothing was trained yet." if not metrics else f"At step {step}{of}."


def health(status: Record) -> str:
    """Latest words of the health monitor; empty where all is well."""
    diagnosis = status.get("health")
    return str(diagnosis.get("words") or "") if isinstance(diagnosis, Mapping) else ""


def verdict(metrics: Sequence[Record]) -> str:
    """Judge whether the run learned, as far as the numbers show: k-NN against its floors, or the loss alone."""
    measured = scores(metrics)
    floors = [s for s in measured if s.name != "trained"]
    if len(floors) == len(measured) or not floors:
        losses = column(metrics, "loss")
        if not losses:
            return "There are no measurements."
        change = f"The loss went from {number(losses[0])} to {number(losses[-1])}."
        return f"{change} k-NN on labelled images would show whether the features are good; a loss does not."
    trained = measured[-1].value
    gap = trained - max(s.value for s in floors)
    if gap >= 5:
        opening = "It learned"
    elif gap >= 2:
        opening = "It learned a little"
    else:
        opening = "No sign yet that it learned"
    parts = " and ".join(_against(trained - s.value, s.name) for s in reversed(floors))
    return f"{opening}: the nearest neighbours find the right class for {trained:.1f} % of the images, {parts}."


def key_numbers(status: Record, metrics: Sequence[Record], config: Record) -> list[KeyNumber]:
    """Tiles with steps, epochs, images, speed, waiting and loss."""
    total, step = total_steps(config, metrics), status.get("step", 0)
    epochs, speed = column(metrics, "epoch"), column(metrics, "img_per_s")
    wait, losses = column(metrics, "data_wait"), column(metrics, "loss")
    tiles = [KeyNumber("Steps", number(step), f"of {number(total)}" if total else "")]
    if epochs:
        tiles.append(KeyNumber("Epochs", number(round(epochs[-1], 1)), "passes over the images"))
    if is_number(config.get("batch_size")) and is_number(step):
        tiles.append(KeyNumber("Images seen", number(step * config["batch_size"]), "each time in new views"))
    if speed:
        tiles.append(KeyNumber("Images per second", number(_round(_median(speed))), "median"))
    if wait:
        share = sum(wait) / len(wait)
        tiles.append(KeyNumber("Waiting for data", f"{share:.0%}".replace("%", "\u202f%"), "of the time"))
    if losses:
        tiles.append(KeyNumber("Loss", number(losses[-1]), f"from {number(losses[0])}"))
    return tiles


def total_steps(config: Record, metrics: Sequence[Record]) -> int | None:
    """Length of the run in steps: from the settings, or from its epochs and how many steps one took."""
    steps, epochs = config.get("steps"), config.get("epochs")
    if is_number(steps) and steps:
        return int(steps)
    per_epoch = [m["step"] / m["epoch"] for m in metrics if is_number(m.get("step")) and _positive(m.get("epoch"))]
    return round(epochs * round(per_epoch[-1])) if per_epoch and is_number(epochs) else None


def duration(events: Sequence[Record]) -> str:
    """Time at work, such as `1 h 52 min`: each start to the last event before the next. Empty if unknown."""
    seconds, session = 0.0, [0.0]
    for event in events:
        try:
            moment = datetime.fromisoformat(str(event.get("time"))).timestamp()
        except ValueError:
            continue
        if event.get("event") == "start":
            seconds += session[-1] - session[0]
            session = []
        session.append(moment)
    return for_people(seconds + session[-1] - session[0])


def for_people(seconds: float) -> str:
    """A time such as `1 h 52 min` or `40 s`; empty for none."""
    if seconds < 60:
        return f"{round(seconds)} s" if seconds > 0 else ""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _because(reason: str) -> str:
    return f": {reason.splitlines()[0].rstrip('.')}." if reason.strip() else "."


def _against(gap: float, name: str) -> str:
    than = "the untrained network" if name == "untrained" else name
    return f"{abs(gap):.1f} points {'above' if gap >= 0 else 'below'} {than}"


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _positive(value: Any) -> bool:
    return is_number(value) and value > 0


def _round(value: float) -> float:
    return round(value) if value >= 20 else round(value, 1)
