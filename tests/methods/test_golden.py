"""Losses of twenty steps of each method, against numbers written down once: what is wrong and finite shows here.

`python tests/methods/test_golden.py` writes them anew: only where a change of the numbers is meant.
"""

import json
from pathlib import Path

import pytest
import torch
from sizes import SIZES
from tiny import job, step

from nolabel.optim.optimizers import OptimConfig

FILE = Path(__file__).with_name("golden.json")
ADAMW = OptimConfig("adamw", lr=0.06, warmup_epochs=1)  # of a batch of 8: 0.0019; at ten times that rounding grows


def losses(method: str, seed: int = 0) -> list[float]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        j = job(SIZES[method].config, SIZES[method].backbone, optim=ADAMW, seed=seed)
        return [round(step(j, number)["loss"], 6) for number in range(20)]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("method", SIZES)
def test_the_losses_are_those_written_down(method: str) -> None:
    golden = json.loads(FILE.read_text(encoding="utf-8"))[method]
    tolerance = SIZES[method].tolerance
    assert losses(method) == pytest.approx(golden, abs=tolerance)
    assert losses(method, seed=1) != pytest.approx(golden, abs=20 * tolerance), "else the tolerance says nothing"
    assert max(golden) - min(golden) > 20 * tolerance, "a loss that stands still says nothing"


if __name__ == "__main__":
    FILE.write_text(json.dumps({method: losses(method) for method in SIZES}, indent=1) + "\n", encoding="utf-8")
