"""Exports of annotation programs: layouts, names, ids and lines, each read as meant or refused in words."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nolabel.data.splits import split_of
from nolabel.errors import DataError
from nolabel.evals.detection.box_layouts import scan_boxed, split_file, write_share
from nolabel.evals.detection.boxes import Boxed, describe_boxed, read_annotated
from nolabel.evals.detection.coco import scan_coco
from nolabel.evals.shared.trees import open_tree

W, H = 64, 48
BOXES = ((0, 8, 8, 16, 16), (1, 32, 16, 24, 24))  # class, x, y, width, height in pixels
TRUTH = [[8, 8, 24, 24], [32, 16, 56, 40]]
NAMES = "names: [cat, dog]\n"


def save(path: Path, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (W, H), (9, 90, 40)).save(path, exif=exif)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def box(c: int, x: int, y: int, w: int, h: int) -> str:
    return f"{c} {(x + w / 2) / W} {(y + h / 2) / H} {w / W} {h / H}"


LINES = [box(*b) for b in BOXES]


def polygon(c: int, x: int, y: int, w: int, h: int) -> str:
    corners = ((x, y), (x + w, y), (x + w, y + h), (x, y + h))
    return " ".join([str(c), *(f"{a / W} {b / H}" for a, b in corners)])


def yolo(
    root: Path,
    lines: Sequence[str] = LINES,
    form: str = "{kind}/{split}/{name}",
    labels: str = "labels",
    val: str = "val",
) -> Path:
    for split, count in (("train", 2), (val, 1)):
        for i in range(count):
            place = {"split": split, "name": f"{split}{i}"}
            save(root / (form.format(kind="images", **place) + ".jpg"))
            write(root / (form.format(kind=labels, **place) + ".txt"), "\n".join(lines) + "\n")
    write(root / "data.yaml", NAMES)
    return root


def coco(
    root: Path,
    change: Callable[[dict[str, Any]], None] = lambda content: None,
    pictures: str = "{split}2017",
    file: str = "annotations/instances_{split}2017.json",
    name: str = "{name}",
    orientation: int = 1,
) -> Path:
    for split, count in (("train", 2), ("val", 1)):
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
        for i in range(count):
            path = root / pictures.format(split=split) / f"{split}{i}.jpg"
            save(path, orientation)
            asked = name.format(name=path.name, split=split)
            content["images"].append({"id": i + 1, "file_name": asked, "width": W, "height": H})
            content["annotations"] += [
                {"id": 2 * i + c + 1, "image_id": i + 1, "category_id": (3, 7)[c], "bbox": b} for c, *b in BOXES
            ]
        change(content)
        write(root / file.format(split=split), json.dumps(content))
    return root


def is_right(boxed: Boxed) -> bool:
    """Whether every image has the cat and the dog, to a hundredth of a pixel."""
    right = boxed.classes == ("cat", "dog") and {s: len(e) for s, e in boxed.splits.items()} == {"train": 2, "val": 1}
    for one in (one for examples in boxed.splits.values() for one in examples):
        found = read_annotated(boxed, one)[1]
        right &= found.boxes.sub(found.boxes.new_tensor(TRUTH)).abs().max().item() < 0.01
        right &= found.labels.tolist() == [0, 1]
    return right


@pytest.mark.parametrize(
    "form", ["{kind}/{split}/{name}", "{split}/{kind}/{name}", "a/{split}/{kind}/b/{name}", "{split}/{name}"]
)
@pytest.mark.parametrize("val", ["val", "valid", "Validation", "val2017"])
def test_layouts_of_yolo(form: str, val: str, tmp_path: Path) -> None:
    assert is_right(scan_boxed(yolo(tmp_path / "data", form=form, val=val)))


def test_darknet_as_cvat_exports_it(tmp_path: Path) -> None:
    yolo(tmp_path, form="obj_{split}_data/{name}", val="Validation")
    (tmp_path / "data.yaml").unlink()
    write(tmp_path / "obj.names", "cat\ndog\n")
    write(tmp_path / "obj.data", "classes = 2\nnames = data/obj.names\n")
    write(tmp_path / "train.txt", "data/obj_train_data/train0.jpg\n")
    assert is_right(scan_boxed(tmp_path))


def test_a_packed_layout_within_a_folder(tmp_path: Path) -> None:
    yolo(tmp_path / "in/pets", form="{split}/{kind}/{name}", val="valid")
    assert is_right(scan_boxed(shutil.make_archive(str(tmp_path / "pets"), "zip", tmp_path / "in")))


def test_names_of_the_classes(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    (root / "data.yaml").rename(root / "animals.yml")
    assert is_right(scan_boxed(root))
    (root / "animals.yml").unlink()
    for split in ("train", "val"):
        write(root / f"labels/{split}/classes.txt", "cat\ndog\n")  # labelImg
    assert is_right(scan_boxed(root))
    write(root / "labels/val/classes.txt", "dog\ncat\n")
    with pytest.raises(DataError, match="name the classes differently:\n0 cat, 1 dog, and 0 dog, 1 cat"):
        scan_boxed(root)


def keypoints(size: int, seen: str = " 2") -> list[str]:
    point = "{} {}" + (seen if size == 3 else "")
    return [
        " ".join(
            [
                box(*b),
                point.format((b[1] + b[3] / 2) / W, (b[2] + b[4] / 2) / H),
                point.format((b[1] + b[3]) / W, b[2] / H),
            ]
        )
        for b in BOXES
    ]


@pytest.mark.parametrize("size", [2, 3])
def test_keypoints_are_no_polygons(size: int, tmp_path: Path) -> None:
    root = yolo(tmp_path, keypoints(size))
    write(root / "data.yaml", NAMES + f"kpt_shape: [2, {size}]\n")
    boxed = scan_boxed(root)
    assert is_right(boxed)
    assert boxed.splits["train"][0].objects.outlines is None
    assert "6 lines have keypoints behind the box (kpt_shape)" in boxed.notes[0]
    write(root / "data.yaml", NAMES + f"kpt_shape: [5, {size}]\n")
    with pytest.raises(DataError, match=rf"kpt_shape: \[5, {size}\]\nexpects {4 + 5 * size}"):
        scan_boxed(root)


def test_keypoints_that_nothing_states(tmp_path: Path) -> None:
    assert is_right(scan_boxed(yolo(tmp_path / "seen", keypoints(3))))
    with pytest.raises(DataError, match="Two readings are possible:\na polygon of 4 points, or a box with 2 keypoints"):
        scan_boxed(yolo(tmp_path / "flat", keypoints(2)))
    write(tmp_path / "flat/data.yaml", NAMES + "kpt_shape: [2, 2]")
    assert is_right(scan_boxed(tmp_path / "flat"))
    named = scan_boxed(yolo(tmp_path / "named", keypoints(2), labels="polygons"))
    assert named.splits["train"][0].objects.outlines is not None


def test_keypoints_around_a_tight_box(tmp_path: Path) -> None:
    corners = "0 0.5 0.5 0.4 0.4 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75"  # of a box from 0.3 to 0.7
    with pytest.raises(DataError, match="a polygon of 6 points, or a box with 4 keypoints"):
        scan_boxed(yolo(tmp_path, [corners]))


@pytest.mark.parametrize("form", ["{kind}/{split}/{name}", "{split}/{name}"])
def test_two_folders_of_one_split(form: str, tmp_path: Path) -> None:
    yolo(tmp_path, form=form, val="val")
    yolo(tmp_path, form=form, val="valid")
    with pytest.raises(DataError, match="val and valid both mean val"):
        scan_boxed(tmp_path)
    assert scan_boxed(yolo(tmp_path / "numbers", form="{kind}/{split}2014/{name}")).splits.keys() == {"train", "val"}


def test_polygons_of_one_length(tmp_path: Path) -> None:
    boxed = scan_boxed(yolo(tmp_path, [polygon(*b) for b in BOXES]))
    assert is_right(boxed)
    assert boxed.splits["train"][0].objects.outlines is not None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINES[0].replace(" ", ","), "separated by commas"),
        (LINES[0] + " 0.93", "0.93, looks like a confidence"),
        (LINES[0] + " 17", "17, looks like a track id"),
        (LINES[0] + " 1", "a confidence or a track id"),
        ("0 16 16 16 16", "They look like pixels"),
        ("0 8 8 24 8 24 24", "They look like pixels"),
        ("0.5 0.5 0.5 0.1 0.1", "begins with 0.5: expected the number of a class"),
        ("cat 0.5 0.5 0.1 0.1", "is no list of numbers: cat"),
        ("0 nan 0.5 0.1 0.1", "not finite"),
        ("0 0.5 0.5", "has 2 numbers"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.3", "kpt_shape"),
    ],
)
def test_what_a_line_may_not_be(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        scan_boxed(yolo(tmp_path, [line]))
    assert "line 1" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


def test_classes_as_floats(tmp_path: Path) -> None:
    assert is_right(scan_boxed(yolo(tmp_path, [line.replace(" ", ".0 ", 1) for line in LINES])))


def test_doubled_boxes_count_once(tmp_path: Path) -> None:
    boxed = scan_boxed(yolo(tmp_path / "yolo", [*LINES, LINES[0]]))
    assert is_right(boxed)
    assert boxed.notes[0].startswith("2 objects of train that are listed twice")

    def double(content: dict[str, Any]) -> None:
        content["annotations"].append(content["annotations"][0] | {"id": 99})

    boxed = scan_boxed(coco(tmp_path / "coco", double))
    assert is_right(boxed)
    assert "the first is in train2017/train0.jpg" in boxed.notes[0]


@pytest.mark.parametrize(
    ("file", "pictures"),
    [
        ("annotations/instances_{split}.json", "images/{split}"),
        ("annotations/{split}_default.json", "images/{split}"),
        ("{split}/annotations.json", "{split}"),
        ("{split}/_annotations.coco.json", "{split}"),
        ("labels/coco_{split}.json", "{split}/photos/2017"),
        ("annotations/person_keypoints_{split}2017.json", "{split}2017"),
        ("{split}.json", "all"),
    ],
)
def test_files_of_coco(file: str, pictures: str, tmp_path: Path) -> None:
    assert is_right(scan_boxed(coco(tmp_path, file=file, pictures=pictures)))


def test_which_file_of_coco(tmp_path: Path) -> None:
    """Instances come before keypoints, captions never; two of equal rights, and no split, are refused."""
    root = coco(tmp_path)
    for split in ("train", "val"):
        for kind in ("captions", "person_keypoints"):
            write(root / f"annotations/{kind}_{split}2017.json", '{"images": [], "annotations": [], "categories": []}')
    assert is_right(scan_boxed(root))
    shutil.copy(root / "annotations/instances_train2017.json", root / "annotations/instances_train_old.json")
    with pytest.raises(DataError, match="Two files may be the boxes of train"):
        scan_boxed(root)
    coco(tmp_path / "one", file="annotations/instances_default.json", pictures="images")
    with pytest.raises(DataError, match=r"give no split .*: annotations/instances_default.json"):
        scan_boxed(tmp_path / "one")


@pytest.mark.parametrize(
    "name",
    ["{split}2017/{name}", "./{name}", "D:\\data\\{split}\\{name}", "/home/me/{name}", "../x/{split}2017/{name}"],
)
def test_names_of_pictures(name: str, tmp_path: Path) -> None:
    assert is_right(scan_boxed(coco(tmp_path, name=name)))


def test_a_name_that_fits_two_pictures(tmp_path: Path) -> None:
    coco(tmp_path, pictures="{split}2017/a")
    save(tmp_path / "train2017/b/train0.jpg")
    with pytest.raises(DataError, match=r"train0.jpg may be train2017/a/train0.jpg or train2017/b/train0.jpg"):
        scan_boxed(tmp_path)


def as_text(content: dict[str, Any]) -> None:
    for one in content["annotations"]:
        one |= {"image_id": str(one["image_id"]), "category_id": str(one["category_id"])}


def as_words(content: dict[str, Any]) -> None:
    for one in content["annotations"]:
        one["image_id"] = f"photo-{one['image_id']}"
    for one in content["images"]:
        one["id"] = f"photo-{one['id']}"


@pytest.mark.parametrize("change", [as_text, as_words])
def test_ids_as_text(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    boxed = scan_boxed(coco(tmp_path, change))
    assert is_right(boxed)
    share = json.loads(split_file(boxed, [1], 0.5)[1])
    assert (len(share["images"]), len(share["annotations"])) == (1, 2)
    assert write_share(tmp_path / "annotations/instances_train2017.json", tmp_path / "half.json", 0.5, 0) == 1


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_exif_that_keeps_the_size(orientation: int, tmp_path: Path) -> None:
    boxed = scan_boxed(coco(tmp_path, orientation=orientation))
    other = {2: "40, 8, 56, 24", 3: "40, 24, 56, 40", 4: "8, 24, 24, 40"}[orientation]
    with pytest.raises(DataError, match=f"EXIF orientation {orientation}.*\nthe first is 8, 8, 24, 24 or {other}"):
        read_annotated(boxed, boxed.splits["train"][0])


def test_exif_that_swaps_the_sides(tmp_path: Path) -> None:
    boxed = scan_boxed(coco(tmp_path / "stored", orientation=6))
    with pytest.raises(DataError, match="EXIF orientation 6\nturns the photo, and its boxes are of the stored pixels"):
        read_annotated(boxed, boxed.splits["train"][0])

    def swap(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image |= {"width": H, "height": W}
        for one in content["annotations"]:
            one["bbox"] = [1, 2, 3, 4]

    boxed = scan_boxed(coco(tmp_path / "upright", swap, orientation=6))
    assert read_annotated(boxed, boxed.splits["train"][0])[0].shape == (3, W, H)
    root = yolo(tmp_path / "yolo")
    save(root / "images/train/train0.jpg", 8)
    boxed = scan_boxed(root)
    with pytest.raises(DataError, match="two readings of its boxes are possible"):
        read_annotated(boxed, boxed.splits["train"][0])


def test_voc_beside_the_images(tmp_path: Path) -> None:
    shape = f"<size><width>{W}</width><height>{H}</height></size>"
    things = "".join(
        f"<object><name>{('cat', 'dog')[c]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
        for c, x, y, w, h in BOXES
    )
    for name in ("train/a", "train/b", "valid/c"):
        save(tmp_path / f"{name}.jpg")
        write(tmp_path / f"{name}.xml", f"<annotation>{shape}{things}</annotation>")
    assert is_right(scan_boxed(tmp_path))


def test_what_was_read_is_described(tmp_path: Path) -> None:
    def crowd(content: dict[str, Any]) -> None:
        content["annotations"][0]["iscrowd"] = 1

    line = describe_boxed(scan_boxed(coco(tmp_path, crowd)))
    assert "COCO (annotations/instances_train2017.json, annotations/instances_val2017.json), boxes" in line
    assert "train 2 images with 4 boxes; val 1 images with 2 boxes; 2 classes: cat 3, dog 3" in line
    assert line.endswith("crowds that count neither way: 2")


def test_splits_by_name() -> None:
    names = (
        "train",
        "Training",
        "val2017",
        "VALID",
        "validation",
        "dev",
        "test",
        "testing",
        "images",
        "trainer",
        "default",
    )
    assert [split_of(name) for name in names] == ["train"] * 2 + ["val"] * 4 + ["test"] * 2 + [None] * 3


COCO = (
    '{"images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 20}], "categories": [{"id": 1, "name": "x"}], '
    '"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 0}]}'
)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('"iscrowd": 0', '"iscrowd": "0"', "expected 0 or 1"),
        ('"iscrowd": 0', '"iscrowd": "false"', "expected 0 or 1"),
        ('"iscrowd": 0', '"iscrowd": NaN', "expected 0 or 1"),
        ('"iscrowd": 0', '"iscrowd": 0, "bbox": [0, 0, 9, 9]', "bbox twice"),
        ('"images"', '"annotations": [], "images"', "annotations twice"),
        ('"width": 20', '"width": 20.7', "20.7 is no number of pixels"),
        ('"width": 20', '"width": 1e999', "inf is no number of pixels"),
    ],
)
def test_two_readings_of_a_coco_entry_are_refused(before: str, after: str, words: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (20, 20)).save(tmp_path / split / "a.png")
        (tmp_path / f"instances_{split}.json").write_text(COCO)
    assert len(scan_coco(open_tree(tmp_path)).splits["val"][0].objects.boxes) == 1
    (tmp_path / "instances_val.json").write_text(COCO.replace(before, after))
    with pytest.raises(DataError, match=words):
        scan_coco(open_tree(tmp_path))
