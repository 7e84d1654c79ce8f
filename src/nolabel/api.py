"""The commands as Python functions, with the same words."""

import signal
from pathlib import Path
from typing import Any

from nolabel.config import update
from nolabel.config.load import check_length, load_recipe
from nolabel.errors import UsageError, nearest
from nolabel.evals.all import EVERY
from nolabel.evals.protocol import EvalConfig, run
from nolabel.evals.shared.results import check_place, result_path
from nolabel.files import check_no_links
from nolabel.runs.folder import Run
from nolabel.training.alone import own_state
from nolabel.training.interrupts import Stopped
from nolabel.training.start import train as run_training
from nolabel.weights.load import Loaded, load_weights


def train(recipe: str, data: str | Path, out: str | Path, overwrite: bool = False, **settings: Any) -> Run:
    """Pre-train with a recipe on the images of `data` into the new run folder `out`; blocks.

    `settings` are fields of TrainConfig, groups as mappings: `epochs=10, method={"num_local": 4}`. Threads and random
    state of torch are as before afterwards. SIGINT ends it with a KeyboardInterrupt, after a checkpoint. UsageError
    where another thread of the process trains or evaluates.
    """
    check_length(settings)
    config = update(load_recipe(recipe), {**settings, "data": str(data), "out": str(out)})
    with own_state():
        try:
            return run_training(config, overwrite)
        except Stopped as error:
            if error.code != 128 + signal.SIGINT:
                raise
            raise KeyboardInterrupt(str(error)) from error  # `except Exception` of a sweep must not swallow it


def evaluate(
    protocol: str, weights: str | Path | Run, data: str | Path, out: Path | None = None, **settings: Any
) -> dict[str, Any]:
    """Measure `weights` (a run or what `load_weights` takes) on labelled `data`; writes RUN/eval, too.

    `settings` are those of the protocol: for `knn` the fields of `nolabel.evals.classification.knn.KNNConfig`.
    """
    if protocol not in EVERY:
        raise UsageError(f"There is no protocol {protocol!r}.{nearest(protocol, EVERY)}")
    path = weights.path if isinstance(weights, Run) else Path(weights)
    config = update(EVERY[protocol].Config(), settings)
    with own_state():
        return evaluate_loaded(protocol, load_weights(path), path, data, out, config)


def evaluate_loaded(
    protocol: str, loaded: Loaded, weights: Path, data: str | Path, out: Path | None, config: EvalConfig
) -> dict[str, Any]:
    """Like `evaluate`, with the weights already in memory; without `out` a run's result goes to its own folder."""
    if out is None and (weights / "config.yaml").is_file():
        check_no_links(weights, ("eval",))
        out = result_path(weights, protocol, data)
    elif out is not None:
        check_place(out)
    return run(EVERY[protocol], loaded, data, config, out)
