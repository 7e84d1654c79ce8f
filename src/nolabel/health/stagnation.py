"""Rules for runs that learn nothing: compared with step 0, with the floors of k-NN, and with outputs of a guess.

In a collapse the network loses what it had; here it never learns anything. Each rule reads only logged signals.
"""

import math

from nolabel.health.facts import RunFacts, advise
from nolabel.health.verdict import WINDOW, Diagnosis, Series, all_below, is_finite, mean, values

KIND = "learning nothing yet"
EARLY = 0.2
"""Share of the run in which learning nothing is a note, not yet an alarm."""
GUESS, UNINFORMED = 0.975, 0.05
"""Shares of ln K. Outputs explain nothing if the loss is above the first and their information about the image is below
the second."""
SAME = 0.02
"""Relative difference up to which a signal of the features counts as equal to that of the untrained network."""
FEATURES = ("rankme", "effective_rank", "feature_std", "uniformity")


def judge_rest(series: Series, facts: RunFacts) -> Diagnosis | None:
    """Detect weights that do not move at all, and a learning rate of 0."""
    norms = [(r["step"], r["weight_norm"]) for r in series.records if r.get("weight_norm")]
    rates, evidence = values(series.records, "lr"), list[str]()
    if facts.lr == 0:
        evidence.append(f"--optim.lr is 0 (the learning rate is now {rates[-1] if rates else 0:.3g})")
    if len(norms) > 1 and norms[-1][0] - norms[0][0] >= WINDOW and _still([norm for _, norm in norms]):
        evidence.append(f"no weight moves: their norm is {norms[-1][1]:.6g} as at step {norms[0][0]}")
    return _stalled(evidence, "rest", series, facts) if evidence else None


def judge_stagnation(series: Series, facts: RunFacts) -> Diagnosis | None:
    """Detect outputs that explain nothing, features as before training, and k-NN no better than before training."""
    evidence = [words for words in (_outputs(series, facts), _features(series), _neighbours(series, facts)) if words]
    learned = _gain(series, facts)
    if not evidence or (learned is not None and learned > 2):
        return None
    return _stalled(evidence, "stalled", series, facts)


def _stalled(evidence: list[str], advice: str, series: Series, facts: RunFacts) -> Diagnosis:
    words = f"Nothing is learned yet: {'; '.join(evidence)}. " + advise(facts, advice)
    return Diagnosis(KIND, words, early=series.now < EARLY * facts.total_steps)


def _still(norms: list[float]) -> bool:
    return max(norms) - min(norms) <= 1e-6 * norms[0]


def _outputs(series: Series, facts: RunFacts) -> str:
    """Evidence of a cross-entropy at ln K, the value of a guess."""
    if facts.num_outputs is None or not series.window:
        return ""
    most = math.log(facts.num_outputs)
    name = "ce" if values(series.window, "ce") else "loss"
    losses = values(series.window, name)
    if not losses or "assignment_information" not in series.window[-1]:
        return ""
    informed = not all_below(series.window, "assignment_information", UNINFORMED * most)
    if min(losses) < GUESS * most or (informed and mean(series.window, name) < most):
        return ""
    return (
        f"{name} {mean(series.window, name):.3f} is that of a guess, ln {facts.num_outputs} = {most:.3f}, and outputs "
        f"hold {mean(series.window, 'assignment_information'):.3f} nats about the image, for {WINDOW} steps"
    )


def _features(series: Series) -> str:
    """Evidence of features with all signals as at step 0."""
    before = series.untrained
    if before is None or not series.evaluations:
        return ""
    last = series.evaluations[-1]
    if last["step"] == 0 or not all(is_finite(r.get(name)) for r in (before, last) for name in FEATURES):
        return ""
    if any(abs(last[name] - before[name]) > SAME * abs(before[name]) for name in FEATURES):
        return ""
    return (
        f"features are as before training: RankMe {last['rankme']:.1f} and {before['rankme']:.1f}, spread "
        f"{last['feature_std']:.2f} and {before['feature_std']:.2f}"
    )


def _neighbours(series: Series, facts: RunFacts) -> str:
    """Evidence of k-NN no better than that of the untrained network; with few images, by more than chance."""
    measured = _measured(series, facts)
    if not measured:
        return ""
    before = next(r["knn_untrained"] for r in series.records if r.get("knn_untrained") is not None)
    n, share = facts.num_labelled, before / 100
    chance = 0.0 if n is None or n >= 100 else 200 * math.sqrt(2 * share * (1 - share) / n)
    if max(measured) > before - chance or not (_at_end(series, facts) or len(measured) >= 3):
        return ""
    if not _at_end(series, facts) and measured[-1] == max(measured) > min(measured):
        return ""  # it is rising
    raw = next((r["knn_raw"] for r in series.records if r.get("knn_raw") is not None), None)
    floor = "" if raw is None else f", raw pixels {raw:.1f}"
    return f"k-NN {measured[-1]:.1f} % is not above the untrained network ({before:.1f} %{floor})"


def _measured(series: Series, facts: RunFacts) -> list[float]:
    """k-NN of the evaluations after the first fifth of the run; at the end of the run only the last one."""
    if not any(r.get("knn_untrained") is not None for r in series.records):
        return []
    late = [r for r in series.records if r["step"] > EARLY * facts.total_steps]
    measured: list[float] = values(late, "knn")
    return measured[-1:] if _at_end(series, facts) else measured


def _at_end(series: Series, facts: RunFacts) -> bool:
    """Whether the last step has been taken and evaluated."""
    return series.now >= facts.total_steps and "knn" in series.records[-1]


def _gain(series: Series, facts: RunFacts) -> float | None:
    """Points of k-NN above the untrained network at the last evaluation; None with too few images or evaluations."""
    if facts.num_labelled is not None and facts.num_labelled < 100:
        return None
    before, now = values(series.records, "knn_untrained"), values(series.records, "knn")
    return now[-1] - before[0] if before and len(now) > 1 else None
