"""Files appear whole or not at all, under names that nobody can guess, and never through a link."""

import inspect
import os
import stat
import sys
from pathlib import Path

import pytest

from nolabel.errors import StorageError
from nolabel.files import (
    append_jsonl,
    check_no_links,
    cut_jsonl,
    open_to_append,
    read_jsonl,
    remove,
    replacing,
    temporary_name,
    write_text,
)

NAMES = ("events.jsonl", "weights", "bad_files*.jsonl")


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    umask = os.umask(0)
    os.umask(umask)
    assert path.read_text() == "new" and stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a.txt").symlink_to("mine")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "a.txt").is_symlink()


def test_temporary_names_cannot_be_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {temporary_name(tmp_path / "a").name for _ in range(100)}
    assert len(names) == 100 and not any(str(os.getpid()) == name.split(".")[2] for name in names)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "guessed").symlink_to("mine")  # even one that was guessed is not opened
    monkeypatch.setattr("nolabel.files.temporary_name", lambda path: tmp_path / "guessed")
    with pytest.raises(FileExistsError), replacing(tmp_path / "a"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_no_line_is_added_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "bashrc").write_text("mine")
    for target in ("bashrc", "absent"):
        (tmp_path / "events.jsonl").symlink_to(target)
        with pytest.raises(StorageError, match=rf"events.jsonl is a link to {target}"):
            append_jsonl(tmp_path / "events.jsonl", {"a": 1})
        (tmp_path / "events.jsonl").unlink()
    assert (tmp_path / "bashrc").read_text() == "mine" and not (tmp_path / "absent").exists()


def test_the_copy_of_a_run_by_hard_links_is_its_own(tmp_path: Path) -> None:
    append_jsonl(tmp_path / "events.jsonl", {"a": 1})
    os.link(tmp_path / "events.jsonl", tmp_path / "copy.jsonl")
    append_jsonl(tmp_path / "copy.jsonl", {"a": 2})
    assert [r["a"] for r in read_jsonl(tmp_path / "events.jsonl")] == [1]
    assert [r["a"] for r in read_jsonl(tmp_path / "copy.jsonl")] == [1, 2]


def test_appending_makes_the_file(tmp_path: Path) -> None:
    with open_to_append(tmp_path / "new") as file:
        file.write(b"x")
    assert (tmp_path / "new").read_bytes() == b"x"


@pytest.mark.parametrize(
    "name", ["events.jsonl", "weights", "weights/model.safetensors", "weights/a/b/c", "bad_files.3.jsonl"]
)
@pytest.mark.parametrize("target", ["/etc/hosts", "/absent", "."])
def test_links_are_found_at_any_depth(name: str, target: str, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "notes.txt").symlink_to("/etc/hosts")  # nolabel never writes it
    check_no_links(tmp_path, NAMES)
    path = tmp_path / name
    if path.is_dir():
        path.rmdir()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    with pytest.raises(StorageError) as caught:
        check_no_links(tmp_path, NAMES)
    assert str(path) in str(caught.value) and target in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "weights").mkdir(parents=True)
    (tmp_path / "run").symlink_to("disk")
    check_no_links(tmp_path / "run", NAMES)
    (tmp_path / "disk" / "weights" / "x").symlink_to("/etc/hosts")
    with pytest.raises(StorageError):
        check_no_links(tmp_path / "run", NAMES)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events.jsonl")
    with pytest.raises(StorageError, match="is a pipe, a socket or a device"):
        check_no_links(tmp_path, NAMES)


def test_a_deep_tree_is_walked(tmp_path: Path) -> None:
    deepest = tmp_path.joinpath("weights", *"d" * 120)
    deepest.mkdir(parents=True)
    (deepest / "x").symlink_to("/etc/hosts")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        with pytest.raises(StorageError):
            check_no_links(tmp_path, NAMES)
    finally:
        sys.setrecursionlimit(limit)


def test_a_link_is_removed_without_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("mine")
    (tmp_path / "link").symlink_to("mine")
    (tmp_path / "folder" / "a").mkdir(parents=True)
    for name in ("link", "folder", "absent"):
        remove(tmp_path / name)
    assert os.listdir(tmp_path) == ["mine"] and (tmp_path / "mine" / "x").read_text() == "mine"


def test_a_line_that_cannot_be_read_stays_where_a_log_is_cut(tmp_path: Path) -> None:
    path, kept = tmp_path / "log", b'{"step": 1}\n\xff\x00[\n{"step": "x"}\n{"a": NaN, "step":2}\n\n'
    path.write_bytes(kept + b'{"step": 3}\n{"step": 1')
    cut_jsonl(path, 2)
    assert path.read_bytes() == kept
