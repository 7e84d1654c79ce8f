"""Training among bad files: it ends or stops as the rule says, and lists what was planted, nothing else."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import BAD, NAMES, WHOLE, save
from PIL import Image

import nolabel
from nolabel.data import loader
from nolabel.data.check import check, format_check
from nolabel.data.images import scan
from nolabel.data.order import order
from nolabel.errors import DataError
from nolabel.training import feeding, loop

BATCH = 20


def plant_good(folder: Path, number: int) -> None:
    """Small pictures that all differ."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(number):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        (folder / f"{i:03}.png").write_bytes(save(Image.fromarray(pixels), "PNG"))


def plant_bad(folder: Path, number: int) -> dict[str, tuple[str, ...]]:
    """Files of the corpus, each as often as it takes; the reasons they may be refused with."""
    planted = {}
    for i in range(number):
        file = BAD[(7 * i) % len(BAD)]
        name = f"{i:03} bad {file.name}"
        (folder / name).write_bytes(file.data)
        planted[name] = file.reasons
    assert len(planted) == number
    return planted


def settings(tiny: dict[str, Any], data: Path, out: Path, **more: Any) -> dict[str, Any]:
    method = tiny["method"] | {"num_local": 0}
    return tiny | {"method": method, "data": data, "out": out, "batch_size": BATCH, "eval_every": 1000} | more


def stops_at(data: Path, bad: set[str], seed: int) -> int | None:
    """The images seen when an epoch stops by the rule: more than 5 % bad, judged from 200 on; None if it ends."""
    names = scan(data).names
    is_bad = [names[i] in bad for i in order(len(names), seed, 0).tolist()]
    ends = range(BATCH, len(names) + 1, BATCH)
    return next((end for end in ends if end >= 200 and sum(is_bad[:end]) > 0.05 * end), None)


@pytest.mark.parametrize(("num_good", "num_bad"), [(495, 5), (485, 15), (475, 25), (500, 500)])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_among_bad_files(
    num_good: int, num_bad: int, workers: int, tiny: dict[str, Any], tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    plant_good(data, num_good)
    planted = plant_bad(data, num_bad)
    expected = stops_at(data, planted.keys(), seed=0)
    assert expected is None if num_bad <= 15 else num_bad < 500 or expected == 200
    if expected is None:
        assert nolabel.train("dino-small", **settings(tiny, data, out, epochs=1, workers=workers))
    else:
        with pytest.raises(DataError, match=f"of the first {expected} images cannot be read, more than 5 %") as caught:
            nolabel.train("dino-small", **settings(tiny, data, out, epochs=1, workers=workers))
        assert caught.value.code == 65 and len(str(caught.value).splitlines()) <= 5
        assert nolabel.Run(out).status()["exit_code"] == 65
    listed = {record["name"]: record["reason"] for record in nolabel.Run(out).bad_files()}
    assert listed.keys() == planted.keys() if expected is None else listed.keys() < planted.keys()
    assert all(reason in planted[name] for name, reason in listed.items())


@pytest.mark.parametrize("workers", [0, 2])
def test_two_hundred_bad_files_in_a_row(workers: int, tiny: dict[str, Any], tmp_path: Path) -> None:
    plant_good(tmp_path / "data", 300)
    for i in range(300):
        (tmp_path / "data" / f"x{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^200 files in a row cannot be read, the first is x.*: empty") as caught:
        nolabel.train("dino-small", **settings(tiny, tmp_path / "data", tmp_path / "run", epochs=1, workers=workers))
    assert len(str(caught.value).splitlines()) <= 5


def test_nothing_of_a_bad_file_reaches_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every crop was cut from an image that is whole."""
    data, seen = tmp_path / "data", set()
    plant_good(data, 40)
    plant_bad(data, 20)
    good = {path.read_bytes() for path in data.glob("[0-9][0-9][0-9].png")}
    apply = loader.load

    def watched(opened: Any, *rest: Any) -> Any:
        image = apply(opened, *rest)
        seen.add(opened.data)
        return image

    monkeypatch.setattr(loader, "load", watched)
    stream = loader.Stream(scan(data), (loader.View(8, (0.3, 1.0)),), 0, 10)
    assert len(list(loader.batches(stream, range(6), 0))) == 6
    assert seen == good


@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_vanish_or_change_while_training(
    workers: int, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    plant_good(data, 480)
    files = sorted(data.iterdir())
    gone, cut, turned = files[3:60:10], files[5:60:10], files[7:60:10]  # 18 of 480: below 5 %
    step = loop.training_step

    def meanwhile(job: Any, views: Any, clock: Any) -> Any:
        if clock.step == 3:
            for path in gone:
                path.unlink()
            for path in cut:
                (tmp_path / "cut").write_bytes(path.read_bytes()[:60])
                (tmp_path / "cut").replace(path)  # in one step: a reader must not see an empty file between
            for path in turned:
                path.unlink()
                path.mkdir()
            plant_bad(data, 3)  # new files: nobody looks at them
        return step(job, views, clock)

    monkeypatch.setattr(loop, "training_step", meanwhile)
    run = nolabel.train("dino-small", **settings(tiny, data, out, epochs=2, workers=workers))
    assert run.status()["state"] == "done"
    reasons = {record["name"]: record["reason"] for record in run.bad_files()}
    assert reasons.keys() == {path.name for path in (*gone, *cut, *turned)}
    assert {reasons[path.name] for path in gone} == {"missing"}
    assert {reasons[path.name] for path in cut} == {"truncated"}
    # Missing: a reader may come between the two calls.
    assert {reasons[path.name] for path in turned} <= {"unreadable", "not a regular file", "missing"}


def test_a_tenth_gone_and_a_tenth_cut_is_too_much(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    plant_good(data, 300)
    files = sorted(data.iterdir())
    step = loop.training_step

    def meanwhile(job: Any, views: Any, clock: Any) -> Any:
        if clock.step == 2:
            for path in files[::10]:
                path.unlink()
            for path in files[5::10]:
                (tmp_path / "cut").write_bytes(path.read_bytes()[:60])
                (tmp_path / "cut").replace(path)  # in one step: a reader must not see an empty file between
        return step(job, views, clock)

    monkeypatch.setattr(loop, "training_step", meanwhile)
    with pytest.raises(DataError, match="more than 5 %"):
        nolabel.train("dino-small", **settings(tiny, data, out, epochs=2))
    listed = {record["name"]: record["reason"] for record in nolabel.Run(out).bad_files()}
    assert listed and set(listed.values()) == {"missing", "truncated"}
    assert listed.keys() <= {path.name for path in (*files[::10], *files[5::10])}


def test_hostile_names_from_training_to_the_report(tiny: dict[str, Any], tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    plant_good(data, 20)
    bad = NAMES[::3]
    for name in NAMES:
        Path(os.fsdecode(os.fsencode(data) + b"/" + name)).write_bytes(b"" if name in bad else WHOLE["jpg"])
    names = {os.fsdecode(name) for name in bad}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "too_many_bad", lambda *_: False)
        patch.setattr(feeding, "too_many_bad", lambda *_: False)
        nolabel.train("dino-small", **settings(tiny, data, out, epochs=2, batch_size=8))
    listed = {record["name"]: record["reason"] for record in nolabel.Run(out).bad_files()}
    assert listed.keys() <= names and len(listed) > 2 and set(listed.values()) == {"empty"}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    found = check(data)
    assert {file.name for file in found.bad} == names
    assert format_check(found).isascii() or all(line.isprintable() for line in format_check(found).splitlines())
