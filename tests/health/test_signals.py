"""The table of signals has every number that a run logs, and no other; docs name no other."""

from collections import Counter
from collections.abc import Set
from pathlib import Path
from typing import Any

import pytest
from metrics_page import format_table, metrics_named
from sizes import SMALL
from tiny import BACKBONES, job, small, step

import nolabel
from nolabel.health.signals import LABELS, SIGNALS, Signal
from nolabel.training import loop

DOCS = Path(__file__).parents[2] / "docs"
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "densecl": [{"dense_weight": 0.0}, {"match": "random"}],
    "msn": [{"entropy_weight": 0.5, "sinkhorn_rounds": 0}],
}
"""Settings of methods that may log other metrics than the small ones."""


def missing(logged: Set[str]) -> set[str]:
    """Keys that were logged and have no row."""
    return logged - LABELS.keys()


def stale(logged: Set[str]) -> set[str]:
    """Keys that have a row and were never logged."""
    return LABELS.keys() - logged


def of_methods() -> set[str]:
    """The keys of a step of every method, by backbone and variant; "ok" steers the loop and is not logged."""
    configs = [(name, small(SMALL[name], **more)) for name in SMALL for more in ({}, *VARIANTS.get(name, []))]
    steps = [step(job(config, backbone), 0) for _, config in configs for backbone in BACKBONES]
    return set().union(*steps) - {"ok"}


@pytest.fixture(scope="module")
def logged(tiny: dict[str, Any], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The keys of all methods, and of metrics.jsonl of a run with labels and one bad step."""

    def poisoned(job: Any, views: Any, clock: Any) -> Any:
        return real(job, [v * float("nan") for v in views] if clock.step == 1 else views, clock)

    real, out = loop.training_step, tmp_path_factory.mktemp("signals") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", poisoned)
        settings = tiny | {"data": pictures / "train", "labels": str(pictures), "steps": 4}
        run = nolabel.train("dino-small", **settings, out=out)
    return of_methods() | {key for line in run.metrics() for key in line}


def test_every_number_that_is_logged_has_its_row(logged: set[str]) -> None:
    assert missing(logged) == set(), "add a row to nolabel/health/signals.py"
    assert missing(logged | {"toy_metric"}) == {"toy_metric"}


def test_every_row_is_logged(logged: set[str]) -> None:
    assert stale(logged) == set(), "these rows are stale: nothing logs them"
    assert stale(logged - {"alpha"}) == {"alpha"}


def test_no_key_has_two_rows_and_no_two_rows_look_alike() -> None:
    keys = Counter(key for signal in SIGNALS for key in signal.names)
    titles = Counter(signal.title for signal in SIGNALS)
    assert [name for counts in (keys, titles) for name, number in counts.items() if number > 1] == []


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda s: s.title)
def test_a_row_is_whole(signal: Signal) -> None:
    assert signal.title and signal.about.endswith(".") and len(signal.about) < 240
    assert all(signal.names.values()) and len(set(signal.names.values())) == len(signal.names)
    assert {*signal.floors, *filter(None, [signal.uniform_if])} <= LABELS.keys()
    assert (signal.scale == 100) <= (signal.unit == "%")
    if signal.live:
        assert len(signal.names) == 1 and signal.live.format(2.0) != signal.live.format(3.0)


def test_pages_name_no_other_metrics() -> None:
    unknown = {
        page.relative_to(DOCS).as_posix(): names
        for page in DOCS.glob("**/*.md")
        if (names := metrics_named(page.read_text(encoding="utf-8")) - LABELS.keys())
    }
    assert unknown == {}


def test_the_page_of_metrics_names_all() -> None:
    page = DOCS / "reference" / "metrics.md"
    if not page.is_file():
        pytest.skip("there is no page of metrics yet")
    assert metrics_named(page.read_text(encoding="utf-8")) == LABELS.keys(), (
        "python tests/health/metrics_page.py prints the rows"
    )


def test_metrics_are_found_in_a_page() -> None:
    page = """
| metric | meaning |
|---|---|
| `loss`, `ce` | with `--labels`; see `knn_raw` |

| setting | meaning |
|---|---|
| `lr` | none |

## metrics.jsonl

| key | value |
|---|---|
| others | `kl` |

## other
| key | value |
|---|---|
| `pid` | none |
"""
    assert metrics_named(page) == {"loss", "ce", "knn_raw", "kl"}
    assert metrics_named("# Metrics" + page) == {"loss", "ce", "knn_raw", "kl", "lr", "pid"}
    assert metrics_named(format_table()) == LABELS.keys()
