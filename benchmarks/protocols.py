"""The tables of protocols in docs/results.md: every protocol on every network, a command each, and what it cost.

    python benchmarks/protocols.py FOLDER --large supervised=effnet --small simclr=RUN
    python benchmarks/protocols.py FOLDER --small dino=RUN --no-floor --only knn-cifar10
    python benchmarks/protocols.py FOLDER           # the tables of what FOLDER holds

Large networks were trained at 224 px, small ones at 32 or 64. What FOLDER holds is not run again; features are kept
there. The image packs are read from $NOLABEL_DATA. supervised.py makes `effnet`; balanced.py FOLDER/cifar5k (5,000
train, 1,000 test), FOLDER/scenes2k and FOLDER/imagenette2k (2,000 and 1,000).
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from nolabel.cli.main import main
from nolabel.evals.protocols import PROTOCOLS

PACKS = Path(os.environ.get("NOLABEL_DATA", "../shared/data"))


class Row(NamedTuple):
    """A protocol on one set of images. Options of None: not for networks of that size."""

    protocol: str
    data: str
    """Below FOLDER, or below the packs."""
    both: str = ""
    small: str | None = ""
    large: str | None = ""


_CIFAR = ("", "--image-size 32", "--image-size 128")
_FEW = ("", "--image-size 64", "")
_TUNE = "--precision bf16 --image-size 32 "
ROWS = {
    "knn-cifar10": Row("knn", "cifar5k", *_CIFAR),
    "linear-cifar10": Row("linear", "cifar5k", *_CIFAR),
    "lowshot-cifar10": Row("lowshot", "cifar5k", *_CIFAR),
    "knn-scenes": Row("knn", "scenes2k", *_FEW),
    "linear-scenes": Row("linear", "scenes2k", *_FEW),
    "lowshot-scenes": Row("lowshot", "scenes2k", *_FEW),
    "knn-imagenette": Row("knn", "imagenette2k", *_FEW),
    "linear-imagenette": Row("linear", "imagenette2k", *_FEW),
    "lowshot-imagenette": Row("lowshot", "imagenette2k", *_FEW),
    "finetune-1": Row("finetune", "cifar5k", _TUNE + "--fractions .01 --epochs 60", large=None),
    "finetune-10": Row("finetune", "cifar5k", _TUNE + "--fractions .1 --epochs 20", large=None),
    "finetune-100": Row("finetune", "cifar5k", _TUNE, large=None),
    "retrieval": Row("retrieval", "dense/davis20_retrieval.zip", "--image-size 128"),
    "copies": Row(
        "copies",
        "dense/coco256.zip",
        "--image-size 96 --max-originals 64 --max-distractors 1000 "
        f"--distractors {PACKS}/imagenette224/imagenette224.zip",
    ),
    "video": Row("video", "dense/davis16_val8.zip", "--max-frames 6", "--short-side 240", "--short-side 480 --stage 3"),
    "attention": Row("attention", "dense/camvid.zip", "--max-images 100"),
    "attention-coco": Row("attention", "dense/coco256.zip"),
    "segmentation": Row("segmentation", "dense/camvid.zip", "", "--short-side 120", "--short-side 240"),
    "fcn": Row("segmentation", "dense/camvid.zip", "--ways finetune --short-side 64 --steps 30", large=None),
}


def run(folder: Path, name: str, given: str, small: bool, more: list[str]) -> None:
    """One `nolabel eval`, unless its result is there; the command and its CPU seconds go to FOLDER/commands.jsonl."""
    row, (network, weights) = ROWS[name], given.split("=", 1)
    out, sized = folder / f"{name}-{network}.json", row.small if small else row.large
    if sized is None or out.exists():
        return
    data = folder / row.data if (folder / row.data).exists() else PACKS / row.data
    command = ["eval", row.protocol, weights, str(data), "--out", str(out), *f"{row.both} {sized}".split(), *more]
    start = time.process_time()
    try:
        main(command)  # in this process: starting one for each would cost more than many of the rows
    except SystemExit as error:
        print(f"{name}, {network}: exit code {error.code}", file=sys.stderr)
        return
    record = {"row": name, "network": network, "cpu_s": round(time.process_time() - start, 1)}
    with (folder / "commands.jsonl").open("a") as file:
        file.write(json.dumps(record | {"command": " ".join(["nolabel", *command])}) + "\n")


def table(folder: Path, name: str) -> str:
    """A row's numbers as markdown: each network below its floors."""
    columns, lines = PROTOCOLS[ROWS[name].protocol].columns, dict[str, dict[str, Any]]()
    paths = [path for path in sorted(folder.glob(f"{name}-*.json")) if not path.name.endswith(".time.json")]
    for path in paths:
        network, result = path.stem.removeprefix(f"{name}-"), json.loads(path.read_text())
        for floor, values in result["floor"].items():
            lines[f"{network}: {floor.replace('_', ' ')}"] = columns(values)
        lines[network] = columns(result["metrics"])
    if not lines:
        return ""
    heads = list(next(reversed(lines.values())))
    rows = [[key, *(_cell(values.get(h, "")) for h in heads)] for key, values in lines.items()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [[name, *heads], ["---"] * (len(heads) + 1), *rows])


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.1f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Every protocol on every network.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", nargs="*", default=[], metavar="NAME=WEIGHTS")
    parser.add_argument("--large", nargs="*", default=[], metavar="NAME=WEIGHTS")
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--no-floor", action="store_true", help="where another network of the same kind gave them")
    options = parser.parse_args()
    os.environ["NOLABEL_CACHE"] = str(options.folder / "cache")
    for name in options.only:
        for given in (*options.large, *options.small):
            run(options.folder, name, given, given in options.small, ["--no-floor"] * options.no_floor)
        print(table(options.folder, name), end="\n\n", flush=True)
