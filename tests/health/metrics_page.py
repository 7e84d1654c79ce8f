"""Names of metrics in the pages of docs/, and the rows that docs/reference/metrics.md is to have.

python tests/health/metrics_page.py prints the rows.
"""

import re
from collections.abc import Iterator, Sequence

from nolabel.health.signals import SIGNALS, Signal

HEADS = ("metric", "signal")
"""First column of a table of metrics."""
PLACES = ("Metrics", "metrics.jsonl")
"""Titles of pages and headings below which every table is one."""


def metrics_named(page: str) -> set[str]:
    """The names in backticks in the rows of a page's tables of metrics."""
    return {name for row in _rows(page) for name in re.findall(r"`([a-z][a-z0-9_]*)`", row)}


def _rows(page: str) -> Iterator[str]:
    title, heading, head = "", "", ""
    for line in page.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ").strip("`")
            title = heading if line.startswith("# ") else title
        if not line.startswith("|"):
            head = ""
        elif not head:
            head = line.split("|")[1].strip()
        elif head in HEADS or {title, heading} & set(PLACES):
            yield line


def format_table(signals: Sequence[Signal] = SIGNALS) -> str:
    """A row of markdown per signal: its keys, its title, its unit in metrics.jsonl, its sentence."""
    rows = ["| metric | title | unit | meaning |", "|---|---|---|---|"]
    for s in signals:
        keys = ", ".join(f"`{key}`" if len(s.names) == 1 else f"`{key}` ({label})" for key, label in s.names.items())
        unit = s.unit if s.scale == 1 else f"share, 0 to 1 (shown in {s.unit})"
        rows.append(f"| {keys} | {s.title} | {unit} | {s.about} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(format_table(), end="")
