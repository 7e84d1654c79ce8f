"""`nolabel check`: the planted bad files, no other, in words and for machines."""

import json
import os
from pathlib import Path

import pytest
from hostile import BAD, GOOD, NAMES, PICTURE, WHOLE, save

from nolabel.data.bad_files import BadImage
from nolabel.data.check import CheckReport, Spread, as_dict, check, format_check
from nolabel.data.decode import decode
from nolabel.data.images import read, scan
from nolabel.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good images of many names and kinds, every file of the corpus, and two copies."""
    root = tmp_path_factory.mktemp("data")
    (root / "bad").mkdir()
    for file in (*BAD, *GOOD):
        (root / ("bad" if file.reasons else ".") / file.name).write_bytes(file.data)
    for shade, name in enumerate(NAMES):
        picture = PICTURE.point(lambda value, shade=shade: max(0, value - shade))
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(save(picture, "PNG"))
    (root / "copy.jpg").write_bytes(WHOLE["jpg"])
    (root / "other.heic").write_bytes(b"x")
    (root / ".hidden.jpg").write_bytes(b"x")
    return root


@pytest.fixture(scope="module")
def report(folder: Path) -> CheckReport:
    return check(folder)


def test_the_planted_files_are_found_and_no_other(report: CheckReport) -> None:
    planted = {f"bad/{file.name}": file for file in BAD}
    assert {bad.name for bad in report.bad} == planted.keys()
    for bad in report.bad:
        assert bad.reason in planted[bad.name].reasons
        assert bad.size == len(planted[bad.name].data)
    assert {(bad.name, bad.reason) for bad in report.skipped} == {
        (".hidden.jpg", "hidden"),
        ("*.heic", "other suffix"),
    }
    assert report.too_many_bad


def test_what_check_finds_is_what_decode_refuses(folder: Path, report: CheckReport) -> None:
    images, refused = scan(folder), []
    for index, name in enumerate(images.names):
        try:
            decode(read(images, index))
        except BadImage as error:
            refused.append((name, error.reason, error.detail))
    assert refused == [bad[:3] for bad in report.bad]


def test_counts(folder: Path, report: CheckReport) -> None:
    images = scan(folder)
    assert report.num_images == len(images.names) == len(BAD) + len(GOOD) + len(NAMES) + 1
    num_good = report.num_images - len(BAD)
    assert sum(report.formats.values()) == sum(report.modes.values()) == num_good
    assert report.formats["PNG"] == len(NAMES) + 2
    assert list(report.formats.values()) == sorted(report.formats.values(), reverse=True)
    assert (report.width, report.height) == (Spread(64, 64, 64), Spread(48, 48, 48))


def test_equal_files_are_grouped(report: CheckReport) -> None:
    png = (
        "png_named.jpg",
        "whole.png",
        *(os.fsdecode(name) for name in NAMES[:1]),
    )  # shade 0 changes nothing
    assert sorted(map(sorted, report.duplicates)) == sorted([sorted(png), ["copy.jpg", "jpeg_named.png", "whole.jpg"]])


def test_threads_change_nothing_and_progress_is_reported(folder: Path, report: CheckReport) -> None:
    told: list[tuple[int, int]] = []
    assert check(folder, threads=1, progress=lambda done, total: told.append((done, total))) == report
    assert told == [(report.num_images, report.num_images)]
    assert check(folder, threads=5) == report


def test_json(report: CheckReport) -> None:
    found = json.loads(json.dumps(as_dict(report)))
    assert found["num_images"] == report.num_images
    assert found["width"] == {"min": 64, "median": 64, "max": 64}
    assert found["bad"][0].keys() == {"name", "reason", "detail", "size"}
    assert [tuple(group) for group in found["duplicates"]] == list(report.duplicates)
    assert found.keys() == set(report._fields)


def test_words(report: CheckReport, folder: Path) -> None:
    text = format_check(report)
    assert len(text.splitlines()) <= 20
    assert all(line.isprintable() and len(line) < 130 for line in text.splitlines())
    assert f"folder of {report.num_images} images" in text
    assert f"skipped   {len(BAD)} of {report.num_images} images" in text
    assert "trainable no: more than 5 % of the images are bad" in text
    text.encode()


def test_words_about_good_data(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(save(PICTURE.resize((i + 1, 10)), "PNG"))
    (tmp_path / "bad.png").write_bytes(b"")
    assert format_check(check(tmp_path)).splitlines()[1:] == [
        "  formats   PNG 40",
        "  modes     RGB 40",
        "  width     1 to 40 pixels, median 20.5",
        "  height    10 to 10 pixels, median 10",
        "  skipped   1 of 41 images (2.4%)",
        "            empty 1: bad.png (0 bytes)",
        "  ignored   nothing",
        "  equal     0 files are copies of another",
        "  trainable yes",
    ]


def test_limits_are_passed_on(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(save(PICTURE, "PNG"))
    assert check(tmp_path, min_size=49).bad[0].reason == "too small"
    assert check(tmp_path, max_pixels=99).bad[0].reason == "too large"


def test_no_good_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    report = check(tmp_path)
    assert report.width is report.height is None
    assert report.too_many_bad
    assert "formats   none" in format_check(report)
    assert json.dumps(as_dict(report))


def test_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        check(tmp_path)


def test_a_real_pack(data_packs: Path) -> None:
    report = check(data_packs / "imagenette224" / "imagenette224.zip", "val/n01440764")
    assert (report.num_images, report.formats, report.modes) == (387, {"WEBP": 387}, {"RGB": 387})
    assert (report.width, report.bad, report.duplicates) == (Spread(224, 224, 224), (), ())
