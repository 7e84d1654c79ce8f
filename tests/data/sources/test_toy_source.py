"""A source made by what CONTRIBUTING says: one file of functions, a line in each of two tables. Labels are a column."""

import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nolabel import catalog
from nolabel.api import evaluate_loaded
from nolabel.data.bad_files import BadImage
from nolabel.data.images import fingerprint, read, scan, scan_labelled
from nolabel.data.sources import SOURCES, find_source
from nolabel.data.sources.source import Listing, Source, Tops
from nolabel.errors import DataError
from nolabel.evals.classification.knn import KNNConfig
from nolabel.evals.shared.cache import stamp
from nolabel.evals.shared.trees import open_tree
from nolabel.networks.backbones import backbone
from nolabel.weights.load import Loaded

MAGIC = b"TOY\0"

# ---- what would be data/sources/toy.py -----------------------------------------------------------


def _table(path: str) -> tuple[dict[str, dict], int]:  # type: ignore[type-arg]
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8)[4:], "little")
        return json.loads(file.read(length)), 8 + length


def recognises(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(4) == MAGIC


def list_images(path: str, tops: Tops) -> Listing:
    rows, _ = _table(path)
    below = tuple(f"{top}/" for top in tops or () if top)
    names = tuple(name for name in sorted(rows) if not below or name.startswith(below))
    return Listing(path, names, labels=tuple(tuple(rows[name]["label"]) for name in names))


def read_row(root: str, name: str) -> bytes:
    rows, start = _table(root)
    row = rows[name]
    with open(root, "rb") as file:
        file.seek(start + row["at"])
        return file.read(row["size"])


def facts(root: str, names: Sequence[str]) -> Iterator[tuple[int, int] | None]:
    rows, _ = _table(root)
    return ((rows[name]["size"], rows[name]["at"]) if name in rows else None for name in names)


TOY = Source(recognises, list_images, read_row, facts, has_folders=False)


# ---- and its tests -------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "toy", TOY)
    monkeypatch.setitem(catalog.SOURCES, "toy", "a toy table")


def write_toy(path: Path, images: dict[str, tuple[bytes, tuple[str, ...]]]) -> Path:
    rows, blobs = {}, b""
    for name, (data, label) in images.items():
        rows[name] = {"label": label, "at": len(blobs), "size": len(data)}
        blobs += data
    head = json.dumps(rows).encode()
    path.write_bytes(MAGIC + len(head).to_bytes(4, "little") + head + blobs)
    return path


def png(color: Sequence[int], seed: int) -> bytes:
    noise = np.random.default_rng(seed).normal(0, 10, (20, 24, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


COLORS = {"red": (200, 40, 40), "blue": (40, 40, 200)}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Names say nothing: 0000.png and so on, in two folders that are no classes."""
    images, number = {}, 0
    for split, count in (("train", 6), ("val", 3)):
        for color, rgb in COLORS.items():
            for _ in range(count):
                images[f"{'xy'[number % 2]}/{number:04d}.png"] = png(rgb, number), (split, color)
                number += 1
    images["y/9999.png"] = png((0, 0, 0), 0), ()
    return write_toy(tmp_path / "photos.toy", images)


def test_scan_read_and_fingerprint(toy: Path, tmp_path: Path) -> None:
    images = scan(toy)
    assert find_source(toy) == images.kind == "toy" and len(images.names) == 19
    folder = tmp_path / "files"
    for i, name in enumerate(images.names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(read(images, i))
    assert tuple(scan(folder).names) == tuple(images.names) and fingerprint(scan(folder)) == fingerprint(images)
    assert stamp(images) == stamp(scan(toy)) != stamp(scan(folder))
    assert {name[0] for name in scan(toy, "x").names} == {"x"}
    gone = images._replace(names=("none.png",))
    assert fingerprint(gone) != fingerprint(images)
    with pytest.raises(BadImage, match="missing"):
        read(gone, 0)


def test_labels_come_from_the_column(toy: Path) -> None:
    splits = scan_labelled(toy)
    assert {key: len(part.labels) for key, part in splits.items()} == {"train": 12, "val": 6}
    for part in splits.values():
        assert part.classes == ("blue", "red")
        for i, label in enumerate(part.labels):
            with Image.open(io.BytesIO(read(part.images, i))) as picture:
                red, _, blue = np.asarray(picture).mean((0, 1))
            assert part.classes[label] == ("red" if red > blue else "blue")


def test_labels_without_splits(tmp_path: Path) -> None:
    rows = {"c.jpg": ("bird",), "a.jpg": ("void",), "d.jpg": ("ant/queen",), "b.jpg": ()}
    (only,) = scan_labelled(write_toy(tmp_path / "d.toy", {n: (b"", label) for n, label in rows.items()})).items()
    assert only[0] == "all" and tuple(only[1].images.names) == ("c.jpg", "d.jpg")
    assert only[1].classes == ("ant/queen", "bird") and only[1].labels == (1, 0)


def test_a_column_with_one_class(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "d.toy", {"a.jpg": (b"", ("train", "cat")), "b.jpg": (b"", ("val", "cat"))})
    with pytest.raises(DataError, match="does not hold images of two classes"):
        scan_labelled(data)


def test_knn_gives_the_numbers_of_class_folders(toy: Path, tmp_path: Path) -> None:
    net = backbone("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64)})
    loaded = Loaded(net.eval(), 16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bicubic", "tiny", "0123456789abcdef")
    for split, part in scan_labelled(toy).items():
        for i, label in enumerate(part.labels):
            copy = tmp_path / "folders" / split / part.classes[label] / part.images.names[i][2:]
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(read(part.images, i))
    config = KNNConfig(ks=(1,), cache=False)
    results = [evaluate_loaded("knn", loaded, tmp_path, data, None, config) for data in (toy, tmp_path / "folders")]
    assert results[0]["metrics"] == results[1]["metrics"] and results[0]["floor"] == results[1]["floor"]
    assert {key: part["images"] for key, part in results[0]["data"]["splits"].items()} == {"train": 12, "val": 6}


def test_words_and_refusals(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a toy table, which has no masks: expected a folder or a zip"):
        open_tree(toy)
    with pytest.raises(DataError, match=r"Expected a folder of images, .*a text file of paths, or a toy table"):
        scan(tmp_path / "none")
