"""Seeded noise for everything that reads bytes of strangers: each target takes a file and may refuse it, in words.

What a target does to mutated bytes is its business; that it ends, writes nothing and raises nothing but the errors of
nolabel is that of `test_fuzz.py`.
"""

import hashlib
import json
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from hostile import WHOLE
from safetensors.torch import save_file

from nolabel.config import read_yaml, resolve
from nolabel.config.load import config_yaml, from_mapping, load_recipe
from nolabel.data.bad_files import BadImage
from nolabel.data.decode import decode
from nolabel.data.images import read, scan
from nolabel.errors import NolabelError
from nolabel.files import append_jsonl, cut_jsonl, write_json
from nolabel.health.diagnosis import diagnose
from nolabel.health.facts import RunFacts
from nolabel.networks.backbones import backbone
from nolabel.report import report
from nolabel.runs.checkpoint import Checkpoint, load_newest, save
from nolabel.runs.folder import Run
from nolabel.weights.load import load_weights

ODD = (
    b"", b"\0", b"\xff" * 8, b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b'"', b"\\", b"\n", b": ", b"[[[[", b"&a ",
    b"*a", b"!!python/name:os.system", b"\xed\xa0\x80", b"9" * 30, b"../../", b"\x80\x04", b"true", b"- ",
)  # fmt: skip
"""Values that break parsers."""
VALUES = (
    b"null",
    b"true",
    b'"x"',
    b"[]",
    b"{}",
    b"[1, 2]",
    b'{"a": 1}',
    b"-1",
    b"0",
    b"1e308",
    b"1e999",
    b"10" * 200,
    b".nan",
    b"~",
)
"""Values in place of a word or a number: the file is still well formed, with another meaning."""


def mutated(data: bytes, choice: random.Random) -> bytes:
    """`data` after one to four cuts, flips, repetitions, insertions, other values; half of them near its start."""
    found = bytearray(data)
    for _ in range(choice.randint(1, 4)):
        end = min(64, len(found)) if choice.random() < 0.5 else len(found)
        at = choice.randint(0, max(end - 1, 0))
        length = choice.choice((1, 2, 4, 16, 100))
        match choice.randrange(8):
            case 6 | 7 if words := list(re.finditer(rb"[\w.+-]+", found)):
                word = choice.choice(words)
                found[word.start() : word.end()] = choice.choice(VALUES)
            case 0 if found:
                found[at] ^= 1 << choice.randrange(8)
            case 1:
                del found[at : at + length]
            case 2:
                found[at:at] = choice.choice(ODD)
            case 3:
                found[at : at + length] = choice.choice(ODD)
            case 4:
                found[at:at] = found[at : at + length]
            case _:
                found[at : at + length] = choice.randbytes(length)
    return bytes(found)


class Target(NamedTuple):
    """Something that reads files: `plant` writes good ones into a folder, `take` reads them."""

    plant: Callable[[Path], None]
    take: Callable[[Path], object]


# ---- settings


def plant_settings(folder: Path) -> None:
    for name in ("dino", "msn-small", "densecl-small", "simclr-small"):
        (folder / f"{name}.yaml").write_text(config_yaml(load_recipe(name)), encoding="utf-8")


def take_settings(folder: Path) -> None:
    for path in folder.glob("*.yaml"):
        try:
            resolve(from_mapping(read_yaml(path), path.name), 5000, 1, torch.device("cpu"))
        except NolabelError as error:
            polite(error)


# ---- checkpoints


def plant_checkpoints(folder: Path) -> None:
    for step in (1, 2):
        tensors = {"a": torch.arange(4.0), "b": torch.full((2,), step)}
        save(folder, step, Checkpoint(tensors, {"a/step": torch.tensor(1.0)}, {"step": step}), keep=2)


def take_checkpoints(folder: Path) -> None:
    """One of the two is damaged, wherever the bytes were changed."""
    found, damaged = load_newest(folder)
    assert found is not None and int(found.model["b"][0]) == found.state["step"] == 2 - len(damaged)


def take_forged_checkpoints(folder: Path) -> None:
    """As by a stranger who writes the right hashes: what is read is whole, or is set aside."""
    path = folder / "step-00000002"
    if path.is_dir():
        files = {f.name: f.read_bytes() for f in path.iterdir() if f.is_file() and f.name != "manifest.json"}
        hashes = {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()}
        (path / "manifest.json").write_text(json.dumps({"format": 1, "step": 2, "files": hashes}))
    found, _ = load_newest(folder)
    assert found is not None and isinstance(found.state, dict)


# ---- what a run has written


def plant_run(folder: Path) -> None:
    (folder / "config.yaml").write_text(config_yaml(load_recipe("dino-small")), encoding="utf-8")
    write_json(folder / "status.json", {"state": "running", "step": 30, "health": {"kind": "healthy", "words": ""}})
    for step in range(10, 40, 10):
        line = {"step": step, "epoch": step / 10, "loss": 4.0, "knn": 20.0, "rankme": 9.0, "effective_rank": 7.0}
        line |= {"feature_std": 0.9, "uniformity": -2.0, "assignment_information": 1.0, "teacher_entropy": 2.0}
        append_jsonl(folder / "metrics.jsonl", line | {"weight_norm": 3.0, "lr": 0.1, "data_wait": 0.1})
        append_jsonl(
            folder / "events.jsonl", {"time": "2026-01-01T00:00:00+00:00", "event": "checkpoint", "step": step}
        )
    append_jsonl(folder / "events.jsonl", {"time": "2026-01-01T00:00:00+00:00", "event": "alarm", "kind": "uniform"})
    append_jsonl(folder / "bad_files.jsonl", {"name": "a.png", "reason": "empty", "detail": "", "size": 0})
    (folder / "eval").mkdir()
    write_json(folder / "eval" / "knn.json", {"protocol": "knn", "metrics": {"top1": 40.0}, "floor": {"raw": 20.0}})


def take_run(folder: Path) -> None:
    """Read a run as resuming and reporting do. A line that makes no sense is passed over."""
    try:
        run = Run(folder)
        run.status()
        assert all(isinstance(r["name"], str) for r in run.bad_files())
        assert all(isinstance(r["step"], int) for r in run.metrics())
        run.events()
        cut_jsonl(folder / "metrics.jsonl", 20)
        diagnose(run.metrics(), RunFacts({}, {}, 64, 512, 0, 1000))
        report(run)
    except NolabelError as error:
        polite(error)


# ---- images, archives, lists, weights


def plant_images(folder: Path) -> None:
    for kind, data in WHOLE.items():
        (folder / f"a.{kind}").write_bytes(data)


def take_images(folder: Path) -> None:
    for path in folder.glob("a.*"):
        try:
            image = decode(path.read_bytes(), max_pixels=10**6)
        except BadImage as error:
            assert error.reason and len(str(error)) < 400
        else:
            assert image.dtype == torch.uint8 and image.shape[0] == 3


def plant_archive(folder: Path) -> None:
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        for number, (kind, data) in enumerate(WHOLE.items()):
            archive.writestr(f"x/{number}.{kind}", data, number % 2 * zipfile.ZIP_DEFLATED)


def plant_list(folder: Path) -> None:
    plant_images(folder)
    (folder / "data.txt").write_text("".join(f"a.{kind}\n" for kind in WHOLE))


def take_data(folder: Path) -> None:
    data = next(p for p in (folder / "data.zip", folder / "data.txt") if p.exists())
    try:
        images = scan(data)
    except NolabelError as error:
        polite(error)
        return
    for index in range(len(images.names)):
        try:
            decode(read(images, index), max_pixels=10**6)
        except BadImage as error:
            assert error.reason


def plant_weights(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"architecture": "test_vit", "model_args": {"depth": 2}}))
    save_file(backbone("test_vit", {"depth": 2}).model.state_dict(), folder / "model.safetensors")


def take_weights(folder: Path) -> None:
    try:
        load_weights(folder)
    except NolabelError as error:
        polite(error)


def polite(error: NolabelError) -> None:
    """A message for people: at most five lines, and not the whole file."""
    assert 1 <= len(str(error).splitlines()) <= 5 and len(str(error)) < 3000, str(error)[:500]


TARGETS = {
    "settings": Target(plant_settings, take_settings),
    "checkpoints": Target(plant_checkpoints, take_checkpoints),
    "forged checkpoints": Target(plant_checkpoints, take_forged_checkpoints),
    "run folders": Target(plant_run, take_run),
    "images": Target(plant_images, take_images),
    "archives": Target(plant_archive, take_data),
    "lists": Target(plant_list, take_data),
    "weights": Target(plant_weights, take_weights),
}


def fuzz(target: Target, folder: Path, cases: int, seed: int = 0) -> int:
    """Change one file of those planted, `cases` times; gives how often that made another file."""
    whole = folder / "whole"
    whole.mkdir(parents=True)
    target.plant(whole)
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    changed = 0
    for number in range(cases):
        choice = random.Random(f"{seed} {number}")
        name = choice.choice(files)
        data = mutated((whole / name).read_bytes(), choice)
        if data == (whole / name).read_bytes():
            continue
        changed += 1
        case = folder / "case"
        shutil.copytree(whole, case)
        (case / name).write_bytes(data)
        try:
            target.take(case)
        except BaseException as error:
            error.add_note(f"case {number} of seed {seed}, {name}: {data[:200]!r}")
            raise
        shutil.rmtree(case)
    return changed
