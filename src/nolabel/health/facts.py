"""Facts about a run that its health is judged by, and advice with the values of its settings."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class RunFacts(NamedTuple):
    """Facts about a run that its health is judged by."""

    settings: Mapping[str, Any]
    """The method's settings, by name, for the advice."""
    advice: Mapping[str, str]
    """The method's own texts (`MethodConfig.advice`), by a key of `GENERAL_ADVICE`."""
    width: int
    """Width D of the features."""
    num_outputs: int | None
    """Number K of prototypes, or None; the entropy of a uniform output is ln K."""
    warmup_steps: int
    """Steps in which nothing is judged: learning rates rise, outputs of a fresh network are all alike."""
    total_steps: int
    """Length of the run in steps."""
    lr: float | None = None
    """Peak learning rate that the settings ask for (`--optim.lr`); None: unknown."""
    num_labelled: int | None = None
    """Images that k-NN classifies along the run; with few of them its accuracy is inexact. None: unknown."""


def collect_facts(
    settings: Mapping[str, Any],
    advice: Mapping[str, str],
    width: int,
    warmup_epochs: float,
    per_epoch: float,
    total_steps: int,
    lr: float | None = None,
    num_labelled: int | None = None,
) -> RunFacts:
    """Facts of a run: `settings` and `advice` are its method's, `width` is D, `per_epoch` is steps per epoch."""
    warmup = max(round(warmup_epochs * per_epoch), total_steps // 50)
    return RunFacts(settings, advice, width, settings.get("num_prototypes"), warmup, total_steps, lr, num_labelled)


GENERAL_ADVICE = {
    "uniform": "Lower the target's temperature and --optim.lr.",
    "constant": "Lower --optim.lr; check that the views differ and that what prevents collapse is on.",
    "contrast": "Lower --optim.lr; a larger batch or queue gives more negatives.",
    "locations": "Give the dense loss a warm-up or a smaller share.",
    "rest": "Raise --optim.lr: the recipes have values that work.",
    "stalled": "Try a higher --optim.lr, then more steps or a larger batch; check that the views leave something to "
    "recognise (nolabel check DATA, nolabel show attention).",
    "dimensional": "Use stronger crops and colour jitter, a larger batch, or a lower --optim.lr.",
}
"""Advice for methods without a text of their own, by kind of fault."""


def advise(facts: RunFacts, key: str) -> str:
    """The text for `key`, with each {setting} as its option and its value now."""
    text = facts.advice.get(key, GENERAL_ADVICE[key])
    return re.sub(r"\{(\w+)\}", lambda match: _option(facts.settings, match[1]), text)


def _option(settings: Mapping[str, Any], name: str) -> str:
    option, value = f"--method.{name.replace('_', '-')}", settings.get(name)
    return f"{option} (now {value:g})" if isinstance(value, int | float) else option
