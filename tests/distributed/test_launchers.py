"""Variables of torchrun and of other launchers: read right, or refused in words."""

import os

import pytest
import torch

from nolabel import distributed
from nolabel.config import find_device
from nolabel.errors import UsageError


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "4"}, r"WORLD_SIZE is 4, but RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, r"MASTER_ADDR, MASTER_PORT is not set"),
        ({"WORLD_SIZE": "auto"}, r"WORLD_SIZE is 'auto'"),
        ({"WORLD_SIZE": "-1"}, r"WORLD_SIZE is '-1'"),
        ({"LOCAL_WORLD_SIZE": "x"}, r"LOCAL_WORLD_SIZE is 'x'"),
    ],
)
def test_half_a_group_is_refused(variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=rf"{words}(?s:.*)torchrun"), distributed.process_group(torch.device("cpu")):
        pass


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"},
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"},
        {"PMI_SIZE": "2", "PMI_RANK": "1"},
    ],
)
def test_tasks_of_another_launcher_are_refused(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"tasks(?s:.*)torchrun --nproc-per-node"):
        distributed.check_launcher()
    monkeypatch.setenv("RANK", "0")  # torchrun within a task
    assert not distributed.check_launcher()


def test_a_batch_script_of_several_tasks_is_warned_and_one_task_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not distributed.check_launcher()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not distributed.check_launcher()
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert "SLURM runs 8 tasks" in distributed.check_launcher()


@pytest.mark.parametrize("name", ["mps", "meta", "xpu", "cpu:1", "cuda:99", "mps:3", "tpu", "", "cuda:-1"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    if name.startswith("mps") and torch.backends.mps.is_available():
        pytest.skip("there is an Apple GPU")
    with pytest.raises(UsageError, match=r"device|GPU|CUDA"):
        find_device(name)
