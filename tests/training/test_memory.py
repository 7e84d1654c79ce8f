"""Effects on the process of putting a run together."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from nolabel.training.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(16):  # glibc finds a place for aligned blocks of this size after some tries
    torch.zeros(9 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.zeros(9 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_the_memory_of_a_large_tensor_is_not_asked_of_the_kernel_again() -> None:
    """36 MiB are 9,216 pages, or fewer large ones: each is a fault."""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True, text=True).stdout)
        for how in ("kept", "given back")
    )
    assert kept < 50 < given_back, (kept, given_back)
