"""Images of DATA: which files they are, in which order, and how they are read."""

import builtins
import hashlib
import json
import multiprocessing
import os
import pickle
import random
import shutil
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hostile import NAMES, WHOLE, plant_tree

from nolabel.data.bad_files import BadImage, too_many_bad
from nolabel.data.images import Images, fingerprint, read, scan, scan_labelled
from nolabel.data.names import printable
from nolabel.data.sources import folder as plain_folder
from nolabel.data.sources import members
from nolabel.errors import DataError

JPG = WHOLE["jpg"]


def plant(folder: Path, *names: str) -> Path:
    """Files with their own name as content: a scan does not look inside."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def pack(path: Path, *names: str, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            archive.writestr(name, name)
    return path


def reasons(images: Images) -> dict[str, str]:
    return {bad.name: bad.reason for bad in images.skipped}


TREE = (
    "b.jpg",
    "B.JPG",
    "a/x.webp",
    "a.png",
    "a/deep/er/y.TIFF",
    "é.bmp",
    "z.gif",
    "z.ppm",
    "z.jpeg",
    "z.tif",
)


def test_order_is_that_of_the_bytes(tmp_path: Path) -> None:
    expected = (
        "B.JPG",
        "a.png",
        "a/deep/er/y.TIFF",
        "a/x.webp",
        "b.jpg",
        "z.gif",
        "z.jpeg",
        "z.ppm",
        "z.tif",
        "é.bmp",
    )
    for turn in range(3):
        names = random.Random(turn).sample(TREE, len(TREE))
        folder = plant(tmp_path / str(turn), *names)
        (tmp_path / f"{turn}.txt").write_text("\n".join(f"{turn}/{name}" for name in names))
        assert scan(folder).names == expected
        assert scan(pack(tmp_path / f"{turn}.zip", *names)).names == expected
        assert scan(tmp_path / f"{turn}.txt").names == tuple(f"{turn}/{name}" for name in expected)


def test_order_does_not_come_from_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = scan(plant(tmp_path, *TREE))
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            with scandir(path) as found:
                self.found = sorted(found, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> "Backwards":
            return self

        def __exit__(self, *_: object) -> None: ...

        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter(self.found)

    monkeypatch.setattr(os, "scandir", Backwards)
    assert scan(tmp_path) == images


def test_a_scan_opens_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "a.jpg", "b/c.png")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(builtins, "open", refuse)
    assert len(scan(tmp_path).names) == 2


def test_images_pickle_and_the_root_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "in/a.jpg")
    monkeypatch.chdir(tmp_path)
    images = scan("in")
    monkeypatch.chdir("/")
    assert read(pickle.loads(pickle.dumps(images)), 0) == b"in/a.jpg"


# ---- which folder --------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["images", "frames", "jpg"])
@pytest.mark.parametrize("packed", [False, True])
def test_masks_beside_images_are_left_out(tmp_path: Path, folder: str, packed: bool) -> None:
    names = (f"{folder}/s/1.jpg", "masks/s/1.png", "cover.jpg", "boxes/1.txt")
    data = pack(tmp_path / "d.zip", *names) if packed else plant(tmp_path / "d", *names)
    assert scan(data).names == (f"{folder}/s/1.jpg",)
    assert scan(data).skipped == (
        ("cover.jpg", "beside images", "1 file, the first is cover.jpg", 0),
        ("masks/", "beside images", "1 file, the first is masks/s/1.png", 0),
    )
    assert scan(data, "masks").names == ("masks/s/1.png",)
    assert scan(data, "masks/s/").names == ("masks/s/1.png",)
    with pytest.raises(DataError, match="an image below boxes"):
        scan(data, "boxes")


def test_a_zip_of_one_folder_is_seen_through(tmp_path: Path) -> None:
    data = pack(tmp_path / "d.zip", "d/images/1.jpg", "d/masks/1.png", "__MACOSX/d/images/._1.jpg")
    assert scan(data).names == ("d/images/1.jpg",)


def test_an_images_folder_deeper_down_is_nothing_special(tmp_path: Path) -> None:
    assert len(scan(plant(tmp_path, "a/images/1.jpg", "a/more/1.png", "b/1.png")).names) == 3


# ---- what is skipped -----------------------------------------------------------------------------


def test_links_pipes_and_hidden_files(tmp_path: Path) -> None:
    expected = plant_tree(tmp_path)
    start = time.thread_time()
    images = scan(tmp_path)
    assert time.thread_time() - start < 1
    assert images.names == ("a/real.jpg",)
    assert reasons(images) == expected


def test_a_linked_folder_outside_is_followed(tmp_path: Path) -> None:
    plant(tmp_path / "elsewhere", "x.jpg")
    plant(tmp_path / "data", "a.jpg")
    (tmp_path / "data" / "0").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "linked.jpg").symlink_to(tmp_path / "elsewhere" / "x.jpg")
    images = scan(tmp_path / "data")
    assert images.names == ("0/x.jpg", "a.jpg", "linked.jpg")
    assert [read(images, i) for i in range(3)] == [b"x.jpg", b"a.jpg", b"x.jpg"]


def test_a_folder_that_cannot_be_listed_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "a.jpg", "closed/b.jpg")
    scandir = os.scandir

    def guarded(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert scan(tmp_path).names == ("a.jpg",)
    assert scan(tmp_path).skipped == (("closed/", "unreadable folder", "Permission denied", 0),)


def test_files_of_another_suffix_are_counted_by_suffix(tmp_path: Path) -> None:
    plant(tmp_path, "a.jpg", "1.txt", "2.TXT", "3.heic", "README", "x.jpg.part")
    assert scan(tmp_path).skipped == (
        ("*", "other suffix", "1 file, the first is README", 0),
        ("*.heic", "other suffix", "1 file, the first is 3.heic", 0),
        ("*.part", "other suffix", "1 file, the first is x.jpg.part", 0),
        ("*.txt", "other suffix", "2 files, the first is 1.txt", 0),
    )


def test_a_list_of_paths(tmp_path: Path) -> None:
    plant(tmp_path, "lists/here.jpg", "there/a b.png", "there/.hidden.jpg", "there/__MACOSX/x.jpg")
    absolute = tmp_path / "there" / "a b.png"
    os.mkfifo(tmp_path / "lists" / "pipe.jpg")
    lines = [
        "\ufeffhere.jpg",
        "",
        "../there/a b.png\r",
        "   ",
        str(absolute),
        "here.jpg",
        "gone.jpg",
        "pipe.jpg",
        "pipe:cat here.jpg",
        "https://example.org/a.jpg",
        "../there/.hidden.jpg",
        "../there/__MACOSX/x.jpg",
        "# note.txt",
    ]
    (tmp_path / "lists" / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    images = scan(tmp_path / "lists" / "list.txt")
    assert images.kind == "list"
    assert set(images.names) == {"here.jpg", "../there/a b.png", str(absolute)}
    assert {read(images, i) for i in range(3)} == {b"lists/here.jpg", b"there/a b.png"}
    assert reasons(images) == {
        "here.jpg": "listed twice",
        "gone.jpg": "missing",
        "pipe.jpg": "not a regular file",
        "pipe:cat here.jpg": "missing",
        "https://example.org/a.jpg": "missing",
        "../there/.hidden.jpg": "hidden",
        "../there/__MACOSX/x.jpg": "hidden",
        "*.txt": "other suffix",
    }


def test_members_of_a_hostile_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = zipfile.ZipInfo("link.jpg")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    device = zipfile.ZipInfo("device.jpg")
    device.create_system, device.external_attr = 3, 0o020666 << 16
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for name in (
            "../up.jpg",
            "/etc/root.jpg",
            "a/../../b.jpg",
            ".x.jpg",
            "__MACOSX/._g.jpg",
            "a.txt",
            "empty/",
        ):
            archive.writestr(name, b"x")
        archive.writestr(link, "/etc/passwd")
        archive.writestr(device, b"")
        archive.writestr("slow.jpg", bytes(9), zipfile.ZIP_LZMA)
        archive.writestr("bomb.jpg", bytes(10**6), zipfile.ZIP_DEFLATED)
        archive.writestr("good.jpg", JPG)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("good.jpg", JPG)
        archive.writestr("secret.jpg", b"x")
    raw = bytearray((tmp_path / "d.zip").read_bytes())
    raw[raw.rindex(b"PK\x01\x02", 0, raw.rindex(b"secret.jpg")) + 8] |= 1  # as if it were encrypted
    (tmp_path / "d.zip").write_bytes(raw)
    monkeypatch.setattr(members, "MAX_MEMBER_BYTES", 10**5)
    images = scan(tmp_path / "d.zip")
    assert images.names == ("good.jpg",)
    assert read(images, 0) == JPG
    assert reasons(images) == {
        "../up.jpg": "unsafe name",
        "/etc/root.jpg": "unsafe name",
        "a/../../b.jpg": "unsafe name",
        ".x.jpg": "hidden",
        "__MACOSX/._g.jpg": "hidden",
        "*.txt": "other suffix",
        "link.jpg": "not a regular file",
        "device.jpg": "not a regular file",
        "slow.jpg": "unsupported compression",
        "bomb.jpg": "too large",
        "good.jpg": "listed twice",
        "secret.jpg": "encrypted",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["d.zip"]


# ---- reading -------------------------------------------------------------------------------------


def test_what_changes_after_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = scan(plant(tmp_path, "gone.jpg", "large.jpg", "pipe.jpg", "shut.jpg"))
    (tmp_path / "gone.jpg").unlink()
    (tmp_path / "pipe.jpg").unlink()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "shut.jpg").unlink()
    (tmp_path / "shut.jpg").mkdir()
    monkeypatch.setattr(plain_folder, "MAX_FILE_BYTES", 5)
    found = []
    for index in range(4):
        with pytest.raises(BadImage) as caught:
            read(images, index)
        found.append(caught.value.reason)
        assert str(tmp_path) not in str(caught.value)
    assert found[:3] == ["missing", "too large", "not a regular file"]
    assert found[3] in ("unreadable", "not a regular file")


def test_a_zip_that_is_replaced_or_damaged(tmp_path: Path) -> None:
    data = pack(tmp_path / "d.zip", "a.jpg", "b.jpg")
    images = scan(data)
    assert read(images, 1) == b"b.jpg"
    raw = data.read_bytes()
    data.write_bytes(raw.replace(b"b.jpgb.jpg", b"b.jpgB.JPG"))
    with pytest.raises(BadImage, match="unreadable: Bad CRC-32"):
        read(images, 1)
    pack(data, "a.jpg", "longer.jpg")
    assert read(images, 0) == b"a.jpg"
    with pytest.raises(BadImage, match="missing"):
        read(images, 1)
    data.unlink()
    with pytest.raises(BadImage, match="missing"):
        read(images, 0)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_read_by_threads(tmp_path: Path, method: int) -> None:
    images = scan(pack(tmp_path / "d.zip", *(f"{i:03d}.jpg" for i in range(200)), method=method))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: read(images, i % 200), range(4000)))
    assert found == [images.names[i % 200].encode() for i in range(4000)]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_zip_read_by_processes(tmp_path: Path, start: str) -> None:
    images = scan(pack(tmp_path / "d.zip", *(f"{i:03d}.jpg" for i in range(50))))
    jobs = [(images, i % 50) for i in range(1000)]
    expected = [read(*job) for job in jobs]  # the parent's handle is open before the children start
    with multiprocessing.get_context(start).Pool(2) as pool:
        assert pool.starmap(read, jobs, chunksize=100) == expected


# ---- names ---------------------------------------------------------------------------------------


def test_hostile_names(tmp_path: Path) -> None:
    for name in NAMES:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    images = scan(tmp_path)
    assert [os.fsencode(name) for name in images.names] == sorted(NAMES)
    assert [read(images, i) for i in range(len(NAMES))] == sorted(NAMES)
    assert len(fingerprint(images)) == 16
    assert tuple(json.loads(json.dumps(list(images.names)))) == images.names
    shown = [printable(name) for name in images.names]
    assert len(set(shown)) == len(NAMES)
    assert all(name.isprintable() and name.encode() for name in shown)
    assert {"caf\\udce9.jpg", "café.jpg", "new\\nline.jpg", "\\u202egnp.jpg", "back\\\\slash.jpg"} <= set(shown)


def test_a_list_with_names_that_are_not_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"coffee")
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.jpg\n")
    images = scan(tmp_path / "list.txt")
    assert read(images, 0) == b"coffee"


# ---- the fingerprint -----------------------------------------------------------------------------


def test_fingerprint_is_of_names_and_sizes(tmp_path: Path) -> None:
    folder = plant(tmp_path / "d", "a.jpg", "b/c.jpg")
    first = fingerprint(scan(folder))
    assert first == hashlib.sha256(b"a.jpg\x005\0b/c.jpg\x007\0").hexdigest()[:16]
    assert fingerprint(scan(pack(tmp_path / "d.zip", "b/c.jpg", "a.jpg"))) == first
    assert fingerprint(scan(shutil.copytree(folder, tmp_path / "copy"))) == first
    (folder / "a.jpg").write_text("A.jpg")
    assert fingerprint(scan(folder)) == first  # equal size: only `nolabel check` reads the files
    (folder / "a.jpg").write_text("longer")
    second = fingerprint(scan(folder))
    (folder / "a.jpg").rename(folder / "d.jpg")
    third = fingerprint(scan(folder))
    images = scan(folder)
    (folder / "d.jpg").unlink()
    assert len({first, second, third, fingerprint(images), fingerprint(scan(folder))}) == 5


# ---- errors --------------------------------------------------------------------------------------


def test_data_that_is_none(tmp_path: Path) -> None:
    plant(tmp_path, "photos/x.txt", "photos/.hidden.jpg", "binary.dat", "one.jpg", "fake.zip", "dull.txt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary.dat").write_bytes(bytes(9))
    (tmp_path / "none.txt").write_text("\n\n")
    pack(tmp_path / "none.zip", "readme.txt")
    os.mkfifo(tmp_path / "pipe")
    expected = {
        "photo": "does not exist. Did you mean: photos?",
        "empty": "does not hold an image.\nLeft out: nothing.",
        "photos": "Left out: 1 hidden, *.txt (1 file).",
        "binary.dat": "neither a zip nor a text file",
        "one.jpg": "neither a zip nor a text file",
        "fake.zip": "cannot be read: File is not a zip file",
        "none.zip": "does not hold an image",
        "none.txt": "does not hold an image",
        "dull.txt": "no line of it is the path of an image, its first is dull.txt",
        "pipe": "is no regular file",
        "empty/deeper": "does not exist",
        "nul\0": "does not exist",
    }
    for name, text in expected.items():
        with pytest.raises(DataError) as caught:
            scan(tmp_path / name)
        assert text in str(caught.value), name
        assert len(str(caught.value).splitlines()) <= 5
        assert str(caught.value).isprintable() or "\n" in str(caught.value)


@pytest.mark.parametrize(
    ("num_bad", "num_seen", "num_images", "expected"),
    [
        (199, 199, 100_000, False),
        (11, 5000, 100_000, False),
        (4999, 4999, 100_000, False),
        (5000, 5000, 100_000, True),
        (250, 5000, 100_000, False),
        (251, 5000, 100_000, True),
        (200, 200, 1000, True),
        (10, 200, 1000, False),
        (11, 200, 1000, True),
        (11, 199, 1000, False),
        (0, 0, 10, False),
        (9, 9, 10, False),
        (1, 10, 10, True),
        (1, 20, 20, False),
        (0, 10, 10, False),
    ],
)
def test_too_many_bad(num_bad: int, num_seen: int, num_images: int, expected: bool) -> None:
    assert too_many_bad(num_bad, num_seen, num_images) is expected


# ---- labelled data -------------------------------------------------------------------------------

SPLIT = ("train/cat/1.jpg", "train/dog/1.jpg", "train/dog/sub/2.jpg", "val/dog/3.jpg", "classes.json")


@pytest.mark.parametrize("packed", ["", "d.zip", "wrapped.zip"])
def test_class_folders_below_splits(tmp_path: Path, packed: str) -> None:
    top = "d/" * (packed == "wrapped.zip")
    names = [top + name for name in SPLIT] + [
        top + "val/void/4.jpg",
        top + "extra/eel/5.jpg",
        top + "train/6.jpg",
    ]
    found = scan_labelled(pack(tmp_path / packed, *names) if packed else plant(tmp_path / "d", *names))
    assert list(found) == ["train", "val"]
    assert found["train"].images.names == (*(top + name for name in SPLIT[:3]),)
    assert found["train"].labels == (0, 1, 1)
    assert found["val"].images.names == (top + "val/dog/3.jpg",)
    assert found["val"].labels == (1,)
    assert found["train"].classes == found["val"].classes == ("cat", "dog")
    assert read(found["val"].images, 0).decode() == top + "val/dog/3.jpg"


def test_a_split_of_void_alone_is_none(tmp_path: Path) -> None:
    assert list(scan_labelled(plant(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/void/1.jpg"))) == ["train"]


def test_plain_class_folders(tmp_path: Path) -> None:
    found = scan_labelled(plant(tmp_path, "bus/1.jpg", "train/2.jpg", "car/3.jpg", "loose.jpg"))
    assert list(found) == ["all"]  # train holds images and no class folders: it is a class
    assert found["all"].classes == ("bus", "car", "train")
    assert found["all"].labels == (0, 1, 2)
    assert found["all"].unused == ("1 image beside the class folders in the root",)


def test_three_splits_and_the_order_of_classes(tmp_path: Path) -> None:
    found = scan_labelled(plant(tmp_path, "test/é/1.jpg", "val/z/1.jpg", "train/B/1.jpg", "train/a/1.jpg"))
    assert list(found) == ["train", "val", "test"]
    assert found["test"].classes == ("B", "a", "z", "é")
    assert [found[key].labels for key in found] == [(0, 1), (2,), (3,)]


@pytest.mark.parametrize("names", [(), ("a.jpg", "b.jpg"), ("cat/1.jpg",), ("train/cat/1.jpg", "val/cat/2.jpg")])
def test_fewer_than_two_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"not hold two class folders with images but [01]\.\nExpected CLASS/IMAGE"):
        scan_labelled(plant(tmp_path, *names))


def test_a_list_has_no_labels(tmp_path: Path) -> None:
    plant(tmp_path, "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "list.txt").write_text("cat/1.jpg\ndog/1.jpg\n")
    with pytest.raises(DataError, match="no classes"):
        scan_labelled(tmp_path / "list.txt")


# ---- real packs ----------------------------------------------------------------------------------


def test_real_zips(data_packs: Path) -> None:
    pack = data_packs / "imagenette224" / "imagenette224.zip"
    assert len(scan(pack).names) == 13_394
    assert len(scan(pack, "train").names) == 9469
    found = scan_labelled(pack)
    assert {key: len(split.labels) for key, split in found.items()} == {"train": 9469, "val": 3925}
    assert len(found["val"].classes) == 10
    name = found["val"].images.names[100]
    assert found["val"].classes[found["val"].labels[100]] == name.split("/")[1]
    coco = scan(data_packs / "dense" / "coco256.zip")
    assert len(coco.names) == 256
    assert all(name.startswith("images/") for name in coco.names)


def test_a_member_that_unpacks_to_more_than_declared_takes_no_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(50_000_000))
    raw = (tmp_path / "d.zip").read_bytes()
    (tmp_path / "d.zip").write_bytes(raw.replace((50_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    images = scan(tmp_path / "d.zip")
    tracemalloc.start()
    with pytest.raises(BadImage, match="CRC-32"):
        read(images, 0)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 5_000_000
