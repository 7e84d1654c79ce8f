"""Curves of a run: what is drawn, with which reference lines, and the SVG for readers without JavaScript."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from nolabel.report.words import is_number, number

MAX_POINTS = 800
"""Points of a curve; of more, the lowest and the highest in each of half as many stretches remain."""


MAX_CHARTS = 40


class Kind(NamedTuple):
    """What is known about a metric, or about a few that share a chart."""

    title: str
    labels: Mapping[str, str]
    about: str = ""
    unit: str = ""
    scale: float = 1.0
    wide: bool = False


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


_KINDS = (
    Kind(
        "k-NN accuracy",
        {"knn": "trained"},
        "Labelled images whose class their nearest neighbours tell. Dashed: the same without any training.",
        "%",
        wide=True,
    ),
    Kind(
        "Loss",
        {"loss": "loss"},
        "What training minimises. It may rise while the features still get better: k\u2011NN decides.",
        wide=True,
    ),
    Kind(
        "Teacher",
        {"teacher_entropy": "entropy", "teacher_student_kl": "KL to the student"},
        "In nats. Collapse: entropy at 0 (one output wins) or at ln K (all alike), or a KL that stays 0.",
        wide=True,
    ),
    Kind(
        "Right partner found",
        {"positive_first": "share"},
        "How often the other view of an image is the closest in the batch.",
        "%",
        100.0,
        wide=True,
    ),
    Kind(
        "What the outputs say of the image",
        {"assignment_information": "information"},
        "In nats: 0 when every image gets the same output, whatever that is. It is what a collapse takes away.",
        wide=True,
    ),
    Kind(
        "Targets",
        {"target_entropy": "entropy", "memax_gap": "gap to even use"},
        "In nats. The gap is 0 when all prototypes are used evenly on average, and ln K when one gets every image.",
        wide=True,
    ),
    Kind(
        "Global and dense loss",
        {"loss_global": "global", "loss_dense": "dense"},
        "Before they are weighted. Both may rise while the queue fills with real keys.",
        wide=True,
    ),
    Kind(
        "Matches between two views",
        {"matches_mutual": "mutual", "matches_distinct": "distinct", "dense_by_place": "decided by the place"},
        "Of the locations of a view: those whose match finds back to them, and how many different ones are matched. "
        "And how much of what the dense head says of them depends on where they are alone.",
        "%",
        100.0,
        wide=True,
    ),
    Kind(
        "Effective rank of the features",
        {"rankme": "RankMe", "effective_rank": "of the covariance"},
        "How many directions the features of fixed training images use. Compare runs of one method only.",
        wide=True,
    ),
    Kind(
        "Two views, two images",
        {"positive_similarity": "two views of an image", "negative_similarity": "two images"},
        "Mean cosine. Where both lines meet, nothing is told apart.",
        wide=True,
    ),
    Kind("Gradient norm", {"grad_norm": "before clipping"}, "Over all parameters, before clipping.", wide=True),
    Kind("Learning rate", {"lr": "learning rate"}),
    Kind("Weight decay", {"weight_decay": "weight decay"}),
    Kind("Momentum of the teacher", {"momentum": "momentum"}),
    Kind("Teacher temperature", {"teacher_temp": "temperature"}),
    Kind("Images a second", {"img_per_s": "images a second"}),
    Kind("Waiting for data", {"data_wait": "share of the time"}, unit="%", scale=100.0),
    Kind("Time of an image", {"decode_ms": "reading and decoding", "crop_ms": "its views"}, unit="ms"),
)


_NOT_DRAWN = {"step", "epoch", "knn_raw", "knn_untrained", "time", "distinct_images", "step_ms"}


def charts(metrics: Sequence[Mapping[str, Any]], num_prototypes: Any) -> list[Chart]:
    """The charts of a run, known metrics first, then every other number a method logs."""
    keys = dict.fromkeys(key for m in metrics for key, value in m.items() if is_number(value))
    known = {key for kind in _KINDS for key in kind.labels}
    others = [Kind(key.replace("_", " "), {key: key}) for key in keys if key not in known | _NOT_DRAWN]
    levels = _levels(metrics, num_prototypes)
    drawn = [_chart(kind, metrics, levels) for kind in (*_KINDS, *others)]
    return [chart for chart in drawn if chart is not None][:MAX_CHARTS]


def _levels(metrics: Sequence[Mapping[str, Any]], num_prototypes: Any) -> dict[str, dict[str, float]]:
    levels: dict[str, dict[str, float]] = {"knn": {}}
    for key, name in (("knn_untrained", "untrained"), ("knn_raw", "raw pixels")):
        values = [m[key] for m in metrics if is_number(m.get(key))]
        if values:
            levels["knn"][name] = float(values[-1])
    logged = {key for m in metrics for key in m if is_number(m[key])}
    if is_number(num_prototypes) and num_prototypes > 1:
        uniform = {f"uniform, ln {num_prototypes}": math.log(num_prototypes)}
        if "teacher_entropy" in logged:
            levels |= {"loss": uniform, "teacher_entropy": uniform}
        if "target_entropy" in logged:
            levels |= {"ce": uniform, "target_entropy": uniform}
    return levels


def _chart(kind: Kind, metrics: Sequence[Mapping[str, Any]], levels: Mapping[str, Mapping[str, float]]) -> Chart | None:
    by_step: dict[float, dict[str, float | None]] = {}
    for m in metrics:
        if is_number(m.get("step")) and any(key in m for key in kind.labels):
            row = {k: m[k] * kind.scale if is_number(m.get(k)) else None for k in kind.labels}
            by_step[m["step"]] = row
    steps = sorted(by_step)
    series = {kind.labels[key]: [by_step[s][key] for s in steps] for key in kind.labels}
    series = {name: values for name, values in series.items() if any(v is not None for v in values)}
    if not series:
        return None
    kept = _thinned(list(series.values()))
    lines = {name: value for key in kind.labels for name, value in levels.get(key, {}).items()}
    return Chart(
        kind.title,
        kind.about,
        kind.unit,
        kind.wide,
        [steps[i] for i in kept],
        {name: [values[i] for i in kept] for name, values in series.items()},
        lines,
    )


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
            found = [(values[j], j) for j in stretch if values[j] is not None]
            kept |= {min(found)[1], max(found)[1]} if found else {stretch[0]}
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
