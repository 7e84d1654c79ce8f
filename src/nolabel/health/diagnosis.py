"""Is it learning, or has it collapsed? Rules that turn the signals of a run into a verdict in words.

A `Diagnosis` is a sentence with its evidence and the setting to change. No single signal sees every kind of collapse
(docs/guides/is-it-learning.md shows which one misses which), so the features are judged by the votes of several;
`features.py` computes those. Rules know signals and no method: a rule whose signals are not logged finds nothing, and
the advice is the method's own.
"""

import math
from collections.abc import Callable, Sequence

from nolabel.health.facts import RunFacts, advise
from nolabel.health.stagnation import judge_rest, judge_stagnation
from nolabel.health.verdict import (
    WINDOW,
    Diagnosis,
    Record,
    Series,
    all_below,
    entropy_name,
    is_finite,
    mean,
    values,
)

SETTLE = 200
"""Steps after the warm-up in which nothing but the data and the weights' size is judged."""
SHORTEST = SETTLE + 10
"""Steps of the shortest run that can be judged."""


HEALTHY, WARMING = Diagnosis("healthy", ""), Diagnosis("warming up", "")


def diagnose(records: Sequence[Record], facts: RunFacts) -> Diagnosis:
    """Diagnose a run at its last step. `records` ascend in "step" and hold log and evaluation lines."""
    if not records:
        return WARMING
    now = records[-1]["step"]
    series = Series(
        records,
        window=[r for r in records if r["step"] > now - WINDOW and "loss" in r],
        evaluations=[r for r in records if "rankme" in r and r["step"] >= facts.warmup_steps],
    )
    needed = max(SHORTEST, facts.warmup_steps + SETTLE)
    settled = now >= facts.warmup_steps + SETTLE and facts.total_steps >= needed
    for rule in (*RULES_AT_ONCE, *RULES) if settled else RULES_AT_ONCE:
        if diagnosis := rule(series, facts):
            return diagnosis
    if facts.total_steps < needed:
        return Diagnosis(
            "too short to judge",
            f"A run of {facts.total_steps} steps is too short to judge whether it learns: that takes {needed} "
            "(--steps, --epochs).",
        )
    return HEALTHY if settled else WARMING


def judge_data(series: Series, facts: RunFacts) -> Diagnosis | None:
    """Detect images that are nearly all the same."""
    distinct = next((r["distinct_images"] for r in series.records if "distinct_images" in r), None)
    if distinct is None or distinct > 0.1:
        return None
    return Diagnosis(
        "dead data",
        f"Only {100 * distinct:.1f} % of the images that were looked at are distinct, so there is nothing to learn. "
        "Check DATA: nolabel check DATA lists duplicates.",
    )


def judge_weight_growth(series: Series, facts: RunFacts) -> Diagnosis | None:
    """Detect weights that grow many times over: a learning rate far too high shows there first."""
    norms = [(r["step"], r["weight_norm"]) for r in series.records if r.get("weight_norm")]
    early = bool(norms) and norms[-1][0] <= facts.warmup_steps + SETTLE
    if len(norms) < 2 or norms[-1][1] < (3 if early else 10) * norms[0][1]:
        return None
    lr = next((r["lr"] for r in reversed(series.records) if r.get("lr") is not None), math.nan)
    return Diagnosis(
        "exploding",
        f"The weights have grown to {norms[-1][1] / norms[0][1]:.0f} times their size at step {norms[0][0]}: the "
        f"learning rate (now {lr:.3g}) is too high. Divide --optim.lr by 10 to 100.",
    )


def judge_outputs(series: Series, facts: RunFacts) -> Diagnosis | None:
    """Detect outputs over prototypes that hold no information about the image."""
    if facts.num_outputs is None:
        return None
    window, most = series.window, math.log(facts.num_outputs)
    if not all_below(window, "assignment_information", 0.01 * most):
        return None
    entropy, loss = mean(window, entropy_name(window)), mean(window, "loss")
    evidence = f"its outputs hold {mean(window, 'assignment_information'):.3f} nats about the image, for {WINDOW} steps"
    if entropy > 0.9 * most:
        return Diagnosis(
            "uniform",
            f"The output is uniform: loss {loss:.3f}, ln {facts.num_outputs} = {most:.3f}; {evidence}. "
            + advise(facts, "uniform"),
        )
    if entropy < 0.1 * most:
        return Diagnosis(
            "constant",
            f"Every image gives the same output: entropy {entropy:.3f} of {most:.3f}, loss {loss:.3f}; {evidence}. "
            + advise(facts, "constant"),
        )
    return Diagnosis(
        "same output",
        f"Every image gives the same soft output: entropy {entropy:.3f} of {most:.3f}; {evidence}. "
        + advise(facts, "constant"),
    )


def judge_prototype_use(series: Series, facts: RunFacts) -> Diagnosis | None:
    """Detect a mean prediction far from even use (`memax_gap`), so that few prototypes take all images."""
    gaps = values(series.window, "memax_gap")
    if facts.num_outputs is None or not gaps:
        return None
    most = math.log(facts.num_outputs)
    if min(gaps) < 0.5 * most:
        return None
    return Diagnosis(
        "unused prototypes",
        f"Few prototypes take all images: the mean prediction is {mean(series.window, 'memax_gap'):.2f} of {most:.2f} "
        f"nats from even use, {mean(series.window, 'prototypes_used'):.0f} of {facts.num_outputs} win images of a "
        f"batch, for {WINDOW} steps. " + advise(facts, "constant"),
    )


def judge_contrast(series: Series, facts: RunFacts) -> Diagnosis | None:
    """Detect positives (`positive_similarity`) that are no nearer than negatives (`negative_similarity`)."""
    pairs = [(r.get("positive_similarity"), r.get("negative_similarity")) for r in series.window]
    gaps = [positive - negative for positive, negative in pairs if positive is not None and negative is not None]
    if not gaps or max(gaps) >= 0.02:
        return None
    positive, negative = mean(series.window, "positive_similarity"), mean(series.window, "negative_similarity")
    return Diagnosis(
        "no contrast",
        f"Two views of an image are no more similar than two images: cosine {positive:.3f} "
        f"against {negative:.3f}, for {WINDOW} steps. " + advise(facts, "contrast"),
    )


def judge_output_drain(series: Series, facts: RunFacts) -> Diagnosis | None:
    """Detect a collapse to one output under way: sure outputs that hold less and less information about the image.

    Sure outputs alone are no fault, for they may be sure of different things; then their information grows.
    """
    window = series.window
    if facts.num_outputs is None or not window:
        return None
    name = entropy_name(window)
    if not all_below(window[-1:], name, 0.1 * math.log(facts.num_outputs)):
        return None
    most = max(values(series.records, "assignment_information"), default=0.0)
    if not all_below(window, "assignment_information", 0.5 * most):
        return None
    return Diagnosis(
        "constant",
        f"More and more images give the same output: entropy {window[-1][name]:.3f} of "
        f"{math.log(facts.num_outputs):.3f}; its outputs hold {mean(window, 'assignment_information'):.3f} nats about "
        f"the image, once {most:.3f}. " + advise(facts, "constant"),
    )


def judge_features(series: Series, facts: RunFacts) -> Diagnosis | None:
    """Judge the feature signals at the last evaluation: a collapse takes two of their four votes."""
    if not series.evaluations:
        return None
    last = series.evaluations[-1]
    if not is_finite(last["rankme"]):
        return Diagnosis(
            "not finite",
            f"The features of the images looked at are not finite at step {last['step']}, so no image can be "
            "recognised. Go back to an earlier checkpoint and lower --optim.lr, or use --precision fp32.",
        )
    finite = [r for r in series.evaluations if is_finite(r["rankme"])]
    best_rank, best_effective = (max(r[name] for r in finite) for name in ("rankme", "effective_rank"))
    rank, effective, spread, even = (last[name] for name in ("rankme", "effective_rank", "feature_std", "uniformity"))
    before = series.untrained or {}

    def is_worse(name: str) -> bool:
        """Whether a signal is worse than that of the untrained network, which may be beyond a limit, too."""
        return not is_finite(before.get(name)) or abs(last[name]) < 0.9 * abs(before[name])

    alike, uneven = spread < 0.2 and is_worse("feature_std"), even > -0.5 and is_worse("uniformity")
    few = rank < max(4.0, 0.02 * facts.width) and is_worse("rankme")
    least = effective < max(3.0, 0.01 * facts.width) and is_worse("effective_rank")
    votes = {
        f"RankMe {rank:.1f}": few or rank < 0.3 * best_rank,
        f"effective rank {effective:.1f}": least or effective < 0.3 * best_effective,
        f"spread {spread:.2f}": alike,
        f"uniformity {even:.2f}": uneven,
    }
    bad = [name for name, vote in votes.items() if vote]
    if len(bad) < 2:
        return None
    kind = "constant" if alike and uneven else "dimensional"
    event = "All images have nearly the same features" if kind == "constant" else "The features span few directions"
    return Diagnosis(kind, f"{event}: {', '.join(bad)} of {facts.width} dimensions. " + advise(facts, kind))


def judge_rank_loss(series: Series, facts: RunFacts) -> Diagnosis | None:
    """Detect features that span fewer directions than untrained ones: every run that learned spanned more."""
    untrained = series.untrained
    if untrained is None or not series.evaluations:
        return None
    rank, rank_untrained = series.evaluations[-1]["effective_rank"], untrained["effective_rank"]
    if rank >= 0.4 * rank_untrained:
        return None
    return Diagnosis(
        "dimensional",
        f"The features span fewer directions than before training: effective rank {rank:.1f} of "
        f"{facts.width} dimensions, untrained {rank_untrained:.1f}. " + advise(facts, "dimensional"),
    )


def judge_locations(series: Series, facts: RunFacts) -> Diagnosis | None:
    """Detect a useless dense head: all locations match the same few, or their features depend on the place alone.

    It is an alarm only where nothing but the dense loss trains (`dense_weight`).
    """
    window = series.window
    if all_below(window, "matches_distinct", 0.1):
        kind, distinct = "one location", 100 * mean(window, "matches_distinct")
        words = f"Nearly all locations of an image match the same few of the other view: {distinct:.1f} % distinct"
    elif (place := min(values(window, "dense_by_place"), default=0.0)) > 0.9:
        kind = "place"
        words = f"The dense head encodes places, not what they show: the place decides {100 * place:.0f} % of it"
    else:
        return None
    alone = window[-1].get("dense_weight", 1.0) > 0.9
    teacher = "Nothing" if alone else "Only the global loss"
    return Diagnosis(
        kind if alone else "dense head idle",
        f"{words}, for {WINDOW} steps. {teacher} teaches the backbone what is shown. " + advise(facts, "locations"),
    )


Rule = Callable[[Series, RunFacts], Diagnosis | None]
"""Function that gives its verdict, or None where the fault is absent."""
RULES_AT_ONCE: tuple[Rule, ...] = (judge_data, judge_weight_growth)
"""Rules that see their fault also before a run has settled."""
RULES: tuple[Rule, ...] = (
    judge_rest,
    judge_outputs,
    judge_prototype_use,
    judge_contrast,
    judge_output_drain,
    judge_features,
    judge_rank_loss,
    judge_stagnation,
    judge_locations,
)
"""Rules for a run that has settled, tried in this order: the first verdict counts."""
