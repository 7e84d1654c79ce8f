import multiprocessing
import os
import pickle
import random
import sys
import zipfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from nolabel.data.images import fingerprint, read, scan, scan_labelled
from nolabel.data.names import Names, compact, folder_of, merge, name_bytes
from nolabel.data.sources import folder, zip_file

PARTS = ("a", "a.jpg", "a0", "b", "B", "é", "caf\udce9", "a-b", "zz", "\u202e")


def some_names(seed: int, number: int = 60) -> list[str]:
    """Paths of files, none of which is a folder of another."""
    draw = random.Random(seed)
    found = {"/".join([*draw.choices(PARTS, k=draw.randint(0, 3)), f"{draw.randrange(40)}.jpg"]) for _ in range(number)}
    return sorted(found, key=name_bytes)


def by_folder(names: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        found.setdefault(folder, []).append(file)
    return found


def test_names_read_like_a_tuple() -> None:
    plain = (*some_names(0), "/absolute/x.jpg", "../up.jpg", "a//b.jpg", "./c.jpg", "no folder.jpg")
    names = compact(plain)
    assert names == plain and plain == names and tuple(names) == plain
    assert [names[i] for i in range(-len(plain), len(plain))] == [*plain, *plain]
    assert names[3:9] == plain[3:9] and names[::-2] == plain[::-2]
    assert names.take([4, 1, 1]) == (plain[4], plain[1], plain[1])
    assert names != plain[:-1] and names != (*plain[:-1], "other") and names != list(plain)
    assert "a//b.jpg" in names and "b.jpg" not in names
    assert pickle.loads(pickle.dumps(names)) == plain
    assert compact(()) == () and merge([]) == ()
    with pytest.raises(IndexError):
        names[len(plain)]


@pytest.mark.parametrize("seed", range(20))
def test_folders_are_merged_in_the_order_of_the_bytes(seed: int) -> None:
    names = some_names(seed)
    found = [folder_of(where, files) for where, files in by_folder(names).items()]
    random.Random(seed).shuffle(found)
    assert merge(found) == tuple(names)
    assert merge([*found, folder_of("empty", [])]) == tuple(names)


def test_a_name_is_found() -> None:
    plain = some_names(1)
    names = compact(plain)
    assert [names.find(name) for name in plain] == list(range(len(plain)))
    assert {names.find(name) for name in ("", "a", "0.jp", "zzz", "caf\udce8/1.jpg")} == {None}


def test_an_index_takes_16_bytes_a_file_beside_its_name() -> None:
    names = merge([folder_of(f"folder{i:05d}", [f"{j:04d}.jpg" for j in range(100)]) for i in range(1000)])
    parts = (*names.files, names.folder, *names.folders)
    size = sum(len(part) if isinstance(part, bytes) else part.nbytes for part in parts)
    assert len(names) == 100_000
    assert size / len(names) < 8 + 16 + 0.5


@pytest.mark.parametrize("packed", [False, True])
def test_what_a_scan_keeps_is_below_64_bytes_a_file(tmp_path: Path, packed: bool) -> None:
    (tmp_path / "d").mkdir()
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for i in range(500):
            (tmp_path / "d" / f"{i:05d}.jpg").touch()
            archive.writestr(f"d/{i:05d}.jpg", b"")
    images = scan(tmp_path / ("d.zip" if packed else "d"))
    size = len(pickle.dumps(images, protocol=5))
    if packed:
        table = zip_file._open(images.root).members
        assert isinstance(images.names, Names) and images.names.files.text is table.names.files.text
        size += table.rows.nbytes + len(pickle.dumps(table.names)) - len(table.names.files.text)
    assert size < 500 * (9 + 64)


def private(pid: str = "self") -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def go_through(names: Sequence[str], done: Connection) -> None:
    before = private()
    total = sum(len(names[i]) for i in range(len(names)))
    done.send((total, private() - before))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps_rollup")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", [Names, tuple])
def test_forked_processes_share_the_names(kind: type) -> None:
    names: Sequence[str] = compact(f"folder{i // 1000}/{i:06d}.jpg" for i in range(100_000))
    names = names if kind is Names else tuple(names)
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=go_through, args=(names, theirs))
    process.start()
    total, growth = mine.recv()
    process.join()
    assert total == sum(map(len, names))
    assert (growth < 1_000_000) == (kind is Names)  # a tuple of str: about 8 MB, a page for each look


def test_a_walk_meets_every_kind_of_entry_in_a_folder(tmp_path: Path) -> None:
    for name in ("a/b/x.jpg", "a.jpg", "a/0.jpg", "a/c.jpg", "a/note.txt", "a/b.txt", "__MACOSX/y.jpg", "a/.z.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "linked.txt").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "__MACOSX.jpg").touch()
    (tmp_path / "a" / "__MACOSX").touch()
    images = scan(tmp_path)
    assert images.names == ("__MACOSX.jpg", "a.jpg", "a/0.jpg", "a/b/x.jpg", "a/c.jpg")
    assert images.skipped == (
        ("__MACOSX/", "hidden", "", 0),
        ("a/.z.jpg", "hidden", "", 0),
        ("a/__MACOSX", "hidden", "", 0),
        ("*.txt", "other suffix", "3 files, the first is a/b.txt", 0),
    )


def test_classes_are_read_off_the_folders(tmp_path: Path) -> None:
    names = ("train/b/1.jpg", "train/a/sub/2.jpg", "train/a/1.jpg", "val/a/3.jpg", "train/void/4.jpg", "x.jpg")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = scan_labelled(tmp_path)
    assert found["train"].images.names == ("train/a/1.jpg", "train/a/sub/2.jpg", "train/b/1.jpg")
    assert (found["train"].labels, found["val"].labels, found["val"].classes) == ((0, 0, 1), (0,), ("a", "b"))


def test_members_are_found_by_name_in_a_zip_with_text_before_it(tmp_path: Path) -> None:
    inner = tmp_path / "inner.zip"
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in random.Random(0).sample(range(50), 50):
            archive.writestr(f"d/{i}.jpg", str(i) * 100)
        archive.writestr("d/list.txt", "text")
    data = tmp_path / "d.zip"
    data.write_bytes(b"#!/bin/sh\n" + inner.read_bytes())
    os.unlink(inner)
    images = scan(data, "")
    assert len(images.names) == 50 and len(fingerprint(images)) == 16
    for i, name in enumerate(images.names):
        assert read(images, i) == (name[2:-4] * 100).encode()
    assert zip_file.read(str(data), "d/list.txt") == b"text"
    with pytest.raises(KeyError):
        zip_file.read(str(data), "d/none.txt")
    assert folder.read(str(tmp_path), "d.zip")[:2] == b"#!"
