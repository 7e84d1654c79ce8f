"""SIGKILLs training runs at random instants, resumes them, and compares what they end with to runs never touched.

A fork server: this process imports everything once, starts no thread, and forks a child for every start of a run.
`python tests/torture/kills.py --help`; exit code 1 if a run was lost or ended otherwise.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
import torch._dynamo
from PIL import Image

import nolabel
from nolabel import api
from nolabel.errors import NolabelError
from nolabel.training import state

VIT = {"backbone": "vit_tiny_patch16_224", "backbone_args": ["patch_size=8", "embed_dim=32", "depth=2", "num_heads=2"]}
RESNET = {"backbone": "resnet18", "backbone_args": ["layers=[1,1,1,1]", "channels=[8,16,24,32]", "output_stride=8"]}
DINO = {"global_size": 32, "local_size": 16, "num_local": 2, "num_prototypes": 64, "hidden_dim": 32}
MSN = {"random_size": 32, "focal_size": 16, "num_focal": 2, "num_prototypes": 16, "hidden_dim": 32, "output_dim": 16}
DENSECL = {"size": 32, "queue_size": 16, "hidden_dim": 32, "projection_dim": 8}
METHODS: dict[str, dict[str, Any]] = {
    "dino": VIT | {"method": DINO},
    "msn": VIT | {"method": MSN},
    "densecl": RESNET | {"method": DENSECL},
}
INTERVAL = 4  # steps between checkpoints
COMMON = {"batch_size": 8, "workers": 0, "threads": 1, "precision": "fp32", "device": "cpu", "log_every": 1}
COMMON |= {"steps": 42, "checkpoint_every": INTERVAL, "eval_every": 20}  # of 3 an epoch
CLOCK = ("img_per_s", "data_wait", "step_ms", "decode_ms", "crop_ms")  # what metrics.jsonl says of time


class Tally(NamedTuple):
    """Tally of the runs of one method."""

    runs: int = 0
    kills: int = 0
    in_saves: int = 0
    """Kills that left a half-written checkpoint."""
    lost: int = 0
    """Most steps that a kill has cost."""
    equal: int = 0
    failed: tuple[str, ...] = ()


def plant(folder: Path) -> None:
    """24 pictures of 40 x 40 pixels."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(24):
        blocks = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(folder / f"{i:02}.png")


def begin_or_go_on(method: str, data: Path, out: Path, log: Path, sabotage: bool) -> int:
    """Fork a child that trains; gives its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(to, 1)
        os.dup2(to, 2)
        if sabotage:
            state.restore_optimizer = lambda *_: None
        if (out / "config.yaml").is_file():
            nolabel.resume(out)
        else:  # killed before the run began: nothing was there to lose
            shutil.rmtree(out, ignore_errors=True)
            api.train(f"{method}-small", data, out, **COMMON, **METHODS[method])
        code = 0
    except NolabelError as error:
        print(error, flush=True)
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def finish(pid: int) -> int:
    """The exit status of a child: negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def final(out: Path) -> dict[str, str]:
    """Hashes of all that a run ends with, and its logged values."""
    newest = max((out / "checkpoints").glob("step-*"))
    files = [newest / "model.safetensors", newest / "optim.safetensors", out / "weights" / "model.safetensors"]
    found = {f.parent.name + "/" + f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    lines = [{k: v for k, v in line.items() if k not in CLOCK} for line in nolabel.Run(out).metrics()]
    return found | {"metrics": json.dumps(lines), "state": nolabel.Run(out).status()["state"]}


def reached(out: Path) -> int:
    """Steps whose values were logged."""
    return max((r["step"] for r in nolabel.Run(out).metrics()), default=0) if (out / "config.yaml").is_file() else 0


def starts(out: Path) -> list[int]:
    """The steps at which training began or went on."""
    if not (out / "config.yaml").is_file():
        return []
    return [e["step"] for e in nolabel.Run(out).events() if e["event"] == "start"]


def kill(pid: int, seconds: float, ready: Callable[[], bool]) -> bool:
    """SIGKILL the child after `seconds`, not before `ready`; False if it had ended by then."""
    while not ready() and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)
    time.sleep(seconds)
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
        return False
    os.kill(pid, signal.SIGKILL)
    return True


class Torture:
    """Runs of one method, and the run they must equal."""

    def __init__(self, method: str, root: Path, choice: random.Random, sabotage: bool) -> None:
        self.method, self.root, self.choice, self.sabotage = method, root, choice, sabotage
        self.log = root / f"{method}.log"
        started, whole = time.monotonic(), root / f"{method}-whole"
        if code := finish(begin_or_go_on(method, root / "data", whole, self.log, False)):
            raise SystemExit(f"{method} ends with {code} without being touched:\n{self.log.read_text()[-2000:]}")
        self.seconds, self.expected = time.monotonic() - started, final(whole)

    def one(self, tally: Tally, kills: int) -> Tally:
        """A run that is killed up to `kills` times and then left to finish."""
        out = self.root / f"{self.method}-{tally.runs}"
        killed = in_saves = lost = 0
        before = code = 0
        while True:
            earlier = len(starts(out))
            pid = begin_or_go_on(self.method, self.root / "data", out, self.log, self.sabotage)
            wait = self.choice.uniform(0, self.seconds)
            if killed < kills and kill(pid, *(wait, lambda: True) if not self.sabotage else (0, self.saved(out))):
                killed += 1
            code = finish(pid)
            if began := starts(out)[earlier:]:  # else it was killed before it trained, or the run was done already
                lost, before = max(lost, before - began[0]), 0
            if code != -signal.SIGKILL:
                break
            before = max(before, reached(out))
            in_saves += any((out / "checkpoints").glob(".tmp-*"))
        differs = [k for k, v in final(out).items() if self.expected[k] != v] if code == 0 else [f"exit code {code}"]
        shutil.rmtree(out, ignore_errors=True)
        failed = (*tally.failed, *([f"{out.name}: {', '.join(differs)}"] if differs else []))
        return Tally(
            tally.runs + 1, tally.kills + killed, tally.in_saves + in_saves, max(tally.lost, lost),
            tally.equal + (not differs), failed,
        )  # fmt: skip

    def saved(self, out: Path) -> Callable[[], bool]:
        return lambda: any((out / "checkpoints").glob("step-*"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="in all, at least")
    parser.add_argument("--runs", type=int, default=9, help="of each method, at least")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--minutes", type=float, default=25, help="end then, with fewer kills on a slow machine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sabotage", action="store_true", help="forget the optimizer on resume: must be noticed")
    given = parser.parse_args()
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)], fused=True)  # imports what every child would import
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked safely"
    names = given.methods.split(",")
    tallies = {}
    print("method    runs  SIGKILLs  inside a save  steps lost at most  ended bit-equal  minutes", flush=True)
    ends = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory(prefix="nolabel-torture-") as folder:
        plant(Path(folder) / "data")
        for number, name in enumerate(names):
            choice, tally = random.Random(given.seed + number), Tally()
            torture, began = Torture(name, Path(folder), choice, given.sabotage), time.monotonic()
            last = began + (ends - began) / (len(names) - number)  # its share of what is left
            while tally.kills < given.kills / len(names) or tally.runs < given.runs:
                tally = torture.one(tally, choice.randint(1, 8 if given.kills > 50 else 3))
                if time.monotonic() > last:
                    break
            t = tallies[name] = tally
            minutes = (time.monotonic() - began) / 60
            counts = f"{name:8}  {t.runs:4}  {t.kills:8}  {t.in_saves:13}  {t.lost:18}"
            print(f"{counts}  {t.equal:5} of {t.runs:4}  {minutes:7.1f}", flush=True)
    failed = [line for t in tallies.values() for line in t.failed]
    failed += [f"{n}: {t.lost} steps lost, more than {INTERVAL}" for n, t in tallies.items() if t.lost > INTERVAL]
    print("\n".join(failed))
    few = sum(t.kills for t in tallies.values()) < given.kills
    print("The time was up before that many kills." if few else "")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
