import base64
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from nolabel.files import append_jsonl, write_json
from nolabel.report import report
from nolabel.report.charts import charts
from nolabel.runs.folder import Run

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&lt;{{ 7*7 }}\u202e"
VOID = {"meta", "img", "input", "br", "link", "line", "rect", "circle", "polyline"}
MakeRun = Callable[..., Run]


class Elements(HTMLParser):
    """All elements of a page; fails on tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def page_of(run: Run) -> str:
    path = report(run)
    assert path == run.path / "report.html"
    assert path.stat().st_size <= 5_000_000
    return path.read_text(encoding="utf-8")


def test_page_is_whole_and_asks_for_nothing(make_run: MakeRun) -> None:
    html = page_of(make_run())
    elements = Elements(html)
    for tag, attributes in elements.found:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert "style" not in attributes  # the policy would block it
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    assert set(re.findall(r"https?://[^ ]*", html)) == {"https://github.com/leeoniya/uPlot"}  # in a comment
    assert "url(" not in html
    assert "@import" not in html
    ids = [a["id"] for _, a in elements.found if "id" in a]
    assert len(ids) == len(set(ids))


def test_policy_allows_exactly_the_script_and_style_of_the_page(make_run: MakeRun) -> None:
    html = page_of(make_run())
    policy = next(a["content"] for tag, a in Elements(html).found if "http-equiv" in a)
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_page_shows_what_matters_without_javascript(make_run: MakeRun) -> None:
    run = make_run()
    elements = Elements(page_of(run))
    words = elements.words
    knn = [m["knn"] for m in run.metrics() if "knn" in m][-1]
    assert f"It learned: the nearest neighbours find the right class for {knn:.1f} % of the images" in words
    assert f"{knn - 27.4:.1f} points above the untrained network and {knn - 33:.1f} points above raw pixels" in words
    assert "Finished after 4 015 steps." in words
    assert "dino-small" in words
    assert "3 files were skipped: 1 truncated, 1 empty, 1 not an image." in words
    assert "robin/vögel_07.tif" in words
    assert "create_model('local-dir:birds/weights', pretrained=True" in words
    assert "method.num_local 6 8" in words  # different from the recipe
    assert "58.31 33.40 27.90" in words  # the evaluation beside its floors
    assert "SIGTERM" in words
    assert "2.15.0" in words
    assert "1 h 56 min" in words  # the pause between two sessions is not counted
    assert sum(tag == "img" for tag, _ in elements.found) == 9
    labels = [a["aria-label"] for tag, a in elements.found if tag == "svg" and "aria-label" in a]
    assert len(labels) == 10
    assert any("untrained: 27.4" in label and "raw pixels: 33" in label for label in labels)


def test_charts_carry_floors_and_null_for_nan(
    make_run: MakeRun, page_data: Callable[[str], list[dict[str, Any]]]
) -> None:
    run = make_run()
    charts = {chart["title"]: chart for chart in page_data(page_of(run))}
    assert charts["k-NN accuracy"]["levels"] == {"untrained": 27.4, "raw pixels": 33.0}
    assert charts["Loss"]["levels"] == {"uniform, ln 2048": pytest.approx(math.log(2048))}
    assert None in charts["Gradient norm"]["series"]["before clipping"]
    for chart in charts.values():
        assert chart["steps"] == sorted(set(chart["steps"]))
        assert all(len(values) == len(chart["steps"]) for values in chart["series"].values())


def test_charts_follow_the_table_of_signals() -> None:
    """A number without a row comes last, under its key."""
    line = {"step": 10, "toy_metric": 2.0, "step_ms": 5.0, "ce": 6.0, "positive_first": 0.5, "target_entropy": 3.0}
    drawn = charts([line], 512)
    assert [c.title for c in drawn] == [
        "Right partner found",
        "Targets",
        "Cross-entropy of the targets",
        "toy metric",
    ]
    assert drawn[0].unit == "%" and drawn[0].series == {"share": [50.0]}
    uniform = {"uniform, ln 512": math.log(512)}
    assert [c.levels for c in drawn] == [{}, uniform, uniform, {}]
    loss = charts([line | {"loss": 6.0}], 512)[0]
    assert (loss.title, loss.levels) == ("Loss", {}), "its value at a uniform output is known with a teacher alone"


@pytest.mark.parametrize("where", ["names", "config", "status", "metrics", "eval", "folder"])
def test_hostile_text_stays_text(
    make_run: MakeRun, page_data: Callable[[str], list[dict[str, Any]]], tmp_path: Path, where: str
) -> None:
    run = make_run(total=22)
    if where == "names":
        append_jsonl(run.path / "bad_files.jsonl", {"name": HOSTILE, "reason": HOSTILE, "detail": HOSTILE})
        append_jsonl(run.path / "bad_files.jsonl", {"name": "not utf-8 \udcff", "reason": "empty"})
    elif where == "config":
        config = run.config() | {"recipe": HOSTILE, "data": HOSTILE, "backbone": HOSTILE, HOSTILE: [HOSTILE]}
        (run.path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    elif where == "status":
        write_json(run.path / "status.json", {"state": HOSTILE, "step": HOSTILE, "reason": HOSTILE})
        append_jsonl(run.path / "events.jsonl", {"time": HOSTILE, "event": HOSTILE, HOSTILE: HOSTILE})
    elif where == "metrics":
        append_jsonl(run.path / "metrics.jsonl", {"step": 23, HOSTILE: 1.5, "loss": HOSTILE})
    elif where == "eval":
        result = {"protocol": HOSTILE, "metrics": {HOSTILE: HOSTILE}, "floor": {HOSTILE: {HOSTILE: 1}}}
        write_json(run.path / "eval" / "x.json", result | {"data": {"name": HOSTILE}, "notes": [HOSTILE]})
    else:
        hostile = tmp_path / HOSTILE.replace("/", "")
        run = Run(run.path.rename(hostile))
    html = page_of(run)
    elements = Elements(html)
    assert not [a for _, a in elements.found if "onerror" in a]
    assert sum(tag == "script" for tag, _ in elements.found) == 2
    assert all(a["src"].startswith("data:image/webp;base64,") for tag, a in elements.found if tag == "img")
    assert "onerror=alert(1)" in elements.words  # shown, and not run
    assert "{{ 7*7 }}" in elements.words
    page_data(html)


def test_page_of_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("recipe: dino\nbackbone: vit_small_patch16_224\n")
    (tmp_path / "metrics.jsonl").write_text("")
    html = page_of(Run(tmp_path))
    words = Elements(html).words
    assert "There are no measurements. Nothing was trained yet." in words
    assert "local-dir" not in words
    assert "None." in words  # skipped files


def test_torn_and_strange_lines_are_passed_over(make_run: MakeRun) -> None:
    run = make_run(total=22)
    before = page_of(run)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": true, "loss": 1.0}\n[1]\n{"step": 1e400, "loss": 1}\n{"step": 33, "lo')
    (run.path / "eval" / "attention" / "step-00000099.webp").write_bytes(b"RIFF torn")
    (run.path / "eval" / "attention" / "step-later.webp").write_bytes(b"")
    assert page_of(run) == before


def test_one_point_and_huge_numbers_can_be_drawn(make_run: MakeRun) -> None:
    run = make_run(total=11)
    (run.path / "metrics.jsonl").write_text(
        '{"step": 5, "loss": 2.5}\n{"step": 6, "lr": 1e29}\n{"step": 7, "lr": -1e29}\n'
        '{"step": 8, "grad_norm": 1e-300}\n{"step": 9, "grad_norm": 2e-300}\n'
        '{"step": 10, "momentum": 1e999}\n'
    )
    html = page_of(run)
    assert "nan" not in re.findall(r'points="([^"]*)"', html)
    assert Elements(html).words.count("Momentum") == 0  # not finite: not drawn


def test_repeated_steps_keep_the_last_value(
    make_run: MakeRun, page_data: Callable[[str], list[dict[str, Any]]]
) -> None:
    run = make_run(total=11)
    (run.path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 1, "loss": 9}\n{"step": 1, "lr": 1}\n'
    )
    loss = next(c for c in page_data(page_of(run)) if c["title"] == "Loss")
    assert (loss["steps"], loss["series"]["loss"]) == ([1, 2], [9, 2])


def test_long_runs_stay_small_and_keep_their_spikes(
    make_run: MakeRun, page_data: Callable[[str], list[dict[str, Any]]]
) -> None:
    run = make_run(total=11)
    lines = [json.dumps({"step": i, "loss": 1.0 + i % 7 / 10, "lr": 0.1}) for i in range(60_000)]
    lines[31_234] = '{"step": 31234, "loss": 999.0, "lr": 0.1}'
    (run.path / "metrics.jsonl").write_text("\n".join(lines))
    for i in range(1000):
        append_jsonl(run.path / "bad_files.jsonl", {"name": f"{i}/" + "n" * 4000, "reason": f"odd {i}"})
    picture = next((run.path / "eval" / "attention").glob("*.webp")).read_bytes()
    for i in range(400):
        (run.path / "eval" / "attention" / f"step-{i * 1000:08d}.webp").write_bytes(picture)
    html = page_of(run)
    (loss,) = [c for c in page_data(html) if c["title"] == "Loss"]
    assert len(loss["steps"]) <= 802
    assert max(loss["series"]["loss"]) == 999.0
    assert (loss["steps"][0], loss["steps"][-1]) == (0, 59_999)
    steps = [a["data-step"] for _, a in Elements(html).found if "data-step" in a]
    assert 2 < len(steps) < 200
    assert (steps[0], steps[-1]) == ("0", "399\u202f000")


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_page_runs_in_a_browser(make_run: MakeRun, tmp_path: Path) -> None:
    path = report(make_run())
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    quiet = "--disable-component-update --disable-sync --enable-logging=stderr --dump-dom"
    command = [
        "chromium",
        *options.split(),
        *quiet.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
        f"file://{path}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ, check=True)
    assert "CONSOLE" not in done.stderr  # neither an error nor a violation of the policy
    assert 'class="js"' in done.stdout
    assert done.stdout.count("<canvas") == 10


@pytest.mark.parametrize(
    ("knn", "opening"),
    [(60.0, "It learned:"), (36.0, "It learned a little:"), (33.5, "No sign yet that it learned:"), (20.0, "No sign")],
)
def test_verdict_is_no_kinder_than_the_numbers(make_run: MakeRun, knn: float, opening: str) -> None:
    run = make_run(total=11)
    append_jsonl(run.path / "metrics.jsonl", {"step": 11, "knn": knn})
    words = Elements(page_of(run)).words
    assert opening in words
    assert f"{abs(knn - 33):.1f} points {'above' if knn > 33 else 'below'} raw pixels" in words


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("failed", "Failed at step 700 of 4 015: The loss is not finite."),
        ("stopped", "Stopped at step 700 of 4 015: The loss is not finite. nolabel resume continues it."),
        ("running", "Running: at step 700 of 4 015 when this page was written."),
    ],
)
def test_state_is_described_in_words(make_run: MakeRun, state: str, expected: str) -> None:
    run = make_run(total=22)
    status = {"state": state, "step": 700, "reason": "The loss is not finite.\nTry a lower rate."}
    write_json(run.path / "status.json", status)
    assert expected in Elements(page_of(run)).words


def test_without_labels_the_page_claims_nothing(make_run: MakeRun) -> None:
    run = make_run(total=22)
    lines = [m for m in run.metrics() if "knn" not in m]
    (run.path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = Elements(page_of(run)).words
    assert "learned" not in words
    assert "a loss does not" in words


@pytest.mark.parametrize("side", [16_383, 10_000])
def test_a_picture_of_absurd_size_is_left_out(side: int, make_run: MakeRun) -> None:
    run = make_run(total=22)
    size = (side - 1).to_bytes(3, "little")
    data = b"WEBPVP8X" + (10).to_bytes(4, "little") + bytes(4) + size + size
    (run.path / "eval" / "attention").mkdir(parents=True, exist_ok=True)
    (run.path / "eval" / "attention" / "step-00000900.webp").write_bytes(b"RIFF" + (30).to_bytes(4, "little") + data)
    assert "step-00000900" not in page_of(run)
