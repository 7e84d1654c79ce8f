"""Shards: what is in them, that they read as the folder does, and what is refused."""

import hashlib
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nolabel.data import packing as module
from nolabel.data.bad_files import BadImage
from nolabel.data.check import check
from nolabel.data.decode import decode
from nolabel.data.images import fingerprint, read, scan, scan_labelled
from nolabel.data.loader import Stream, batches
from nolabel.data.packing import Packing, pack
from nolabel.data.sources.shards import ABOUT, INDEX
from nolabel.errors import DataError, StorageError, UsageError
from nolabel.views import View

LONG = f"{'long' * 40}.jpg"
ODD = "caf\udce9.png"


def picture(size: tuple[int, int], seed: int, kind: str = "PNG") -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of 12 images, one of them large, one broken."""
    root = tmp_path_factory.mktemp("tree") / "data"
    names = ["a.png", *(f"train/{c}/{i}.png" for c in "ab" for i in range(3)), f"train/a/sub/{LONG}", f"val/a/{ODD}"]
    for seed, name in enumerate([*names, "val/b/x.png"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture((40, 30), seed))
    (root / "train/b/large.jpg").write_bytes(picture((400, 300), 99, "JPEG"))
    (root / "train/a/broken.png").write_bytes(picture((40, 30), 7)[:-20])
    (root / "train/a/note.txt").write_text("no image")
    return root


@pytest.fixture(scope="module")
def shards(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tree, tmp_path_factory.mktemp("shards") / "shards", Packing()).path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_hold_what_the_folder_holds(tree: Path, shards: Path) -> None:
    mine, theirs = scan(shards), scan(tree)
    assert mine.kind == "shards" and mine.names == tuple(theirs.names)
    assert [read(mine, i) for i in range(12)] == [read(theirs, i) for i in range(12)]
    assert fingerprint(mine) == fingerprint(theirs)
    assert scan(shards, "train/b").names == tuple(scan(tree, "train/b").names)
    for name, part in scan_labelled(tree).items():
        other = scan_labelled(shards)[name]
        assert (other.labels, other.classes) == (part.labels, part.classes)
        assert other.images.names == tuple(part.images.names)
    assert [bad.name for bad in check(shards).bad] == ["train/a/broken.png"]


@pytest.mark.parametrize("workers", [0, 1])
def test_views_from_shards_are_those_from_the_folder(tree: Path, shards: Path, workers: int) -> None:
    views = (View(16, (0.4, 1.0), blur=0.5), View(8, (0.1, 0.5)))
    for epochs in (range(6), range(3, 6)):
        found = [
            [batch.views for batch in batches(Stream(scan(data), views, 0, 4), epochs, workers)]
            for data in (tree, shards)
        ]
        for one, other in zip(*found, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_any_tar_reader_reads_a_shard(tree: Path, shards: Path) -> None:
    with tarfile.open(shards / "00000.tar") as archive:
        members = archive.getmembers()
        found = {m.name: archive.extractfile(m).read() for m in members}  # type: ignore[union-attr]
    assert [m.name for m in members] == list(
        scan(tree).names
    )  # webdataset: one sample a key, in the order of the names
    assert len({m.name.rsplit("/", 1)[-1].split(".")[0] + os.path.dirname(m.name) for m in members}) == len(members)
    assert all(m.isreg() and (m.mtime, m.uid, m.gid, m.uname) == (0, 0, 0, "") for m in members)
    assert found == {os.fsdecode(os.fsencode(name)): (tree / name).read_bytes() for name in found}


def test_equal_images_give_equal_bytes(tree: Path, shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(tree, copy)
    for path in copy.rglob("*.*"):
        os.utime(path, (1, 1))
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for name in (n for n in scan(tree).names if n.isascii()):
            archive.write(tree / name, name)
    assert contents(pack(copy, tmp_path / "s", Packing(threads=1)).path) == contents(shards)
    assert contents(pack(shards, tmp_path / "again", Packing()).path) == contents(shards)
    packed = pack(tmp_path / "d.zip", tmp_path / "z", Packing(), "train")
    assert packed.fingerprint == fingerprint(scan(tmp_path / "d.zip", "train")) == fingerprint(scan(tree, "train"))


def test_a_shard_ends_before_it_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for i, size in enumerate((400_000, 400_000, 300_000, 1_500_000, 10)):
        (tmp_path / "d" / f"{i}.jpg").write_bytes(bytes([i]) * size)
    done = pack(tmp_path / "d", tmp_path / "s", Packing(shard_mb=1))
    assert done.num_shards == 4 and done.num_images == 5
    images = scan(tmp_path / "s")
    assert [read(images, i)[:1] for i in range(5)] == [bytes([i]) for i in range(5)]
    about = json.loads((tmp_path / "s" / ABOUT).read_text())
    for shard in about["shards"]:
        data = (tmp_path / "s" / shard["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    assert done.bytes == sum(path.stat().st_size for path in (tmp_path / "s").iterdir() if path.name != ABOUT)


def test_a_short_side_makes_large_images_smaller(tree: Path, tmp_path: Path) -> None:
    done = pack(tree, tmp_path / "s", Packing(short_side=64))
    mine, theirs = scan(tmp_path / "s"), scan(tree)
    assert done.num_resized == 1 and mine.names == tuple(theirs.names)
    large = mine.names.index("train/b/large.jpg")
    small, whole = decode(read(mine, large)).float(), decode(read(theirs, large)).float()
    assert small.shape == (3, 64, 85)
    expected = torch.nn.functional.interpolate(whole[None], (64, 85), mode="bicubic", antialias=True)[0]
    assert (small - expected).abs().mean() < 3
    assert [read(mine, i) == read(theirs, i) for i in range(12)] == [i != large for i in range(12)]


def test_unreadable_files_are_left_out_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / "d" / name).write_bytes(b"x")
    images = scan(tmp_path / "d")
    monkeypatch.setattr(module, "scan", lambda data, subfolder=None: images if data == "d" else scan(data))
    (tmp_path / "d" / "b.jpg").unlink()
    done = pack("d", tmp_path / "s", Packing())
    assert [bad.name for bad in done.left_out] == ["b.jpg"] and scan(tmp_path / "s").names == ("a.jpg", "c.jpg")
    shutil.rmtree(tmp_path / "d")
    with pytest.raises(DataError, match="None of the 3"):
        pack("d", tmp_path / "none", Packing())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_names_outside_and_wrong_settings_are_refused(tree: Path, tmp_path: Path) -> None:
    for line in (str(tree / "a.png"), "../up.png"):
        (tmp_path / "up.png").touch()
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / "list.txt").write_text(line)
        with pytest.raises(DataError, match="outside"):
            pack(tmp_path / "in" / "list.txt", tmp_path / "out", Packing())
    (tmp_path / "there").mkdir()
    for out, packing in (
        ("there", Packing()),
        ("new", Packing(short_side=8)),
        ("new", Packing(quality=0)),
        ("new", Packing(shard_mb=0)),
    ):
        with pytest.raises(UsageError):
            pack(tree, tmp_path / out, packing)
    with pytest.raises(StorageError, match="cannot be written"):
        pack(tree, tmp_path / "up.png" / "below", Packing())
    assert not (tmp_path / "new").exists()


# ---- damaged and hostile shards ------------------------------------------------------------------


def edit_index(folder: Path, change: Callable[[bytearray], None]) -> None:
    """Change the index and write the checksum that fits it, as an attacker would."""
    index = bytearray((folder / INDEX).read_bytes())
    change(index)
    (folder / INDEX).write_bytes(index)
    edit_about(folder, index_sha256=hashlib.sha256(index).hexdigest())


def edit_about(folder: Path, **changes: object) -> None:
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps(about | changes))


def put(at: int, value: int, width: int) -> Callable[[bytearray], None]:
    def change(index: bytearray) -> None:
        index[at : at + width] = value.to_bytes(width, "little", signed=True)

    return change


def replace(old: bytes, new: bytes) -> Callable[[bytearray], None]:
    def change(index: bytearray) -> None:
        index[:] = index.replace(old, new)

    return change


N = 12  # images in `tree`
HOSTILE = {
    "start below 0": (put(0, -512, 8), "outside the shards"),
    "start beyond the end": (put(0, 1 << 40, 8), "outside the shards"),
    "size beyond the end": (put(8 * N, 2**31 - 1, 4), "outside the shards"),
    "no such shard": (put(16 * N, 7, 2), "outside the shards"),
    "length below 0": (put(18 * N, -1, 4), "damaged"),
    "length too large": (put(18 * N, 10**6, 4), "damaged"),
    "no such folder": (put(22 * N, 99, 4), "damaged"),
    "a folder above": (replace(b"val/b/", b"../b//"), "outside the folder"),
    "an absolute folder": (replace(b"val/b/", b"/al/b/"), "outside the folder"),
    "a path as a file": (replace(b"a.png", b"a/png"), "damaged"),
    "cut": (lambda index: index.__delitem__(slice(-1, None)), "bytes, not"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_index_is_refused(shards: Path, tmp_path: Path, what: str) -> None:
    change, words = HOSTILE[what]
    edit_index(shutil.copytree(shards, tmp_path / "s"), change)
    with pytest.raises(DataError, match=words):
        scan(tmp_path / "s")


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"shards": [{"name": "../00000.tar", "bytes": 1}]},
        {"shards": [{"name": "00000.tar", "bytes": 1}]},
        {"shards": [{"name": "00000.tar"}]},
        {"shards": 3},
        {"lengths": {}},
        {"lengths": {"images": -1, "folders": 0, "text": 0, "folder_text": 0}},
        {"lengths": [1, 2]},
        {"index_sha256": None},
    ],
)
def test_a_hostile_description_is_refused(shards: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    edit_about(shutil.copytree(shards, tmp_path / "s"), **changes)
    with pytest.raises(DataError, match="shards"):
        scan(tmp_path / "s")


def test_damage_is_found(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "s")
    images = scan(folder)
    raw = bytearray((folder / "00000.tar").read_bytes())
    raw[600] ^= 1  # in the content of the first image
    (folder / "00000.tar").write_bytes(raw)
    with pytest.raises(BadImage, match="Bad CRC-32"):
        read(images, 0)
    assert len(read(images, 1)) > 0
    raw[100] ^= 1  # in its header
    (folder / "00000.tar").write_bytes(raw)
    with pytest.raises(BadImage, match="no member of a tar"):
        read(images, 0)
    (folder / "00000.tar").write_bytes(raw[:-512])
    with pytest.raises(DataError, match="bytes, not"):
        edit_about(folder, x=1)  # another state of the folder: what was remembered is not used
        scan(folder)
    (folder / INDEX).write_bytes((folder / INDEX).read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match="SHA-256"):
        edit_about(folder, x=22)
        scan(folder)
    (folder / ABOUT).write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        scan(folder)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_members_that_are_no_files_are_refused(shards: Path, tmp_path: Path, kind: bytes) -> None:
    folder = shutil.copytree(shards, tmp_path / "s")
    images = scan(folder)
    info = tarfile.TarInfo("a.png")
    info.type, info.linkname, info.size = kind, "/etc/passwd", len(read(images, 0))
    raw = bytearray((folder / "00000.tar").read_bytes())
    raw[:512] = info.tobuf(tarfile.GNU_FORMAT)
    (folder / "00000.tar").write_bytes(raw)
    with pytest.raises(BadImage, match="no file of the size"):
        read(images, 0)
