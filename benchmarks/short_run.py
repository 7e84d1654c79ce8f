"""A short training run from files: the last line of its metrics and the peak of the GPU's memory; the run is removed.

    python benchmarks/short_run.py RECIPE DATA RUN [options of nolabel train]

Images a second, the share of waiting for images and the time of a step are means over the last quarter of the steps.
"""

import contextlib
import json
import shutil
import sys
from pathlib import Path

import torch

from nolabel.cli.main import main


def run(recipe: str, data: str, out: str, options: list[str]) -> None:
    steps = int(options[options.index("--steps") + 1])
    every = ["--log-every", str(max(1, steps // 4)), "--eval-every", str(steps), "--checkpoint-every", str(steps)]
    shutil.rmtree(out, ignore_errors=True)
    with contextlib.redirect_stdout(sys.stderr):
        main(["train", recipe, data, "--out", out, *every, *options])  # leaves the program where it fails
    lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    line = [line for line in lines if "img_per_s" in line][-1]
    shutil.rmtree(out)
    names = ("step", "loss", "img_per_s", "data_wait", "step_ms", "decode_ms", "crop_ms")
    memory = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else float("nan")
    print({"recipe": recipe, **{n: line[n] for n in names if n in line}, "peak_mb": memory}, " ".join(options))


if __name__ == "__main__":
    run(*sys.argv[1:4], sys.argv[4:])
