"""Page of the report: one HTML file, no network, at most 5 MB.

What comes from the run (names, reasons, settings) is text: the template escapes it, the JSON of the charts
has no `<`, and the page's own policy lets no script run but the one whose hash it carries.
"""

import base64
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from nolabel.files import check_no_links, write_text
from nolabel.report import words
from nolabel.report.charts import charts, describe, svg
from nolabel.runs.folder import WRITTEN, Run
from nolabel.version import __version__

HERE = Path(__file__).parent
MAX_PICTURE_BYTES = 2_500_000
"""Limit for all snapshots together; base64 adds a third, so the page stays below 5 MB."""
MAX_ROWS = 200
MAX_TEXT = 400
"""Characters of one value; a longer one ends in an ellipsis."""


class Frame(NamedTuple):
    """One snapshot of the attention history as a data URI."""

    step: int
    source: str
    width: int
    height: int


class Setting(NamedTuple):
    """One setting by its dotted name; `default` is the recipe's where it differs, else None."""

    name: str
    value: str
    default: str | None


def report(run: Run) -> Path:
    """Write RUN/report.html and return its path. Parts that the run folder lacks are left out of the page.

    Raises StorageError where something in the run is a link: nothing from outside of the run gets into the page.
    """
    check_no_links(run.path, WRITTEN)
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    environment.globals |= {"number": words.number, "svg": svg, "describe": describe}
    path = run.path / "report.html"
    write_text(path, _printable(environment.get_template("template.html").render(_context(run))))
    return path


def _context(run: Run) -> dict[str, Any]:
    """All values that the template shows."""
    config, status, events, bad = run.config(), run.status(), run.events(), run.bad_files()
    metrics = [m for m in run.metrics() if words.is_number(m.get("step"))]
    start = next((e for e in events if e.get("event") == "start"), {})
    settings = _settings(config, _flat(_mapping(start.get("changed"))))
    drawn = charts(metrics, _flat(config).get("method.num_prototypes"))
    return {
        **_assets(),
        "run": run.path.resolve().name,
        "version": __version__,
        "config": {"recipe": "", "backbone": ""} | {k: _text(v) for k, v in config.items() if isinstance(v, str)},
        "data": Path(_text(config.get("data") or "")).name,
        "state": _text(status.get("state", "created")),
        "headline": words.headline(status, metrics, words.total_steps(config, metrics)),
        "verdict": words.verdict(metrics),
        "alarm": _text(words.health(status)),
        "started": _text(start.get("time", ""))[:16].replace("T", " "),
        "duration": words.duration(events),
        "scores": words.scores(metrics),
        "numbers": words.key_numbers(status, metrics, config),
        "charts": drawn,
        "charts_json": _json([c._asdict() for c in drawn]),
        "frames": _frames(run.path / "eval" / "attention"),
        "results": [_result(name, result) for name, result in run.eval_results().items()],
        "num_bad": len(bad),
        "reasons": Counter(_text(b.get("reason", "unknown")) for b in bad).most_common(20),
        "bad": [{k: _text(b.get(k, "")) for k in ("name", "reason", "detail")} for b in bad[:MAX_ROWS]],
        "changed": [s for s in settings if s.default is not None],
        "settings": settings,
        "environment": _pairs({k: v for k, v in start.items() if k not in ("time", "event", "changed")}),
        "happened": _happened(events),
        "weights": _weights(run.path.resolve()),
    }


def _assets() -> dict[str, Markup]:
    """Style and script, and the policy that allows exactly these two."""
    licence = f"/*\n{_read('vendor/LICENSE.uPlot')}*/"
    style = "\n".join((licence, _read("vendor/uPlot.min.css"), _read("report.css")))
    script = "\n".join((licence, _read("vendor/uPlot.iife.min.js"), _read("report.js")))
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    policy = (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}';"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )
    # The three texts are ours, not the run's.
    return {"style": Markup(style), "script": Markup(script), "policy": Markup(policy)}  # noqa: S704


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _frames(folder: Path) -> list[Frame]:
    """The snapshots in order of steps; evenly fewer, with first and last, where all would be too large."""
    frames = [frame for path in sorted(folder.glob("step-*.webp")) if (frame := _frame(path))]
    total = sum(len(f.source) * 3 // 4 for f in frames)
    while total > MAX_PICTURE_BYTES and len(frames) > 1:
        frames = [*frames[:-1:2], frames[-1]] if len(frames) > 2 else frames[-1:]
        total = sum(len(f.source) * 3 // 4 for f in frames)
    return frames if total <= MAX_PICTURE_BYTES else []


def _frame(path: Path) -> Frame | None:
    """One snapshot; None if it is half written, no WebP, or larger than any that nolabel writes."""
    try:
        if path.stat().st_size > MAX_PICTURE_BYTES:
            return None
        step, data = int(path.stem.removeprefix("step-")), path.read_bytes()
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
            width, height = image.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return Frame(step, f"data:image/webp;base64,{base64.b64encode(data).decode()}", width, height)


def _settings(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[Setting]:
    rows = _flat(config).items()
    return [Setting(_text(k), _text(v), _text(defaults[k]) if k in defaults else None) for k, v in rows][:500]


def _result(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """One evaluation as a table: a row per number, a column for the run and for each floor. Lists stay in the JSON."""
    floors = {k: _flat(v) for k, v in _mapping(result.get("floor")).items() if isinstance(v, Mapping)}
    rows = [
        (_text(key), [_cell(value), *(_cell(floor.get(key)) for floor in floors.values())])
        for key, value in _flat(_mapping(result.get("metrics"))).items()
        if not isinstance(value, list)
    ]
    data = result.get("data")
    notes = result.get("notes")
    return {
        "protocol": _text(result.get("protocol", name)),
        "data": _text(data.get("name", "") if isinstance(data, Mapping) else data or ""),
        "columns": ["this run", *(_text(name).replace("_", " ") for name in floors)],
        "rows": rows[:100],
        "notes": [_text(note) for note in notes[:20]] if isinstance(notes, list) else [],
    }


def _happened(events: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Events that people ask about, without the regular ones and the first start."""
    first = next((e for e in events if e.get("event") == "start"), None)
    rare = [e for e in events if e is not first and e.get("event") not in ("checkpoint", "eval")]
    return [
        {
            "time": _text(e.get("time", ""))[:19].replace("T", " "),
            "event": _text(e.get("event", "")),
            "what": ", ".join(f"{k}: {v}" for k, v in _pairs({k: e[k] for k in e if k not in ("time", "event")})),
        }
        for e in rare[-MAX_ROWS // 4 :]
    ]


def _weights(run: Path) -> str:
    """Name by which timm opens the weights, as Python source; empty before the first checkpoint."""
    return _text(repr(f"local-dir:{run.name}/weights")) if (run / "weights").is_dir() else ""


def _pairs(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Dotted names and texts of a mapping, numbers rounded for people."""
    return [(_text(k), _cell(v)) for k, v in _flat(value).items()][:100]


def _cell(value: Any) -> str:
    """A value of a table: two decimals where they help to compare, else as `number` or as text."""
    if isinstance(value, float) and 1 <= abs(value) < 1000:
        return f"{value:.2f}"
    return words.number(value) if words.is_number(value) or value is None else _text(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one with dotted names."""
    return dict(_leaves(value, ""))


def _leaves(value: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, f"{name}.")
        else:
            yield name, inner


def _text(value: Any) -> str:
    """A value as text of bounded length, lists without brackets."""
    if isinstance(value, list | tuple):
        value = ", ".join(str(v) for v in value)
    elif value is None or value is True or value is False:
        value = {None: "none", True: "yes", False: "no"}[value]
    text = _printable(str(value))
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


def _printable(text: str) -> str:
    """`text` without the lone surrogates of undecodable file names, which UTF-8 cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _json(value: Any) -> Markup:
    """JSON that is safe inside a script element, numbers to seven digits."""

    def short(item: Any) -> Any:
        if isinstance(item, float):
            return float(f"{item:.7g}")
        if isinstance(item, Mapping):
            return {_printable(str(k)): short(v) for k, v in item.items()}
        return [short(v) for v in item] if isinstance(item, list) else item

    text = json.dumps(short(value), allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - nothing in it ends or opens an element
