"""Files that are not there, and pictures under other suffixes."""

import os
from pathlib import Path

import pytest
from PIL import Image

from nolabel.data.bad_files import BadFile
from nolabel.data.check import check, format_check
from nolabel.data.images import Images, scan, scan_labelled
from nolabel.data.missing import check_missing, describe_missing, describe_unused
from nolabel.data.names import compact
from nolabel.errors import DataError


def unused(images: Images) -> str:
    return describe_unused(images.source, images.root, images.skipped)


def make_list(folder: Path, good: int, gone: int, label: str = "") -> Path:
    for i in range(good):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i}.png")
    lines = [f"{i}.png{label and f',{i % 2}'}" for i in range(good)] + [f"gone/{i}.png{label}" for i in range(gone)]
    (folder / "list.txt").write_text("\n".join(lines))
    return folder / "list.txt"


@pytest.mark.parametrize(("good", "gone", "refused"), [(19, 1, False), (18, 1, True), (6, 8, True)])
def test_the_rule_of_5_percent(good: int, gone: int, refused: bool, tmp_path: Path) -> None:
    images = scan(make_list(tmp_path, good, gone))
    line = f"{gone} of {good + gone} files are missing; the first is gone/0.png"
    assert describe_missing(images.names, images.skipped) == [line]
    verdict = "no: more than 5 % of the files are missing" if refused else "trainable yes"
    assert verdict in format_check(check(tmp_path / "list.txt"))
    if not refused:
        check_missing(images.names, images.skipped, tmp_path)
        return
    with pytest.raises(DataError, match=f"{gone} of {good + gone} files are missing, more than 5 %"):
        check_missing(images.names, images.skipped, tmp_path)


def test_labelled_lists_keep_the_rule(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="8 of 14 files are missing"):
        scan_labelled(make_list(tmp_path, 6, 8, ",0"))


def test_links_to_nothing_count(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    os.symlink("/nowhere/b.png", tmp_path / "b.png")
    images = scan(tmp_path)
    with pytest.raises(DataError, match="1 of 2 files are missing"):
        check_missing(images.names, images.skipped, tmp_path)


def test_folders_that_cannot_be_listed(tmp_path: Path) -> None:
    names = compact([f"{i:02}/x.png" for i in range(19)])
    shut = (BadFile("99/", "unreadable folder", "Permission denied", 0),)
    assert describe_missing(names, shut) == ["1 folders cannot be listed; the first is 99/"]
    check_missing(names, shut, tmp_path)
    check_missing(names, (BadFile("lost+found/", "unreadable folder", "", 0),) * 9, tmp_path)
    with pytest.raises(DataError, match="2 folders cannot be listed, more than 5 %"):
        check_missing(names, shut * 2, tmp_path)


def test_pictures_under_other_suffixes(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4))
    for name, kind in (("a.jfif", "JPEG"), ("b.jpg.1", "JPEG"), ("c.pgm", "PPM"), ("d.png", "PNG"), ("e", "GIF")):
        picture.save(tmp_path / name, kind)
    for name, data in (("f.heic", b"....ftypheic" + b"0" * 99), ("notes.txt", b"x"), ("g.tar", b"0" * 257 + b"ustar0")):
        (tmp_path / name).write_bytes(data)
    line = unused(scan(tmp_path))
    for text in (
        "1 .1, 1 .jfif (JPEG: name it .jpg)",
        ".pgm (PNM: name it .ppm)",
        "(GIF: name it .gif)",
        ".heic (HEIC",
    ):
        assert text in line
    assert "tar xf" in line
    assert ".txt" not in line
    assert line in " ".join(format_check(check(tmp_path)).split())
    (tmp_path / "d.png").unlink()
    with pytest.raises(DataError, match=r"Not used: .*jfif \(JPEG: name it .jpg\)") as caught:
        scan(tmp_path)
    assert len(str(caught.value).splitlines()) <= 5
