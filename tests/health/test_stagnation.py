"""Runs that learn nothing: the verdict on series of metrics, and on real runs of every method with a rate of 0."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import nolabel
from nolabel.evals.classification import knn
from nolabel.health import diagnosis, stagnation
from nolabel.health.diagnosis import SHORTEST, diagnose
from nolabel.health.facts import GENERAL_ADVICE, RunFacts
from nolabel.methods import METHODS
from nolabel.training import monitor

K = 64
FACTS = RunFacts({}, {}, 128, K, 20, 2000, 1e-3)
FEATURES = {"rankme": 20.0, "effective_rank": 12.0, "feature_std": 0.5, "uniformity": -1.5}
KIND = "learning nothing yet"


def line(step: int, **values: Any) -> dict[str, Any]:
    """A log line of a run that learns."""
    share = step / 2000
    good = {"loss": (1 - share / 2) * math.log(K), "teacher_entropy": 2.0, "assignment_information": 1.0, "lr": 1e-3}
    return {"step": step, "weight_norm": 50 + share, **good, **values}


def look(step: int, **values: Any) -> dict[str, Any]:
    """An evaluation of a run that learns."""
    share = step / 2000
    return {"step": step} | {name: value * (1 + share) for name, value in FEATURES.items()} | values


def run(to: int, every: int = 500, knn: tuple[float, ...] = (), at: Any = None, **values: Any) -> list[dict[str, Any]]:
    """Lines up to step `to` with an evaluation each `every` steps; `knn` along them, `at` replaces trained features."""
    floors = {"knn_untrained": knn[0], "knn_raw": 30.0} if knn else {}
    records: list[dict[str, Any]] = []
    for step in range(0, to + 1, 10):
        if step:
            records.append(line(step, **values))
        if step % every == 0:
            measured = {"knn": knn[step // every]} if knn else {}
            records.append(look(step, **(at or {} if step else {})) | measured | (floors if step == 0 else {}))
    return records


GUESS = {"loss": 0.985 * math.log(K), "assignment_information": 0.015 * math.log(K)}


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (run(1500, weight_norm=50.0), "no weight moves: their norm is 50"),
        (run(1500, **GUESS), "loss 4.096 is that of a guess, ln 64 = 4.159"),
        (run(1500, loss=0.99 * math.log(K), assignment_information=0.023 * math.log(K)), "that of a guess"),
        (run(1500, loss=1.02 * math.log(K)), "that of a guess"),  # worse than one, whatever the outputs hold
        (run(1500, ce=0.99 * math.log(K), assignment_information=0.1), "ce 4.117 is that of a guess"),
        (run(1500, at=FEATURES), "features are as before training: RankMe 20.0 and 20.0"),
        (run(1500, knn=(20.0, 19.0, 20.0, 19.5)), "k-NN 19.5 % is not above the untrained network (20.0 %, raw pixels"),
        (run(2000, knn=(20.0, 25.0, 24.0, 22.0, 20.0)), "k-NN 20.0 % is not above"),  # at the end
        (run(2000, every=1000, knn=(20.0, 15.0, 18.0)), "k-NN 18.0 % is not above"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_learns_nothing_is_named(records: list[dict[str, Any]], words: str) -> None:
    found = diagnose(records, FACTS)
    assert (found.kind, found.alarm) == (KIND, True) and words in found.words
    assert found.words.endswith((GENERAL_ADVICE["stalled"], GENERAL_ADVICE["rest"]))


@pytest.mark.parametrize(
    "records",
    [
        run(1500),
        run(1500, weight_norm=None),
        run(1500, loss=0.96 * math.log(K), assignment_information=0.01 * math.log(K) + 0.001),
        run(1500, loss=0.99 * math.log(K), assignment_information=0.2 * math.log(K)),
        run(1500, at={name: 1.1 * value for name, value in FEATURES.items()}),
        run(1500, at=FEATURES | {"uniformity": -1.8}),
        run(1500, knn=(20.0, 21.0, 23.0, 22.0)),
        run(1500, knn=(20.0, 16.0, 17.0, 19.0)),  # below, and rising
        run(1000, knn=(20.0, 16.0, 15.0)),  # twice is too few before the end
        run(1500, knn=(20.0, 25.0, 26.0, 27.0), **GUESS),  # the loss is at ln K, and neighbours are found
        run(2000, knn=(20.0, 19.0, 18.0, 19.0, 21.0)),
    ],
    ids=range(11),
)
def test_what_learns_is_not(records: list[dict[str, Any]]) -> None:
    assert diagnose(records, FACTS).kind == "healthy"


@pytest.mark.parametrize(("n", "kind"), [(16, "healthy"), (90, KIND), (100, KIND), (None, KIND)])
def test_of_few_images_k_nn_says_nothing_within_chance(n: int | None, kind: str) -> None:
    records = run(2000, knn=(60.0, 45.0, 45.0, 45.0, 44.0))
    assert diagnose(records, FACTS._replace(num_labelled=n)).kind == kind


@pytest.mark.parametrize(("at", "alarm"), [(390, False), (400, True), (1000, True)])
def test_it_is_a_note_before_a_fifth_of_the_run(at: int, alarm: bool) -> None:
    found = diagnose(run(at, weight_norm=50.0), FACTS)
    assert (found.kind, found.early, found.alarm) == (KIND, not alarm, alarm)


@pytest.mark.parametrize("total", [1, 100, SHORTEST - 1, SHORTEST])
def test_a_run_that_is_too_short_reports_it(total: int) -> None:
    facts = FACTS._replace(total_steps=total, warmup_steps=0)
    found = diagnose(run(total, weight_norm=50.0), facts)
    assert not found.alarm or total == SHORTEST
    assert found.kind == (KIND if total == SHORTEST else "too short to judge")
    assert ("takes 210" in found.words) is (total < SHORTEST)
    dead = [{"step": 0, "distinct_images": 0.01}, line(1)]
    assert diagnose(dead, facts).kind == "dead data", "what needs no training is named all the same"
    assert diagnose(run(220), facts._replace(total_steps=220, warmup_steps=22)).kind == "too short to judge"


def test_a_rate_of_0_is_never_to_be_lowered() -> None:
    """Whatever else a rule would say: outputs, features, contrast."""
    bad = {"assignment_information": 1e-4, "positive_similarity": 0.5, "negative_similarity": 0.5}
    alike = {"rankme": 1.1, "effective_rank": 1.1, "feature_std": 0.1, "uniformity": -0.1}
    for method in METHODS.values():
        facts = FACTS._replace(lr=0.0, advice=method.Config.advice, settings=vars(method.Config()))
        found = diagnose(run(1500, at=alike, lr=1e-6, **bad), facts)
        assert found.kind == KIND and "--optim.lr is 0 (the learning rate is now 1e-06)" in found.words
        assert "lower" not in found.words.lower()


@pytest.mark.parametrize(
    ("now", "kind"),
    [
        ({"feature_std": 0.15, "uniformity": -0.2}, "healthy"),  # a little better than before training
        ({"feature_std": 0.05, "uniformity": -0.02}, "constant"),
        ({"rankme": 1.2, "effective_rank": 1.05}, "dimensional"),
    ],
)
def test_features_are_judged_against_those_of_step_0(now: dict[str, float], kind: str) -> None:
    """The untrained network may lie beyond every limit: then only what became worse is a collapse."""
    untrained = {"rankme": 2.0, "effective_rank": 1.5, "feature_std": 0.14, "uniformity": -0.15}
    before, after = look(0) | untrained, look(1000) | untrained | {"rankme": 2.1} | now
    assert diagnose([before, *run(1000, every=5000)[1:], after, line(1010)], FACTS).kind == kind


# Real runs.


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stalls")
    choice = np.random.default_rng(0)
    for i in range(16):
        pixels = choice.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        (folder / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((24, 24), Image.Resampling.BICUBIC).save(folder / "photos" / f"{i}.png")
    return folder / "photos"


SIZES: dict[str, dict[str, Any]] = {
    "dino": {"global_size": 16, "local_size": 8, "num_local": 1, "num_prototypes": 16, "hidden_dim": 8},
    "msn": {"random_size": 16, "focal_size": 8, "num_focal": 1, "num_prototypes": 4, "hidden_dim": 8, "output_dim": 8},
    "densecl": {"size": 16, "queue_size": 16, "hidden_dim": 8, "projection_dim": 8},
    "mocov2": {"size": 16, "queue_size": 16, "hidden_dim": 8, "projection_dim": 8},
    "simclr": {"size": 16, "projection_dim": 8},
}
FAST = {"batch_size": 4, "workers": 0, "threads": 1, "device": "cpu", "precision": "fp32", "view_engine": "torch"}
TINY = ["patch_size=8", "embed_dim=8", "depth=1", "num_heads=1"]


@pytest.mark.parametrize("name", SIZES)
def test_a_rate_of_0_is_named_in_a_run_of_every_method(
    name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a tenth of the steps: the limits are patched, nothing else."""
    for module, limit, steps in ((diagnosis, "SETTLE", 8), (diagnosis, "SHORTEST", 12), (stagnation, "WINDOW", 8)):
        monkeypatch.setattr(module, limit, steps)
    made = short_run(name, photos, tmp_path / "run", 16)
    health = made.status()["health"]
    assert health["kind"] == KIND and "no weight moves" in health["words"] and "lower" not in health["words"].lower()
    assert [e["event"] for e in made.events() if e.get("kind") == KIND] == ["alarm"]


def short_run(name: str, photos: Path, out: Path, steps: int, lr: float = 0.0, **more: Any) -> nolabel.Run:
    return nolabel.train(
        f"{name}-small",
        photos,
        out,
        steps=steps,
        backbone="vit_tiny_patch16_224",
        backbone_args=TINY,
        method=SIZES[name],
        optim={"lr": lr, "min_lr": 0.0, "warmup_epochs": 0},
        log_every=2,
        eval_every=steps // 2,
        checkpoint_every=1000,
        **FAST,
        **more,
    )


def test_a_short_run_reports_that_it_is_short(photos: Path, tmp_path: Path) -> None:
    made = short_run("dino", photos, tmp_path / "run", 4)
    assert made.status()["health"]["kind"] == "too short to judge"
    assert [e["kind"] for e in made.events() if e["event"] == "note"] == ["too short to judge"]


def test_the_last_evaluation_is_judged(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes after the last log line."""
    for module, limit, steps in ((diagnosis, "SETTLE", 2), (diagnosis, "SHORTEST", 4)):
        monkeypatch.setattr(module, limit, steps)
    accuracies = iter((30.0, 45.0, 29.0))
    monkeypatch.setattr(knn, "monitor", lambda *_: next(accuracies))
    for label in "ab":
        shutil.copytree(photos, tmp_path / "labelled" / label)
    seen: list[int | None] = []
    real = monitor.collect_facts
    monkeypatch.setattr(monitor, "collect_facts", lambda *a: (seen.append(a[-1]), real(*a[:-1], 500))[1])
    made = short_run("simclr", photos, tmp_path / "run", 16, lr=0.01, labels=str(tmp_path / "labelled"))
    assert seen == [32] and "k-NN 29.0 % is not above the untrained network (30.0 %" in made.status()["health"]["words"]
    assert made.status()["state"] == "done"
