"""Hostile command lines: every command with values that nobody meant. No exit code may be 1, which is a bug of nolabel.

`python tests/cli/hostile_lines.py SEED NUMBER` prints what it finds, in a process of its own.
"""

import contextlib
import io
import random
import signal
import sys
import tempfile
import typing
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from nolabel.cli.embed import EmbedOptions
from nolabel.cli.main import main
from nolabel.cli.pack import PackOptions
from nolabel.cli.show import ShowOptions
from nolabel.config.describe import describe_settings, name_type
from nolabel.config.load import load_recipe
from nolabel.evals.all import EVERY

NUMBERS = tuple("0 -1 1 2 7 0.5 -0.5 1e-300 1e308 nan inf -inf 99999999999999999999 0x10 1_0 1,5".split())  # noqa: SIM905
WHOLE = ("0", "-1", "1", "2", "3", "5", "7", "100", "99999999999999999999", "100000000000", "-100000000000")
FLOATS = ("0", "-1", "1", "0.5", "1e-300", "1e-30", "1e30", "1e308", "nan", "inf", "-inf", "2", "-0.5", "100")
TEXTS = ("", " ", "none", "auto", "true", "abc", "..", "/dev/null", "\x1b]0;x\x07", "ü" * 60, "a" * 5000, "-", "--")
MORE = (
    "[1,2]",
    "{}",
    "cpu",
    "cuda",
    "mps",
    "meta",
    "fp16",
    "bf16",
    "fp8",
    "test_vit",
    "pit_ti_224",
    "resnet18.a1_in1k",
)
ARGUMENTS = (
    "in_chans=1",
    "patch_size=4",
    "img_size=-1",
    "depth=0",
    "x=1",
    "=",
    "layers=[0]",
    "embed_dim=7",
    "num_heads=5",
)
RECIPES = ("dino-small", "msn-small", "densecl-small", "mocov2-small", "simclr-small")
WEIGHTS = ("random:test_resnet", "random:test_vit", "random:", "random:nothing", "random:pit_ti_224", "resnet18", "")
LONG = {"steps", "epochs", "threads", "workers", "minutes", "tracker", "compile"}
"""Options whose large values only take long, or set up the process that tests run in."""


class Case(NamedTuple):
    """A command line, and what came of it."""

    args: tuple[str, ...]
    code: Any
    words: str

    def is_bug(self) -> bool:
        """Whether the command ended as only a bug ends."""
        return self.code not in (0, 2, 65, 70, 74) or "internal error" in self.words


def make_inputs(folder: Path) -> dict[str, str]:
    """Images, and things that are none."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("a", "b"):
            (folder / "labelled" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "labelled" / split / name / f"{i}.png")
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("nothing.png\n")
    (folder / "zeros.bin").write_bytes(bytes(1000))
    (folder / "torn.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    with zipfile.ZipFile(folder / "odd.zip", "w") as archive:
        archive.writestr("train/a/x.png", b"no image")
    (folder / "config.yaml").write_text("data: 1\n")
    names = ("labelled", "empty", "text.txt", "zeros.bin", "torn.zip", "odd.zip", "missing", "config.yaml")
    return {name: str(folder / name) for name in names}


def options_of(command: str) -> dict[str, str]:
    """Names of the options of a command, with their types in words."""
    kinds: dict[str, Any] = {"show": ShowOptions, "embed": EmbedOptions, "pack": PackOptions}
    more = {"out": "Path", "backbone": "str", "json": "true or false", "allow_pth": "true or false"}
    if command.split()[0] in kinds:
        hints = typing.get_type_hints(kinds[command.split()[0]])
        return {name: name_type(hint) for name, hint in hints.items() if name not in ("weights", "data", "images")}
    if command.startswith("eval"):
        hints = typing.get_type_hints(EVERY[command.split()[1]].Config)
        return {name: name_type(hint) for name, hint in hints.items()} | more
    if command.startswith("train"):
        settings = describe_settings(load_recipe(command.split()[1]))
        return {s.name: s.type for s in settings if not s.hidden and s.name not in ("data", "out")}
    return more | {"to": "str", "allow_change": "true or false"}


def values_of(kind: str, rng: random.Random, inputs: dict[str, str]) -> list[str]:
    """Values for an option: hostile ones of its type, or anything at all."""
    count = int(kind[0]) if kind[:1].isdigit() else 1
    if rng.random() < 0.2:
        pool: Sequence[str] = (*NUMBERS, *TEXTS, *MORE, rng.choice(list(inputs.values())))
        return [rng.choice(pool) for _ in range(rng.choice((1, 2, 4)))]
    if kind == "true or false":
        return []
    if "float" in kind:
        return [rng.choice(FLOATS) for _ in range(count)]
    if "int" in kind:
        return [rng.choice(WHOLE) for _ in range(count)]
    if "," in kind:
        return [rng.choice([word.strip() for word in kind.split(",")])]
    return [rng.choice((*TEXTS, *MORE, *inputs.values()))]


def base(command: str, inputs: dict[str, str], out: str, rng: random.Random) -> list[str]:
    """A command line that works, with DATA and WEIGHTS that may not."""
    good = rng.random() < 0.8
    data = inputs["labelled"] if good else rng.choice(list(inputs.values()))
    weights = WEIGHTS[0] if good else rng.choice([*WEIGHTS, *inputs.values()])
    first, *rest = command.split()
    if first == "train":
        small = ["--backbone", "test_resnet", "--batch-size", "2", "--steps", "1", "--workers", "0", "--threads", "1"]
        sizes = {"dino-small": ["global", "local"], "msn-small": ["random", "focal"]}.get(rest[0])
        sides = [f"--method.{s}-size={32}" for s in sizes] if sizes else ["--method.size=32"]
        if rest[0] == "msn-small":
            small[1:2] = ["test_vit", "--backbone-args"]
        return [first, rest[0], data, "--out", out, *small, *sides]
    if first in ("eval", "show"):
        target = data if first == "eval" else f"{inputs['labelled']}/val/a/0.png"
        more = ["--device", "cpu"] if first == "eval" else ["--out", out, "--size", "32"]
        return [first, rest[0], weights, target, *more]
    if first == "embed":
        return [first, weights, data, "--out", f"{out}.npz", "--image-size", "32"]
    if first == "export":
        return [first, weights, "--to", "timm", "--out", out]
    if first == "pack":
        return [first, data, "--out", out]
    return [first, data if first == "check" else rng.choice(list(inputs.values()))]


COMMANDS = (
    *(f"train {recipe}" for recipe in RECIPES),
    *(f"eval {protocol}" for protocol in EVERY),
    *(f"show {kind}" for kind in ("attention", "pca", "matches")),
    *("embed", "export", "pack", "check", "report", "resume", "list"),
)


def command_lines(seed: int, number: int, inputs: dict[str, str], folder: Path) -> Iterator[list[str]]:
    """Command lines with one or two hostile options each, a function of the seed."""
    rng = random.Random(seed)
    for index in range(number):
        command = rng.choice(COMMANDS)
        args = base(command, inputs, str(folder / f"out{index}"), rng)
        options = options_of(command)
        for name in rng.sample(sorted(options), min(len(options), rng.choice((1, 1, 2, 3)))):
            values = values_of(options[name], rng, inputs)
            if name.split(".")[-1] in LONG:
                values = [rng.choice(("0", "-1", "nan", "abc", "", "1e308"))]
            if name == "backbone_args":
                values = [rng.choice(ARGUMENTS)]
            args += [f"--{name.replace('_', '-')}", *values]
        yield args


def run(args: Sequence[str], seconds: int = 60) -> Case:
    """Run a command line in this process."""

    def stop(*_: object) -> None:
        raise SystemExit(0)  # long is not wrong

    out, err, code = io.StringIO(), io.StringIO(), None
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(list(args))
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        code = f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return Case(tuple(args), code or 0, err.getvalue())


if __name__ == "__main__":
    import resource
    import warnings

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    counts: dict[Any, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        there = make_inputs(Path(scratch))
        for line in command_lines(int(sys.argv[1]), int(sys.argv[2]), there, Path(scratch)):
            case = run(line, 20)
            counts[case.code] = counts.get(case.code, 0) + 1
            if case.is_bug():
                short = [a[:80] for a in case.args]
                print("BUG", case.code, short, "\n   ", case.words.strip()[-300:], flush=True)
    print(counts)
