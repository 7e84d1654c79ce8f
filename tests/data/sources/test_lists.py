"""Lists of images as people write them: tables with labels, quotes, JSON, encodings, paths that are not there."""

import json
from pathlib import Path

import pytest
from PIL import Image

from nolabel.data.images import scan, scan_labelled
from nolabel.errors import DataError

PATHS = ("photos/a 1.jpg", "photos/b, c.jpg", "photos/d.png", "photos/e.JPG")
CLASSES = ("cat", "dog", "cat", "dog")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path in PATHS:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / path)
    return tmp_path


def write(root: Path, *lines: str, name: str = "list.txt", encoding: str = "utf-8") -> Path:
    (root / name).write_text("\n".join(lines) + "\n", encoding=encoding)
    return root / name


PAIRS = list(zip(PATHS, CLASSES, strict=True))


@pytest.mark.parametrize(
    "lines",
    [
        ["path,label", *(f'"{p}",{c}' for p, c in PAIRS)],
        [f"{c}\t{p}" for p, c in PAIRS],
        [f"{p};{c}" for p, c in PAIRS],
        [f"{p} | {c}" for p, c in PAIRS],
        [f"{p} {c}" for p, c in PAIRS],
        [f"{c} {p}" for p, c in PAIRS],
        ["id\tsize\tclass\tfile", *(f"{i}\t4\t{c}\t{p}" for i, (p, c) in enumerate(PAIRS))],
        [json.dumps([{"image": p, "label": c} for p, c in PAIRS])],
        [json.dumps({"image": p, "category": c, "size": 4}) for p, c in PAIRS],
        [json.dumps(dict(PAIRS))],
        [json.dumps([[p, c] for p, c in PAIRS])],
    ],
)
def test_tables_with_labels(lines: list[str], root: Path) -> None:
    found = scan_labelled(write(root, *lines))["all"]
    assert tuple(found.images.names) == PATHS
    assert [found.classes[label] for label in found.labels] == list(CLASSES)
    assert tuple(scan(root / "list.txt").names) == PATHS


def test_a_column_of_splits(root: Path) -> None:
    splits = ("Train", "training", "valid", "test")
    lines = [f'{s},"{p}",{c}' for s, (p, c) in zip(splits, PAIRS, strict=True)]
    found = scan_labelled(write(root, "split,path,label", *lines))
    assert {split: len(part.labels) for split, part in found.items()} == {"train": 2, "val": 1, "test": 1}


def test_lines_without_a_class_or_a_split_are_counted(root: Path) -> None:
    splits = ("train", "train", "val", "fold9")
    lines = [f'{s},"{p}",{c}' for s, (p, c) in zip(splits, PAIRS, strict=True)]
    found = scan_labelled(write(root, "split,path,label", *lines))
    assert {split: len(part.labels) for split, part in found.items()} == {"train": 2, "val": 1}
    assert found["train"].unused == ("1 image without a class or a split",)
    lines = [f'"{p}",{c if i else ""}' for i, (p, c) in enumerate(PAIRS)]
    assert scan_labelled(write(root, "path,label", *lines))["all"].unused == ("1 image without a class or a split",)


@pytest.mark.parametrize(
    "lines",
    [
        [f'"{p}"' for p in PATHS],
        [f"'{p}'" for p in PATHS if "," not in p],
        [f"{p}  " for p in PATHS],
        [json.dumps(list(PATHS))],
        ["path,width,height", *(f'"{p}",4,4' for p in PATHS)],
        list(PATHS),
    ],
)
def test_lists_without_labels(lines: list[str], root: Path) -> None:
    assert set(scan(write(root, *lines)).names) == {p for p in PATHS if any(p in line for line in lines)}
    with pytest.raises(DataError, match="which has no classes"):
        scan_labelled(root / "list.txt")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_encodings(encoding: str, root: Path) -> None:
    assert tuple(scan(write(root, *PATHS, encoding=encoding)).names) == PATHS


def test_utf_16_without_its_mark(root: Path) -> None:
    with pytest.raises(DataError, match="UTF-16 without its mark"):
        scan(write(root, *PATHS, encoding="utf-16-le"))


def test_two_readings(root: Path) -> None:
    with pytest.raises(DataError, match=r"two columns of it are paths .* in the line photos/d.png\\ta.png"):
        scan(write(root, "photos/d.png\ta.png", "photos/e.JPG\tb.png"))
    with pytest.raises(DataError, match=r"photos/d.png is listed twice, as cat and as dog"):
        scan(write(root, "photos/d.png,cat", "photos/d.png,dog"))
    with pytest.raises(DataError, match="its first is id,label"):
        scan(write(root, "id,label", "1,cat"))


def test_paths_from_elsewhere(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "lists").mkdir()
    monkeypatch.chdir(root)
    with pytest.raises(DataError, match=r"tried at .*/lists/photos/a 1.jpg.*there from the current folder") as caught:
        scan(write(root, *PATHS, name="lists/here.txt"))
    assert len(str(caught.value).splitlines()) <= 5
    with pytest.raises(DataError, match=r"tried at /nowhere/x.jpg$|tried at /nowhere/x.jpg[.]"):
        scan(write(root, "/nowhere/x.jpg"))
