"""Charts of a run, drawn from the table of signals, and their SVG for readers without JavaScript."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from nolabel.health.signals import LABELS, SIGNALS, Signal
from nolabel.report.words import column, is_number, number

MAX_POINTS = 800
"""Points of a curve; a longer one keeps the lowest and the highest of each of half as many stretches."""


MAX_CHARTS = 40


class Chart(NamedTuple):
    """One chart: values by step, `None` where a metric has none."""

    title: str
    about: str
    unit: str
    wide: bool
    steps: list[float]
    series: dict[str, list[float | None]]
    levels: dict[str, float]
    """Horizontal reference lines."""


def charts(metrics: Sequence[Mapping[str, Any]], num_prototypes: Any) -> list[Chart]:
    """The charts of a run: those of the table of signals, in its order, then every other number that was logged."""
    keys = dict.fromkeys(key for m in metrics for key, value in m.items() if is_number(value))
    others = [Signal({key: key}, key.replace("_", " "), "") for key in keys if key not in LABELS]
    drawn = [_chart(signal, metrics, num_prototypes) for signal in (*SIGNALS, *others) if signal.drawn]
    return [chart for chart in drawn if chart is not None][:MAX_CHARTS]


def _chart(signal: Signal, metrics: Sequence[Mapping[str, Any]], num_prototypes: Any) -> Chart | None:
    by_step: dict[float, dict[str, float | None]] = {}
    for m in metrics:
        if is_number(m.get("step")) and any(key in m for key in signal.names):
            by_step[m["step"]] = {k: m[k] * signal.scale if is_number(m.get(k)) else None for k in signal.names}
    steps = sorted(by_step)
    series = {label: [by_step[s][key] for s in steps] for key, label in signal.names.items()}
    series = {label: values for label, values in series.items() if any(v is not None for v in values)}
    if not series:
        return None
    kept = _thinned(list(series.values()))
    return Chart(
        signal.title,
        signal.about,
        signal.unit,
        signal.wide,
        [steps[i] for i in kept],
        {name: [values[i] for i in kept] for name, values in series.items()},
        _levels(signal, metrics, num_prototypes),
    )


def _levels(signal: Signal, metrics: Sequence[Mapping[str, Any]], num_prototypes: Any) -> dict[str, float]:
    """The reference lines of a chart by their names."""
    floors = {LABELS[key]: column(metrics, key) for key in signal.floors}
    levels = {label: values[-1] for label, values in floors.items() if values}
    has_outputs = is_number(num_prototypes) and num_prototypes > 1
    if has_outputs and signal.uniform_if and column(metrics, signal.uniform_if):
        levels[f"uniform, ln {num_prototypes}"] = math.log(num_prototypes)
    return levels


def _thinned(series: Sequence[Sequence[float | None]]) -> list[int]:
    """Indices to draw: all if they are few, else both extremes of each stretch, so that no spike is lost."""
    length = len(series[0])
    if length <= MAX_POINTS:
        return list(range(length))
    kept = {0, length - 1}
    num_stretches = MAX_POINTS // (2 * len(series))
    for i in range(num_stretches):
        stretch = range(i * length // num_stretches, (i + 1) * length // num_stretches)
        for values in series:
            values_at = [(values[j], j) for j in stretch if values[j] is not None]
            kept |= {min(values_at)[1], max(values_at)[1]} if values_at else {stretch[0]}
    return sorted(kept)


def describe(chart: Chart) -> str:
    """The chart in words, for those who don't see it."""
    parts = []
    for name, values in chart.series.items():
        real = [v for v in values if v is not None]
        parts.append(
            f"{name}: {number(real[0])} at first, {number(real[-1])} at last,"
            f" between {number(min(real))} and {number(max(real))}"
        )
    parts += [f"{name}: {number(value)}" for name, value in chart.levels.items()]
    return f"{chart.title}{f' in {chart.unit}' if chart.unit else ''}. {'; '.join(parts)}."


def svg(chart: Chart, width: int = 420, height: int = 190) -> Markup:
    """The chart as a still picture; colours come from the page's style sheet."""
    left, right, top, bottom = 46, width - 10, 8, height - 22
    values = [v for line in chart.series.values() for v in line if v is not None] + [*chart.levels.values()]
    ticks = _ticks(min(values), max(values))
    low, high = min(*values, *ticks), max(*values, *ticks)
    first, last = chart.steps[0], chart.steps[-1]

    def x(step: float) -> float:
        return round(left + (step - first) / ((last - first) or 1) * (right - left), 1)

    def y(value: float) -> float:
        return round(top + (high - value) / ((high - low) or 1) * (bottom - top), 1)

    def horizontal(kind: str, value: float) -> str:
        return f'<line class="{kind}" x1="{left}" x2="{right}" y1="{y(value)}" y2="{y(value)}"/>'

    parts = [horizontal("grid", t) + _label(left - 6, y(t) + 4, number(t), "end") for t in ticks]
    parts += [horizontal(f"level l{i}", value) for i, value in enumerate(chart.levels.values())]
    for i, line in enumerate(chart.series.values()):
        points = [(x(s), y(v)) for s, v in zip(chart.steps, line, strict=True) if v is not None]
        parts.append(f'<polyline class="s{i}" points="{" ".join(f"{a},{b}" for a, b in points)}"/>')
        if len(points) == 1:
            parts.append(f'<circle class="s{i}" cx="{points[0][0]}" cy="{points[0][1]}" r="3"/>')
    parts.append(_label(left, height - 5, f"step {number(first)}", "start"))
    parts.append(_label(right, height - 5, number(last), "end"))
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(describe(chart))}">'
    return Markup(f"{head}{''.join(parts)}</svg>")  # noqa: S704 - numbers, and a label that is escaped


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Two to five round values between `low` and `high`."""
    if not high > low:
        return [low]
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)] or [low]
