"""Signals against loops and known answers; which case trips which signal; the verdict on a series of metrics."""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import nolabel.health
from nolabel.health.diagnosis import diagnose
from nolabel.health.facts import GENERAL_ADVICE, RunFacts, collect_facts
from nolabel.health.features import FeatureSignals, feature_signals
from nolabel.health.verdict import WINDOW
from nolabel.losses.distillation import information
from nolabel.methods import METHODS

N, D, K = 1024, 128, 4096
FACTS = RunFacts(vars(METHODS["dino"].Config()), METHODS["dino"].Config.advice, D, K, 100, 1000)


def isotropic(n: int = N, d: int = D) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def of_rank(rank: int) -> Tensor:
    mix = torch.randn(rank, D, generator=torch.Generator().manual_seed(1))
    return isotropic(d=rank) @ mix


def power_law(alpha: float) -> Tensor:
    return isotropic() * torch.arange(1, D + 1) ** (-alpha / 2)


CASES: dict[str, Tensor] = {
    "isotropic": isotropic(),
    "power law 1": power_law(1.0),
    "power law 2": power_law(2.0),
    "common offset": isotropic() + 30,
    "rank 8": of_rank(8),
    "rank 1": of_rank(1),
    "constant": torch.ones(N, D) + 1e-3 * isotropic(),
}


def test_the_ranks_are_exponentials_of_entropies() -> None:
    x = power_law(1.0)[:200].double()
    singular = torch.linalg.svdvals(x)
    p = singular / singular.sum() + 1e-7
    assert feature_signals(x).rankme == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-6)
    spread = torch.linalg.svdvals(x - x.mean(0)).square()
    q = spread / spread.sum() + 1e-7
    assert feature_signals(x).effective_rank == pytest.approx(float(torch.exp(-(q * q.log()).sum())), rel=1e-6)


def test_spread_and_uniformity_are_those_of_their_definitions() -> None:
    x = F.normalize(isotropic(40, 6).double(), dim=1)
    std = sum(x[:, i].std() for i in range(6)) / 6 * math.sqrt(6)
    pairs = [math.exp(-2 * float((x[i] - x[j]).square().sum())) for i in range(40) for j in range(i)]
    found = feature_signals(x)
    assert found.feature_std == pytest.approx(float(std), rel=1e-9)
    assert found.uniformity == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-9)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_the_slope_of_a_power_law_is_its_exponent(alpha: float) -> None:
    q = torch.linalg.qr(isotropic().double())[0]
    assert feature_signals(q * torch.arange(1, D + 1) ** (-alpha / 2)).alpha == pytest.approx(alpha, abs=0.05)


@pytest.mark.parametrize("name", CASES)
def test_signals_are_finite_whatever_the_features(name: str) -> None:
    assert all(math.isfinite(v) for k, v in feature_signals(CASES[name])._asdict().items() if k != "alpha")
    assert all(math.isfinite(v) for k, v in feature_signals(torch.zeros(8, D))._asdict().items() if k != "alpha")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("isotropic", "healthy"),
        ("power law 1", "healthy"),
        ("common offset", "constant"),
        ("rank 1", "dimensional"),
        ("constant", "constant"),
    ],
)
def test_features_that_are_so_from_the_first_look(name: str, kind: str) -> None:
    assert diagnose([log(1000), look(1000, CASES[name])], FACTS).kind == kind


@pytest.mark.parametrize(
    ("name", "kind"), [("rank 8", "dimensional"), ("power law 2", "healthy"), ("power law 1", "healthy")]
)
def test_features_that_become_so(name: str, kind: str) -> None:
    """By the share of the best rank so far; a steeper power law alone is no collapse."""
    records = [log(1000), look(1000, isotropic()), log(2000), look(2000, CASES[name])]
    assert diagnose(records, FACTS).kind == kind


def log(step: int, **values: float) -> dict[str, Any]:
    """A line of metrics of a healthy DINO, whose weights grow a little."""
    healthy = {"loss": 6.0, "teacher_entropy": 5.0, "assignment_information": 2.0, "lr": 1e-3}
    return {"step": step, "weight_norm": 50 + step / 1000, **healthy, **values}


def look(step: int, features: Tensor) -> dict[str, Any]:
    return {"step": step, **feature_signals(features)._asdict()}


def series(first: int, last: int, **values: float) -> list[dict[str, Any]]:
    return [log(step, **values) for step in range(first, last + 1, 10)]


UNIFORM = {"loss": math.log(K), "teacher_entropy": math.log(K), "assignment_information": 1e-4}
ONE_HOT = {"loss": 0.02, "teacher_entropy": 0.01, "assignment_information": 1e-4}
SAME = {"loss": 4.0, "teacher_entropy": 4.0, "assignment_information": 1e-4}


@pytest.mark.parametrize(("values", "kind"), [(UNIFORM, "uniform"), (ONE_HOT, "constant"), (SAME, "same output")])
def test_a_collapse_of_the_outputs_is_named_within_the_window(values: dict[str, float], kind: str) -> None:
    before = series(0, 1000)
    assert diagnose(before, FACTS).kind == "healthy"
    early = series(1010, 1000 + WINDOW - 10, **values)
    assert diagnose(before + early, FACTS).kind == "healthy", "too early to tell"
    found = diagnose(before + series(1010, 1010 + WINDOW, **values), FACTS)
    assert found.kind == kind and found.alarm


@pytest.mark.parametrize(("untrained", "kind"), [(6.0, "healthy"), (20.0, "dimensional")])
def test_features_that_span_less_than_before_training(untrained: float, kind: str) -> None:
    now = look(1000, isotropic()) | {"effective_rank": 5.0}
    start = {"step": 0, "effective_rank": untrained}
    assert diagnose([start, *series(10, 1000), now], FACTS).kind == kind


def falling(first: int, last: int, entropy: float, information: float) -> list[dict[str, Any]]:
    """Both shrink towards the given values."""
    share = [(step, (step - first) / (last - first)) for step in range(first, last + 1, 10)]
    return [
        log(step, teacher_entropy=5.0 + t * (entropy - 5.0), assignment_information=2.0 + t * (information - 2.0))
        for step, t in share
    ]


@pytest.mark.parametrize(
    ("entropy", "information", "kind"),
    [
        (0.4, 0.5, "constant"),  # sure, and of less and less: no centering
        (0.4, 2.5, "healthy"),  # sure, and of more and more
        (4.0, 0.5, "healthy"),  # unsure: begins to look so in the first epochs of a healthy DINO
    ],
)
def test_a_collapse_to_one_output_is_named_before_it_is_complete(entropy: float, information: float, kind: str) -> None:
    records = falling(0, 1000, entropy, information)
    records += series(1010, 1000 + WINDOW, teacher_entropy=entropy, assignment_information=information)
    assert diagnose(records, FACTS).kind == kind


def test_the_words_have_numbers_and_the_setting_to_change() -> None:
    words = diagnose(series(0, 1000, **UNIFORM), FACTS).words
    assert "8.318" in words and "ln 4096" in words and "--method.teacher-temp (now 0.04)" in words


def test_a_flat_beginning_is_no_collapse() -> None:
    """A healthy DINO begins near ln K, too."""
    assert diagnose(series(0, 250, **UNIFORM), FACTS).kind == "warming up"
    assert diagnose([], FACTS).kind == "warming up"


def test_a_recovery_ends_the_alarm() -> None:
    assert diagnose(series(0, 1000, **UNIFORM) + series(1010, 1100), FACTS).kind == "healthy"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"positive_similarity": 0.99, "negative_similarity": 0.985}, "no contrast"),
        ({"positive_similarity": 0.9, "negative_similarity": 0.1}, "healthy"),
        ({"matches_distinct": 0.03, "dense_weight": 1.0}, "one location"),
        ({"matches_distinct": 0.03, "dense_weight": 0.5}, "dense head idle"),
        ({"matches_distinct": 0.5}, "healthy"),
        ({"dense_by_place": 0.95, "dense_weight": 1.0}, "place"),
        ({"dense_by_place": 0.95, "dense_weight": 0.5}, "dense head idle"),
        ({"dense_by_place": 0.6, "dense_weight": 1.0}, "healthy"),
    ],
)
def test_contrast_and_locations(values: dict[str, float], kind: str) -> None:
    config = METHODS["densecl"].Config
    facts = FACTS._replace(advice=config.advice, num_outputs=None, settings=vars(config()))
    found = diagnose(series(0, 1000, **values), facts)
    assert ("--method." in found.words) is (kind != "healthy")
    assert found.kind == kind and found.alarm is (kind not in ("healthy", "dense head idle"))


@pytest.mark.parametrize(("share", "kind"), [(0.6, "unused prototypes"), (0.4, "healthy")])
def test_few_prototypes_for_all_images_are_named(share: float, kind: str) -> None:
    advice = METHODS["msn"].Config.advice
    facts = FACTS._replace(advice=advice, num_outputs=128, settings={"memax_weight": 0.0, "sinkhorn_rounds": 0})
    records = series(0, 1000, loss=3.0, memax_gap=share * math.log(128), prototypes_used=5.0)
    found = diagnose(records, facts)
    assert found.kind == kind and ("5 of 128" in found.words and "--method.memax-weight (now 0)" in found.words) is (
        kind != "healthy"
    )
    even = series(1010, 1050, loss=3.0, memax_gap=0.1, prototypes_used=60.0)
    assert diagnose(records + even, facts).kind == "healthy"


@pytest.mark.parametrize("broken", [math.nan, None])  # as the run has it, and as it is read from metrics.jsonl
def test_features_that_are_not_finite_are_named(broken: float | None) -> None:
    bad = dict.fromkeys(FeatureSignals._fields, broken)
    good = look(500, isotropic())
    found = diagnose([look(0, isotropic()), good, *series(510, 1000), {"step": 1000, **bad}], FACTS)
    assert found.kind == "not finite" and "step 1000" in found.words
    recovered = [{"step": 0, **bad}, {"step": 600, **bad}, *series(610, 1000), look(1000, isotropic())]
    assert diagnose(recovered, FACTS).kind == "healthy"


def test_dead_data_and_exploding_weights_are_named_at_once() -> None:
    first = {"step": 0, "distinct_images": 1 / 256}
    assert diagnose([first, log(10)], FACTS).kind == "dead data"
    assert diagnose([{"step": 0, "distinct_images": 0.9}, log(10)], FACTS).kind == "warming up"
    found = diagnose([log(10), log(20, weight_norm=2000.0, lr=0.5)], FACTS)
    assert found.kind == "exploding" and "0.5" in found.words
    for step, kind in ((FACTS.warmup_steps, "exploding"), (5000, "healthy")):  # growth that is slow is no fault
        assert diagnose([log(10), log(step, weight_norm=200.0)], FACTS).kind == kind


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (lambda: torch.full((6, 8), 1 / 8), 0.0),
        (lambda: torch.eye(8)[torch.zeros(6, dtype=torch.long)], 0.0),
        (lambda: torch.eye(8), math.log(8)),
        (lambda: torch.eye(8)[torch.arange(4)].view(2, 2, 8), math.log(4)),
    ],
)
def test_information_separates_images(p: Callable[[], Tensor], expected: float) -> None:
    assert information(p()).item() == pytest.approx(expected, abs=1e-6)


def test_the_warmup_is_that_of_the_rate_or_a_fiftieth_of_the_run() -> None:
    settings = {"num_prototypes": 512}
    assert collect_facts(settings, {}, 64, 10, 30.0, 1000) == RunFacts(settings, {}, 64, 512, 300, 1000)
    assert collect_facts({}, {}, 64, 0.1, 30.0, 1000, 0.5, 9) == RunFacts({}, {}, 64, None, 20, 1000, 0.5, 9)


def test_a_method_without_advice_gets_the_general_one() -> None:
    records = series(0, 1000, **UNIFORM)
    assert diagnose(records, FACTS._replace(advice={})).words.endswith(GENERAL_ADVICE["uniform"])
    unknown = FACTS._replace(advice={"uniform": "Lower {teacher_temp}."}, settings={"teacher_temp": "auto"})
    assert diagnose(records, unknown).words.endswith(" Lower --method.teacher-temp.")


@pytest.mark.parametrize("name", METHODS)
def test_the_advice_of_a_method_names_its_settings(name: str) -> None:
    config = METHODS[name].Config
    assert config.advice.keys() <= GENERAL_ADVICE.keys()
    named = {setting for text in config.advice.values() for setting in re.findall(r"\{(.*?)\}", text)}
    assert named <= {f.name for f in dataclasses.fields(config)}


def test_health_knows_no_method_by_name() -> None:
    (folder,) = nolabel.health.__path__
    texts = {path.name: path.read_text(encoding="utf-8").lower() for path in Path(folder).glob("*.py")}
    names = [*METHODS, "moco"]
    assert len(texts) > 3 and {(file, name) for file, text in texts.items() for name in names if name in text} == set()


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("assignment_information", UNIFORM, "uniform"),
        ("memax_gap", {"memax_gap": 0.9 * math.log(K)}, "unused prototypes"),
        ("negative_similarity", {"positive_similarity": 0.5, "negative_similarity": 0.5}, "no contrast"),
        ("dense_by_place", {"dense_by_place": 0.95, "dense_weight": 1.0}, "place"),
    ],
)
def test_a_signal_that_was_not_finite_is_passed_over(name: str, values: dict[str, float], kind: str) -> None:
    """A resumed run reads null from metrics.jsonl."""
    broken: dict[str, Any] = log(1110, **values) | {name: None}
    assert diagnose([*series(0, 1100, **values), broken], FACTS).kind == kind
