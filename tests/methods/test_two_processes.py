"""Two processes over gloo do what one does: reductions, BatchNorm of the joined batch, and whole training steps.

Drop path is off, as everywhere in these jobs: its draws are those of a process. Tolerances are absolute, for values
of size one; sums over two processes are rounded in another order.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from two_processes import RUNS, STEPS

SCRIPT = Path(__file__).with_name("two_processes.py")
Found = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    """Findings of each of two processes."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", SCRIPT, folder],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [p.communicate(timeout=240)[1] for p in started]
    finally:
        for p in started:
            p.kill()
    assert [p.returncode for p in started] == [0, 0], "\n".join(said)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    return first, second


@pytest.fixture(scope="module")
def one() -> Iterator[Found]:
    """Findings of one process on the same rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {name: run() for name, run in RUNS.items()}
    torch.set_num_threads(threads)


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference under each name."""
    assert a.keys() == b.keys()
    return {name: (a[name].double() - b[name].double()).abs().max().item() for name in a}


TOLERANCE = {
    "reductions": 1e-4,  # of values up to 40
    "flags": 0,
    "batchnorm 1d": 1e-4,  # a mean of 100 leaves five digits
    "batchnorm 2d": 1e-4,
    "batchnorm without affine": 1e-4,
    "dino vit": 1e-5,
    "dino vit in micro-batches": 1e-5,
    "dino vit, keeping less": 1e-5,
    "dino vit, last layer frozen first": 1e-5,
    "dino resnet": 1e-4,
    "shuffled rows": 0,
    "densecl vit": 1e-5,
    "densecl resnet": 1e-4,
    "densecl vit, shuffled": 1e-5,  # without BatchNorm shuffling changes nothing, if every output comes back in order
    "msn vit": 3e-4,  # of momenta up to 2
    "msn vit without sinkhorn": 3e-4,
    "msn vit with a mask per image": 3e-4,
    "simclr resnet": 1e-4,
}


@pytest.mark.parametrize("name", TOLERANCE)
def test_two_processes_are_one(name: str, pair: tuple[Found, Found], one: Found) -> None:
    for found in pair:
        difference = apart(one[name], found[name])
        worst = max(difference, key=difference.__getitem__)
        assert difference[worst] <= TOLERANCE[name], f"{worst} differs by {difference[worst]:.2g}"


@pytest.mark.parametrize("name", [name for name in TOLERANCE if name.startswith(("densecl", "dino", "msn", "simclr"))])
def test_both_processes_end_with_the_same_bits(name: str, pair: tuple[Found, Found]) -> None:
    first, second = pair[0][name], pair[1][name]
    assert [k for k in first if not torch.equal(first[k], second[k])] == []


@pytest.mark.parametrize("name", ["densecl resnet", "dino vit", "msn vit", "simclr resnet"])
def test_the_steps_really_moved(name: str, one: Found) -> None:
    """Or the tolerances above would say little."""
    assert abs(one[name][f"loss {STEPS - 1}"] - one[name]["loss 0"]) > 0.01


def test_gradients_lie_in_what_is_sent(pair: tuple[Found, Found], one: Found) -> None:
    """In a few large buffers, where one process has a tensor for each."""
    alone = one["places of gradients"]
    assert alone["places"] == alone["gradients"] > 20
    for found in pair:
        assert found["places of gradients"]["gradients"] == alone["gradients"]
        assert found["places of gradients"]["places"] <= 3


def test_a_center_that_is_not_reduced_is_caught(pair: tuple[Found, Found], one: Found) -> None:
    """The same comparison as above finds the planted bug."""
    right, wrong = one["dino vit"], pair[0]["center not reduced"]
    assert apart(right, one["center not reduced"]) == dict.fromkeys(right, 0.0)  # with one process it is no bug
    assert apart(right, wrong)["center"] > 100 * TOLERANCE["dino vit"]
    assert not torch.equal(wrong["center"], pair[1]["center not reduced"]["center"])


def test_a_gradient_of_memax_that_is_cut_is_caught(pair: tuple[Found, Found], one: Found) -> None:
    right, wrong = one["msn vit"], pair[0]["gradient of me-max cut"]
    assert apart(right, one["gradient of me-max cut"]) == dict.fromkeys(right, 0.0)
    difference = apart(right, wrong)
    assert difference["prototypes"] > 10 * TOLERANCE["msn vit"]
    assert difference["anchor.backbone.model.cls_token"] > TOLERANCE["msn vit"]


def test_shuffled_rows_come_back_in_order(pair: tuple[Found, Found]) -> None:
    for found in pair:
        rows = found["shuffled rows"]
        assert torch.equal(rows["back"], rows["sent"])
        mine, away = rows["sent"].chunk(2), rows["away"].chunk(2)
        assert any((mine[1] == row).all(1).any() for row in away[0]), "no image went to the other process"


def test_keys_that_are_not_shuffled_back_are_caught(pair: tuple[Found, Found], one: Found) -> None:
    wrong = pair[0]["densecl vit, shuffled back wrongly"]
    assert apart(one["densecl vit"], wrong)["queue.keys"] > 0.1


def test_shuffled_batchnorm_is_that_of_a_process_and_ends_with_equal_buffers(
    pair: tuple[Found, Found], one: Found
) -> None:
    first, second = (found["densecl resnet, shuffled"] for found in pair)
    assert [k for k in first if not torch.equal(first[k], second[k])] == []
    differs = apart(one["densecl resnet"], first)
    assert max(differs[k] for k in differs if k.endswith("running_var")) > 1e-3


def test_saved_names_are_those_of_one_process(pair: tuple[Found, Found], one: Found) -> None:
    """BatchNorm statistics included: a checkpoint of two processes opens in one."""
    for name in ("dino resnet", "simclr resnet"):
        assert pair[0][name].keys() == one[name].keys()
        assert any(k.endswith("running_var") for k in pair[0][name])


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("bad on the last")])
def test_a_step_that_is_bad_in_one_process_is_bad_in_all(name: str, pair: tuple[Found, Found], one: Found) -> None:
    for found in (*pair, one):
        assert found[name]["ok"] == 0 and found[name]["moved"] == 0
