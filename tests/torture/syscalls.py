"""Kills a save at every one of its system calls that touch files, by strace, and looks at what is left.

Exit code 1 if a kill cost a checkpoint, 77 where strace or ptrace is not to be had.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from test_faults import good, names, newest, of, started

from nolabel.runs import checkpoint
from nolabel.runs.checkpoint import save

CALLS = (
    "openat,write,pwrite64,ftruncate,fallocate,fsync,fdatasync,rename,renameat,renameat2,"
    "unlink,unlinkat,mkdir,mkdirat,rmdir,chmod,fchmod,fchmodat"
)
PR_SET_PTRACER = 0x59616D61
SKIPPED = 77


def traced(folder: Path, *options: str) -> int:
    """Save step 30 in a child under strace; gives how the child ended."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Where only ancestors may trace a process, let any other do so.
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
        os.read(read, 1)
        try:
            save(folder, 30, of(30), keep=2)
        except BaseException:
            os._exit(1)
        os._exit(0)
    arguments = ["strace", "-f", "-qq", "-p", str(pid), "-e", f"trace={CALLS}", *options]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as strace:
        assert strace.stderr is not None
        attached = wait_for(pid, strace)
        if not attached:
            os.kill(pid, signal.SIGKILL)
        os.write(write, b".")
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = strace.stderr.read()
    os.close(read)
    os.close(write)
    if not attached:
        print(f"skipped: strace cannot trace here: {said.strip()[:200]}")
        sys.exit(SKIPPED)
    return ended


def wait_for(pid: int, strace: "subprocess.Popen[str]") -> bool:
    """Until the process is traced; False if strace gives up."""
    status = Path(f"/proc/{pid}/status")
    while strace.poll() is None:
        if not re.search(r"^TracerPid:\s+0$", status.read_text(), re.M):
            return True
    return False


def main() -> int:
    if shutil.which("strace") is None:
        print("skipped: strace is not installed")
        return SKIPPED
    if "--sabotage" in sys.argv:  # old ones go before the new one is there: must be noticed
        checkpoint._remove_debris = lambda folder: shutil.rmtree(folder / "step-00000010", ignore_errors=True)
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked safely"
    with tempfile.TemporaryDirectory(prefix="nolabel-syscalls-") as temporary:
        root = Path(temporary)
        log = root / "calls"
        assert traced(started(root / "count"), "-o", str(log)) == 0
        calls = Counter(re.findall(r"^(?:\d+ +)?(\w+)\(", log.read_text(), re.M))
        kills, saved, failed = 0, 0, list[str]()
        for name, number in sorted(calls.items()):
            if failed and "--sabotage" in sys.argv:
                break
            for n in range(1, number + 1):
                folder = started(root / f"{name}-{n}")
                ended = traced(folder, "-e", f"inject={name}:signal=SIGKILL:when={n}", "-o", "/dev/null")
                kills += ended == -signal.SIGKILL
                failed += [f"{name} {n}: {problem}" for problem in problems(folder)]
                saved += 30 in good(folder)
                shutil.rmtree(folder)
    print(f"{kills} kills at {', '.join(f'{c} {n}' for n, c in sorted(calls.items()))}: {saved} after the rename")
    print("\n".join(failed))
    expected = sum(calls.values())
    if kills != expected:
        failed.append(f"{kills} kills, {expected} expected")
    return 1 if failed or not 0 < saved < kills else 0


def problems(folder: Path) -> list[str]:
    """Faults of the folder after the kill, and after the next save."""
    found = []
    if len(good(folder)) < 2 or newest(folder) != good(folder)[0]:
        found.append(f"killed: {names(folder)}")
    save(folder, 40, of(40), keep=2)
    if names(folder) != [f"step-{s:08d}" for s in sorted(good(folder))] or good(folder)[0] != 40:
        found.append(f"then saved: {names(folder)}")
    return found


if __name__ == "__main__":
    sys.exit(main())
