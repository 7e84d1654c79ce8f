"""Is it learning, or has it collapsed? What the signals of a run say in words.

A `Diagnosis` is a sentence with its evidence and the setting to change. No single signal sees every kind of collapse
(docs/health.md shows which misses what), so features are judged by the vote of several; `spread.py` computes those.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Record = Mapping[str, Any]
"""A line of metrics.jsonl."""


SETTLE = 200
"""Steps after the warm-up in which nothing but the data and the weights' size is judged."""


WINDOW = 100
"""Steps over which a signal of the outputs must stay bad."""


class Facts(NamedTuple):
    """What a run is, as far as its health is concerned."""

    method: str
    settings: Mapping[str, Any]
    """Of the method, by name, for the advice."""
    width: int
    """D of the features."""
    num_outputs: int | None
    """K of a method with prototypes: its loss is ln K when the output is uniform."""
    warmup_steps: int
    """Steps in which nothing is judged: learning rates rise, outputs of a fresh network are all alike."""


def facts(
    method: str, settings: Mapping[str, Any], width: int, warmup_epochs: float, per_epoch: float, total_steps: int
) -> Facts:
    """The facts of a run: `settings` are its method's, `width` is D, `per_epoch` steps an epoch."""
    warmup = max(round(warmup_epochs * per_epoch), total_steps // 50)
    return Facts(method, settings, width, settings.get("num_prototypes"), warmup)


class Diagnosis(NamedTuple):
    """What is wrong, if anything."""

    kind: str
    """healthy, warming up, uniform, constant, same output, dimensional, unused prototypes, no contrast, one location,
    place, dense head idle, dead data, exploding, not finite"""
    words: str
    """What happened, with numbers, and what to change; empty where all is well."""

    @property
    def alarm(self) -> bool:
        return self.kind not in ("healthy", "warming up", "dense head idle")


HEALTHY, WARMING = Diagnosis("healthy", ""), Diagnosis("warming up", "")


def diagnose(records: Sequence[Record], facts: Facts) -> Diagnosis:
    """What the metrics of a run say at their last step. `records` ascend in "step"; log and evaluation lines alike."""
    if not records:
        return WARMING
    now = records[-1]["step"]
    for rule in (_dead_data, _exploding):
        if found := rule(records, facts):
            return found
    if now < facts.warmup_steps + SETTLE:
        return WARMING
    window = [r for r in records if r["step"] > now - WINDOW and "loss" in r]
    for judge in (_outputs, _unused, _contrast):
        if window and (found := judge(window, facts)):
            return found
    if window and (found := _draining(records, window, facts)):
        return found
    looks = [r for r in records if "rankme" in r and r["step"] >= facts.warmup_steps]
    features = _features(looks, facts) or _fallen(records, looks, facts)
    return features or (_dense(window, facts) if window else None) or HEALTHY


def _all_below(window: Sequence[Record], name: str, limit: float) -> bool:
    """Whether the signal was there and stayed below the limit in the whole window."""
    values = [r[name] for r in window if r.get(name) is not None]
    return len(values) > 0 and max(values) < limit


def _known(value: float | None) -> bool:
    """False for a signal of features that were not finite: NaN in the run that saw them, null in its metrics.jsonl."""
    return value is not None and math.isfinite(value)


def _mean(window: Sequence[Record], name: str) -> float:
    values = [r[name] for r in window if r.get(name) is not None]
    return sum(values) / len(values) if values else math.nan


def _outputs(window: Sequence[Record], facts: Facts) -> Diagnosis | None:
    """Methods with prototypes: outputs that say nothing of the image."""
    if facts.num_outputs is None:
        return None
    most = math.log(facts.num_outputs)
    if not _all_below(window, "assignment_information", 0.01 * most):
        return None
    entropy = _mean(window, "teacher_entropy" if "teacher_entropy" in window[-1] else "target_entropy")
    loss, said = _mean(window, "loss"), _mean(window, "assignment_information")
    evidence = f"its outputs hold {said:.3f} nats about the image, for {WINDOW} steps"
    if entropy > 0.9 * most:
        return Diagnosis(
            "uniform",
            f"The output is uniform: loss {loss:.3f}, ln {facts.num_outputs} = {most:.3f}; {evidence}. "
            + _advice(facts, "uniform"),
        )
    if entropy < 0.1 * most:
        return Diagnosis(
            "constant",
            f"Every image gives the same output: entropy {entropy:.3f} of {most:.3f}, loss {loss:.3f}; {evidence}. "
            + _advice(facts, "constant"),
        )
    return Diagnosis(
        "same output",
        f"Every image gives the same soft output: entropy {entropy:.3f} of {most:.3f}; {evidence}. "
        + _advice(facts, "constant"),
    )


def _draining(records: Sequence[Record], window: Sequence[Record], facts: Facts) -> Diagnosis | None:
    """A collapse to one output under way: sure outputs that say less and less of the image.

    Sure outputs alone are no fault, for they may be sure of different things; then what they say grows.
    """
    if facts.num_outputs is None:
        return None
    name = "teacher_entropy" if "teacher_entropy" in window[-1] else "target_entropy"
    if not _all_below(window[-1:], name, 0.1 * math.log(facts.num_outputs)):
        return None
    most = max(r["assignment_information"] for r in records if r.get("assignment_information") is not None)
    if not _all_below(window, "assignment_information", 0.5 * most):
        return None
    return Diagnosis(
        "constant",
        f"More and more images give the same output: entropy {window[-1][name]:.3f} of "
        f"{math.log(facts.num_outputs):.3f}; its outputs hold {_mean(window, 'assignment_information'):.3f} nats about "
        f"the image, once {most:.3f}. " + _advice(facts, "constant"),
    )


def _unused(window: Sequence[Record], facts: Facts) -> Diagnosis | None:
    """MSN: a mean prediction far from even, so that few prototypes take all images."""
    if facts.num_outputs is None or "memax_gap" not in window[-1]:
        return None
    most = math.log(facts.num_outputs)
    if min(r["memax_gap"] for r in window) < 0.5 * most:
        return None
    return Diagnosis(
        "unused prototypes",
        f"Few prototypes take all images: the mean prediction is {_mean(window, 'memax_gap'):.2f} of {most:.2f} nats "
        f"from even use, {_mean(window, 'prototypes_used'):.0f} of {facts.num_outputs} win images of a batch, for "
        f"{WINDOW} steps. " + _advice(facts, "constant"),
    )


def _contrast(window: Sequence[Record], facts: Facts) -> Diagnosis | None:
    """Contrastive methods: positives that are no nearer than negatives."""
    pairs = [(r["positive_similarity"], r["negative_similarity"]) for r in window if "negative_similarity" in r]
    if not pairs or max(p - n for p, n in pairs) >= 0.02:
        return None
    return Diagnosis(
        "no contrast",
        f"Two views of an image are no more alike than two images: cosine {_mean(window, 'positive_similarity'):.3f} "
        f"against {_mean(window, 'negative_similarity'):.3f}, for {WINDOW} steps. " + _advice(facts, "contrast"),
    )


def _dense(window: Sequence[Record], facts: Facts) -> Diagnosis | None:
    """DenseCL: a dense head that tells nothing of images. An alarm only where nothing but the dense loss trains."""
    if _all_below(window, "matches_distinct", 0.1):
        kind, distinct = "one location", 100 * _mean(window, "matches_distinct")
        words = f"Nearly all locations of an image match the same few of the other view: {distinct:.1f} % distinct"
    elif (place := min((r["dense_by_place"] for r in window if "dense_by_place" in r), default=0.0)) > 0.9:
        kind = "place"
        words = (
            f"The dense head says where a location is, not what it shows: the place decides {100 * place:.0f} % of it"
        )
    else:
        return None
    alone = window[-1].get("dense_weight", 1.0) > 0.9
    teacher = "Nothing" if alone else "Only the global loss"
    return Diagnosis(
        kind if alone else "dense head idle",
        f"{words}, for {WINDOW} steps. {teacher} teaches the backbone what is shown. " + _advice(facts, "locations"),
    )


def _features(looks: Sequence[Record], facts: Facts) -> Diagnosis | None:
    """The vote of the feature signals at the last evaluation: two of five, one of them about the rank or the spread."""
    if not looks:
        return None
    last = looks[-1]
    if not _known(last["rankme"]):
        return Diagnosis(
            "not finite",
            f"The features of the images looked at are not finite at step {last['step']}: no image can be told from "
            "another. Go back to an earlier checkpoint and lower --optim.lr, or use --precision fp32.",
        )
    best_rank = max(r["rankme"] for r in looks if _known(r["rankme"]))
    best_effective = max(r["effective_rank"] for r in looks if _known(r["rankme"]))
    votes = {
        f"RankMe {last['rankme']:.1f}": last["rankme"] < max(4.0, 0.02 * facts.width, 0.3 * best_rank),
        f"effective rank {last['effective_rank']:.1f}": last["effective_rank"]
        < max(3.0, 0.01 * facts.width, 0.3 * best_effective),
        f"spread {last['feature_std']:.2f}": last["feature_std"] < 0.2,
        f"uniformity {last['uniformity']:.2f}": last["uniformity"] > -0.5,
    }
    bad = [name for name, vote in votes.items() if vote]
    if len(bad) < 2:
        return None
    kind = "constant" if last["feature_std"] < 0.2 and last["uniformity"] > -0.5 else "dimensional"
    what = "All images have nearly the same features" if kind == "constant" else "The features span few directions"
    return Diagnosis(
        kind,
        f"{what}: {', '.join(bad)} of {facts.width} dimensions. "
        + _advice(facts, kind if kind == "constant" else "dimensional"),
    )


def _fallen(records: Sequence[Record], looks: Sequence[Record], facts: Facts) -> Diagnosis | None:
    """Features that span fewer directions than those of the untrained network: every run that learned spanned more."""
    untrained = next((r for r in records if _known(r.get("effective_rank")) and r["step"] == 0), None)
    if untrained is None or not looks or looks[-1]["effective_rank"] >= 0.4 * untrained["effective_rank"]:
        return None
    return Diagnosis(
        "dimensional",
        f"The features span fewer directions than before training: effective rank {looks[-1]['effective_rank']:.1f} of "
        f"{facts.width} dimensions, untrained {untrained['effective_rank']:.1f}. " + _advice(facts, "dimensional"),
    )


def _dead_data(records: Sequence[Record], facts: Facts) -> Diagnosis | None:
    found = next((r["distinct_images"] for r in records if "distinct_images" in r), None)
    if found is None or found > 0.1:
        return None
    return Diagnosis(
        "dead data",
        f"Only {100 * found:.1f} % of the images that were looked at are distinct: there is nothing to tell apart. "
        "Check DATA: nolabel check DATA lists duplicates.",
    )


def _exploding(records: Sequence[Record], facts: Facts) -> Diagnosis | None:
    """Weights that grow many times over: a learning rate far too high shows there first."""
    norms = [(r["step"], r["weight_norm"]) for r in records if r.get("weight_norm")]
    early = bool(norms) and norms[-1][0] <= facts.warmup_steps + SETTLE
    if len(norms) < 2 or norms[-1][1] < (3 if early else 10) * norms[0][1]:
        return None
    lr = next((r["lr"] for r in reversed(records) if r.get("lr") is not None), math.nan)
    return Diagnosis(
        "exploding",
        f"The weights have grown to {norms[-1][1] / norms[0][1]:.0f} times their size at step {norms[0][0]}: the "
        f"learning rate (now {lr:.3g}) is too high. Divide --optim.lr by 10 to 100.",
    )


def _advice(facts: Facts, kind: str) -> str:
    s = facts.settings

    def now(name: str) -> str:
        return f"--method.{name.replace('_', '-')} (now {s[name]:g})" if isinstance(s.get(name), (int, float)) else ""

    tips = {
        ("dino", "uniform"): (
            f"Lower {now('teacher_temp')}, warm it up longer, lower --optim.lr, "
            f"or freeze the prototypes longer: {now('freeze_last_layer')}."
        ),
        ("dino", "constant"): f"Check {now('center_momentum')} and {now('momentum')}; raise {now('teacher_temp')}.",
        ("msn", "uniform"): f"Lower {now('sharpening')} or {now('temperature')}, and --optim.lr.",
        ("msn", "constant"): f"Raise {now('memax_weight')}, or turn on {now('sinkhorn_rounds')}.",
    }
    general = {
        "uniform": "Lower the target's temperature and --optim.lr.",
        "constant": "Lower --optim.lr; check that the views differ and that what prevents collapse is on.",
        "contrast": f"Lower --optim.lr, or {now('temperature')}; a larger batch or queue gives more negatives.",
        "locations": f"Give the dense loss a warm-up, {now('dense_warmup_steps')}, or a smaller share, "
        f"{now('dense_weight')}.",
        "dimensional": "Use stronger crops and colour jitter, a larger batch, or a lower --optim.lr.",
    }
    return tips.get((facts.method, kind), general[kind])
