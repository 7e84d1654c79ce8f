"""The contract of every source of images: one small set, held by each, is the same set."""

import ast
import multiprocessing
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile import NAMES

from nolabel import catalog
from nolabel.data.bad_files import BadImage
from nolabel.data.images import Images, fingerprint, read, scan
from nolabel.data.names import name_bytes
from nolabel.data.packing import Packing, pack
from nolabel.data.sources import SOURCES, find_source
from nolabel.data.sources.source import MISSING
from nolabel.errors import DataError

ROOT = Path(__file__).parents[3] / "src" / "nolabel"
CONTENT = {"b.jpg": b"bb", "B.PNG": b"", "a/x.webp": b"x" * 1000, "a/é.jpg": b"e", "a.jpg": b"a", "日本/語.gif": b"go"}
ORDER = ("B.PNG", "a.jpg", "a/x.webp", "a/é.jpg", "b.jpg", "日本/語.gif")


def fill(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name_bytes(name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def zipped(folder: Path) -> Path:
    path = folder.with_name("images.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


def listed(folder: Path) -> Path:
    names = (os.fsencode(file.relative_to(folder).as_posix()) for file in folder.rglob("*") if file.is_file())
    path = folder / "list.txt"
    path.write_bytes(b"\n".join(names))
    return path


def packed(folder: Path) -> Path:
    return pack(folder, folder.with_name("shards"), Packing()).path


MAKE: dict[str, Callable[[Path], Path]] = {"folder": lambda folder: folder, "zip": zipped, "list": listed}
MAKE |= {"shards": packed}
"""A new source: a line that makes one of the files in a folder, with the names below it."""
PLAIN = ("folder", "zip")  # hold files beside the images
every_source = pytest.mark.parametrize("kind", list(SOURCES))


@pytest.fixture
def made(kind: str, tmp_path: Path) -> Images:
    return scan(MAKE[kind](fill(tmp_path / "set", CONTENT)))


def test_every_source_has_words_and_a_test() -> None:
    assert SOURCES.keys() == catalog.SOURCES.keys() == MAKE.keys()


def test_words_for_all_sources() -> None:
    assert catalog.describe_sources() == "a folder of images, a zip of one, shards, or a text file of paths"


@every_source
def test_source_is_recognised(made: Images, kind: str) -> None:
    assert made.kind == kind and made.source is SOURCES[kind] and os.path.isabs(made.root)


@every_source
def test_order_is_that_of_the_bytes(made: Images) -> None:
    assert tuple(made.names) == ORDER == tuple(sorted(CONTENT, key=name_bytes))


@every_source
def test_fingerprint_is_that_of_the_folder(made: Images, tmp_path: Path) -> None:
    assert fingerprint(made) == fingerprint(scan(tmp_path / "set", ""))


@every_source
def test_bytes_are_those_of_the_files(made: Images) -> None:
    assert [read(made, i) for i in range(len(made.names))] == [CONTENT[name] for name in ORDER]


@every_source
def test_a_subfolder_alone(kind: str, tmp_path: Path) -> None:
    data = MAKE[kind](fill(tmp_path / "set", CONTENT | {"ab/y.jpg": b"y"}))
    assert tuple(scan(data, "a").names) == ("a/x.webp", "a/é.jpg")


@every_source
@pytest.mark.parametrize("name", ["none.jpg", "a", "a/", "a/x", "b.jpg/x.jpg", ""])
def test_missing_files(made: Images, name: str) -> None:
    source = made.source
    assert not source.has(made.root, name)
    if name not in ("a", "a/", ""):  # folders exist, as far as facts go
        assert next(iter(source.facts(made.root, [name]))) is None
        with pytest.raises(MISSING):
            source.read(made.root, name)
        with pytest.raises(BadImage, match=r"^missing: "):
            read(made._replace(names=(name,)), 0)


@every_source
def test_facts_hold_sizes_and_do_not_change(made: Images) -> None:
    first, second = (list(made.source.facts(made.root, made.names)) for _ in range(2))
    assert first == second and [facts[0] for facts in first if facts] == [len(CONTENT[name]) for name in ORDER]


@every_source
def test_facts_change_with_the_content(kind: str, tmp_path: Path) -> None:
    facts = []
    for version in (b"old", b"new"):
        images = scan(MAKE[kind](fill(tmp_path / version.decode() / "set", {"a.jpg": b"same", "b.jpg": version})))
        if kind in ("folder", "list"):  # by the time of change
            os.utime(os.path.join(images.root, "a.jpg"), ns=(0, 0))
            os.utime(os.path.join(images.root, "b.jpg"), ns=(0, len(facts)))
        facts.append(list(images.source.facts(images.root, images.names)))
    assert facts[0][0] == facts[1][0] and facts[0][1] != facts[1][1]


@every_source
def test_files_by_name_and_by_folder(kind: str, tmp_path: Path) -> None:
    texts = {"gnd.json": b"{}", "a/note.txt": b"text", "a/deep/y.txt": b"y", "za/z.txt": b"z"}
    images = scan(MAKE[kind](fill(tmp_path / "set", CONTENT | texts | {"za/z.jpg": b"z"})))
    names = [*images.names]
    source, root = images.source, images.root
    assert all(source.has(root, name) for name in names)
    if not source.has_folders:
        assert source.files_below(root, "a/") == source.files_on_top(root) == []
        return
    beside = set(texts) if kind in PLAIN else set()
    assert {name for name in texts if source.has(root, name)} == beside
    assert set(source.files_below(root, "a/")) == {name for name in [*names, *beside] if name.startswith("a/")}
    assert set(source.files_below(root, "")) == {*names, *beside}
    assert source.files_below(root, "none/") == []
    assert ("gnd.json" in source.files_on_top(root)) is (kind in PLAIN)
    assert all(name.count("/") < 2 for name in source.files_on_top(root))
    if beside:
        assert source.read(root, "a/note.txt") == b"text"


def test_functions_of_every_source_work_in_a_spawned_process(tmp_path: Path) -> None:
    found = {kind: scan(make(fill(tmp_path / kind / "set", CONTENT))) for kind, make in MAKE.items()}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for kind, images in found.items():
            jobs = [(images, i) for i in range(len(ORDER))]
            assert pool.starmap(read, jobs) == [CONTENT[name] for name in ORDER], kind
            assert pool.apply(fingerprint, (images,)) == fingerprint(images)
            assert pool.apply(images.source.has, (images.root, "b.jpg"))
            assert pool.apply(images.source.read, (images.root, "b.jpg")) == b"bb"


def can_hold(kind: str, name: bytes) -> bool:
    """Whether a name can be written there: a zip holds UTF-8, a text file no line breaks."""
    if kind == "zip":
        return name.decode("utf-8", "replace").encode() == name
    return kind != "list" or b"\n" not in name


@every_source
def test_hostile_names(kind: str, tmp_path: Path) -> None:
    names = sorted(name for name in NAMES if can_hold(kind, name))
    assert len(names) >= len(NAMES) - 2
    images = scan(MAKE[kind](fill(tmp_path / "set", {os.fsdecode(name): name for name in names})))
    assert [name_bytes(name) for name in images.names] == names
    assert [read(images, i) for i in range(len(names))] == names
    assert all(images.source.has(images.root, name) for name in images.names)
    assert fingerprint(images) == fingerprint(scan(tmp_path / "set"))


@every_source
def test_data_that_is_damaged(kind: str, tmp_path: Path) -> None:
    """A source that is there and cannot be listed is an error that names DATA, never a crash."""
    data = MAKE[kind](fill(tmp_path / "set", CONTENT))
    if kind == "zip":
        data.write_bytes(data.read_bytes()[:-30])
    elif kind == "shards":
        (data / "nolabel-shards.json").write_text("{}")
    else:
        return  # nothing to damage
    with pytest.raises(DataError, match=f"{data.name} cannot be read: "):
        scan(data)
    assert find_source(data) == kind


def test_no_other_module_asks_which_source_it_has() -> None:
    """Readers of one source are imported in `data/sources` alone, and by `packing`, which writes shards."""
    readers = {path.stem for path in (ROOT / "data" / "sources").glob("*.py")} - {"__init__", "source"}
    assert readers >= {"folder", "textlist", "zip_file", "shards"}
    asking = set()
    for path in ROOT.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        imported = {
            word
            for node in ast.walk(ast.parse(text if "data.sources" in text else ""))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nolabel.data.sources")
            for word in [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        }
        if imported & readers or re.search(r"images\.kind (==|!=|in|not)", text):
            asking.add(path.relative_to(ROOT).as_posix())
    assert {name for name in asking if not name.startswith("data/sources/")} == {"data/packing.py"}


@pytest.mark.parametrize("offset", [2**63, 2**64 - 1])
def test_a_zip64_place_beyond_any_file(offset: int, tmp_path: Path) -> None:
    data = tmp_path / "a.zip"
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a.png", b"a")
        archive.writestr("b.png", b"b")
    content = data.read_bytes()
    at = content.rindex(b"PK\x01\x02")  # the entry of b.png; its extra field says where the member begins
    end = content.rindex(b"PK\x05\x06")
    extra = struct.pack("<HHQ", 1, 8, offset)
    entry = bytearray(content[at:end] + extra)
    entry[30:32], entry[42:46] = struct.pack("<H", len(extra)), b"\xff" * 4
    tail = bytearray(content[end:])
    tail[12:16] = struct.pack("<I", int.from_bytes(tail[12:16], "little") + len(extra))
    data.write_bytes(content[:at] + entry + tail)
    images = scan(data)
    assert list(images.names) == ["a.png"] and [(bad.name, bad.reason) for bad in images.skipped] == [
        ("b.png", "damaged")
    ]


def test_a_member_that_is_packed_larger_than_any_image_is_not_read(tmp_path: Path) -> None:
    data = tmp_path / "a.zip"
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a.png", b"a")
        archive.writestr("b.png", b"b")
    content = bytearray(data.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 20 : at + 24] = (2**32 - 2).to_bytes(4, "little")
    data.write_bytes(content)
    assert [(bad.name, bad.reason) for bad in scan(data).skipped] == [("b.png", "too large")]


def test_a_pipe_in_the_place_of_an_index_is_refused(tmp_path: Path) -> None:
    data = MAKE["shards"](fill(tmp_path / "set", CONTENT))
    (data / "index.bin").unlink()
    os.mkfifo(data / "index.bin")
    os.utime(data / "nolabel-shards.json", (1, 1))  # it is not the one that was opened before
    with pytest.raises(DataError, match="cannot be read: "):
        scan(data)
