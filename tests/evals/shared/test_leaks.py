"""Equal files in two splits, or twice in one: found by size and content, named with both numbers, at a bounded cost."""

import json
import zipfile
from pathlib import Path

import pytest

from nolabel.data.images import scan, scan_labelled
from nolabel.evals.shared import leaks
from nolabel.evals.shared.labelled import roles
from nolabel.evals.shared.leaks import Leak, find_copies, find_leak, leak_notes
from nolabel.evals.shared.reading import data_notes, read_roles
from nolabel.evals.shared.results import data_fingerprint, result_path


def plant(root: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


SET = {f"train/{'ab'[i % 2]}/{i}.jpg": b"x" * 9 + b"%03d" % i for i in range(20)}
SET |= {f"val/{'ab'[i % 2]}/z{i}.jpg": b"x" * 9 + b"%03d" % (i + 15) for i in range(10)}  # five of them are in train
SET |= {"val/a/empty.jpg": b"", "train/a/empty.jpg": b"", "val/a/large.jpg": b"y" * 50}


@pytest.mark.parametrize("packed", [False, True])
def test_equal_files_of_two_splits(packed: bool, tmp_path: Path) -> None:
    data = plant(tmp_path / "d", SET)
    if packed:
        data = tmp_path / "d.zip"
        with zipfile.ZipFile(data, "w") as archive:
            for name, content in SET.items():
                archive.writestr(name, content)
    splits = scan_labelled(data)
    train, val = splits["train"].images, splits["val"].images
    assert find_leak(train, val) == Leak(5, 12) and find_leak(val, train) == Leak(5, 21)
    assert leak_notes({"train": train, "val": val}) == ["5 of 12 images of val are in train, too, byte for byte"]
    assert leak_notes({"train": train, "val": None}) == []
    assert data_notes(roles(splits)) == leak_notes({"train": train, "val": val})


def test_copies_in_one_split(tmp_path: Path) -> None:
    content = {f"a/{i}.jpg": b"same" for i in range(3)} | {"b/1.jpg": b"else", "b/2.jpg": b"", "b/3.jpg": b""}
    images = scan(plant(tmp_path, content))
    assert find_copies(images) == Leak(3, 6)
    assert leak_notes({"all": images}) == ["3 of 6 images are in the data more than once, byte for byte"]


def test_the_cost_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = scan_labelled(plant(tmp_path, SET))
    train, val = splits["train"].images, splits["val"].images
    monkeypatch.setattr(leaks, "MAX_TESTED", 4)
    leak = find_leak(train, val)
    assert leak.looked_at == 4 and leak_notes({"train": train, "val": val})[0].startswith(
        f"{leak.equal} of 4 looked at"
    )
    read = list[int]()
    monkeypatch.setattr(leaks, "read", lambda images, place: read.append(place) or b"")
    monkeypatch.setattr(leaks, "MAX_READ", 10)
    find_leak(train, val)
    find_copies(train)
    assert len(read) <= 20
    read.clear()
    find_leak(train, val._replace(names=("val/a/large.jpg",)))
    assert read == []  # another size: never opened


def test_what_was_read_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {f"{split}/{name}/0.jpg": b"1" for split in ("Training", "dev", "Test") for name in "ab"}
    read_roles(plant(tmp_path, content | {"more/0.jpg": b"2"}))
    assert capsys.readouterr().err.splitlines() == [
        "images: train 2 in Training/, val 2 in dev/, test 2 in Test/; reported: test",
        "classes: 2 (a, b)",
        "not used: more/ (1 image)",
    ]


def test_results_on_two_data_sets_of_one_name(tmp_path: Path) -> None:
    run, first, second = (tmp_path / name for name in ("run", "one/data", "two/data"))
    plant(first, SET)
    plant(second, SET | {"train/a/more.jpg": b"more"})
    place = result_path(run, "knn", first)
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"data": {"name": "data"}}))
    place.with_suffix(".time.json").write_text(json.dumps({"data": data_fingerprint(first)}))
    assert result_path(run, "knn", first) == place == run / "eval" / "knn.json"
    assert result_path(run, "knn", second) == run / "eval" / "knn-data.json"
    (run / "eval" / "knn-data.json").write_text(json.dumps({"data": {"name": "data"}}))
    assert result_path(run, "knn", second).name == f"knn-data-{data_fingerprint(second)[:8]}.json"
    place.with_suffix(".time.json").unlink()  # a result of an earlier version: known by the fingerprint of a split
    assert result_path(run, "knn", first) != place
    part = {"fingerprint": data_fingerprint(first / "train")}
    place.write_text(json.dumps({"data": {"name": "data", "splits": {"train": part}}}))
    assert result_path(run, "knn", first) != place  # below another folder names are others
