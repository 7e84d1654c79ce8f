"""Detection: AP of hand-made boxes, three layouts of one world, what is refused, and both detectors end to end."""

import copy
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from nolabel.data.decode import decode
from nolabel.data.demo import world as world_module
from nolabel.errors import DataError, UsageError
from nolabel.evals.detection import networks
from nolabel.evals.detection.average_precision import Found, average_precision, decode_outline, encode_mask
from nolabel.evals.detection.box_layouts import draw_share, scan_boxed, write_share
from nolabel.evals.detection.boxes import Objects, read_annotated
from nolabel.evals.detection.detection import (
    PROTOCOL,
    DetectionConfig,
    columns,
    make_schedule,
    make_sizes,
    make_task,
)
from nolabel.evals.detection.networks import Sizes, detector
from nolabel.evals.detection.sheet import BEST, write_sheet
from nolabel.evals.detection.sheet import SIZE as SHEET_SIZE
from nolabel.evals.detection.training import (
    Schedule,
    Task,
    flipped,
    lr_at,
    make_optimizer,
    precise_batchnorm,
    train_detector,
    training_batches,
    training_example,
)
from nolabel.evals.protocol import format_result, refusal, run
from nolabel.networks.backbones import backbone
from nolabel.weights.load import Loaded

SIZE = 48
CLASSES = ("ring", "star")
SMALL = DetectionConfig(steps=3, train_batch_size=2, short_side=64, floor=False)


class Thing:
    """A picture with the mask, the box and the class of its object."""

    def __init__(self, label: int, seed: int) -> None:
        self.image, self.mask = world_module.render(world_module.CLASSES.index(CLASSES[label]), seed, SIZE)
        self.label = label
        rows, cols = self.mask.any(1).nonzero()[0], self.mask.any(0).nonzero()[0]
        self.box = [int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1]


def things() -> dict[str, list[Thing]]:
    return {"train": [Thing(i % 2, i) for i in range(6)], "val": [Thing(i % 2, 100 + i) for i in range(4)]}


def write_coco(root: Path) -> None:
    for split, found in things().items():
        images, annotations = [], []
        for i, thing in enumerate(found):
            _save(root / "images" / f"{split}2017" / f"{i:03d}.png", thing)
            images.append({"id": 10 * i + 7, "file_name": f"{i:03d}.png", "width": SIZE, "height": SIZE})
            x0, y0, x1, y1 = thing.box
            annotations.append({
                "id": i + 1, "image_id": 10 * i + 7, "category_id": (3, 90)[thing.label], "iscrowd": 0, "area": 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
            })  # fmt: skip
        categories = [{"id": 90, "name": "star"}, {"id": 3, "name": "ring"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = root / "annotations" / f"instances_{split}2017.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))


def write_voc(root: Path) -> None:
    lists: dict[str, list[str]] = {}
    for split, found in things().items():
        for i, thing in enumerate(found):
            name = f"{split}{i:03d}"
            _save(root / "JPEGImages" / f"{name}.png", thing)
            lists.setdefault(split, []).append(name)
            x0, y0, x1, y1 = thing.box
            (root / "Annotations").mkdir(exist_ok=True)
            (root / "Annotations" / f"{name}.xml").write_text(
                f"<annotation><size><width>{SIZE}</width><height>{SIZE}</height></size>"
                f"<object><name>{CLASSES[thing.label]}</name><difficult>0</difficult><bndbox><xmin>{x0 + 1}</xmin>"
                f"<ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object></annotation>"
            )
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, names in lists.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))


def write_yolo(root: Path) -> None:
    for split, found in things().items():
        for i, thing in enumerate(found):
            _save(root / "images" / split / f"{i:03d}.png", thing)
            x0, y0, x1, y1 = (v / SIZE for v in thing.box)
            path = root / "labels" / split / f"{i:03d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{thing.label} {(x0 + x1) / 2} {(y0 + y1) / 2} {x1 - x0} {y1 - y0}\n")
    (root / "data.yaml").write_text("names: [ring, star]\n")


def _save(path: Path, thing: Thing) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(thing.image).save(path)


WRITERS: dict[str, Callable[[Path], None]] = {"COCO": write_coco, "PASCAL VOC": write_voc, "YOLO": write_yolo}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    (tmp_path / "coco").mkdir()
    write_coco(tmp_path / "coco")
    return tmp_path / "coco"


@pytest.fixture(scope="module")
def net() -> Loaded:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = backbone("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)})
    net.eval().requires_grad_(False)
    return Loaded(net, 16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bicubic", "some/where/tiny", "0123456789abcdef")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that a CPU trains in no time."""
    for name, value in (("FPN_DIM", 8), ("HIDDEN", 16), ("REGIONS", 32)):
        monkeypatch.setattr(networks, name, value)


def ignore(_step: int, _metrics: Any) -> None:
    """No progress."""


def objects(boxes: list[list[float]], labels: list[int], ignored: list[bool] | None = None) -> Objects:
    flags = torch.tensor(ignored or [False] * len(labels), dtype=torch.bool)
    return Objects(torch.tensor(boxes, dtype=torch.float32).view(-1, 4), torch.tensor(labels).long(), flags, None)


def answers(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Found:
    return Found(torch.tensor(boxes).view(-1, 4).float(), torch.tensor(labels).long(), torch.tensor(scores).float())


def test_perfect_boxes_have_ap_100() -> None:
    truth = [objects([[0, 0, 10, 10], [20, 20, 40, 50]], [0, 1]), objects([], [])]
    found = [answers([[0, 0, 10, 10], [20, 20, 40, 50]], [0, 1], [0.9, 0.8]), answers([], [], [])]
    score = average_precision(truth, found, [(60, 60)] * 2, 3)
    assert score == {"ap": 100.0, "ap50": 100.0, "ap75": 100.0, "by_class": [100.0, 100.0, None]}


def test_ap_by_hand() -> None:
    """IoU of 0.7 counts at 0.5 to 0.7: 5 of 10 thresholds. A better scored miss halves the precision."""
    truth = [objects([[0, 0, 10, 10]], [0])]
    near = [0, 0, 10, 7.02]
    score = average_precision(truth, [answers([near], [0], [0.5])], [(60, 60)], 1)
    assert (score["ap"], score["ap50"], score["ap75"]) == (50.0, 100.0, 0.0)
    score = average_precision(truth, [answers([[30, 30, 50, 50], near], [0, 0], [0.9, 0.5])], [(60, 60)], 1)
    assert (score["ap"], score["ap50"], score["ap75"]) == (25.0, 50.0, 0.0)
    score = average_precision(truth, [answers([near], [0], [0.5])], [(60, 60)], 2)
    assert average_precision(truth, [answers([near], [1], [0.5])], [(60, 60)], 2)["ap"] == 0.0 < score["ap"]


def test_the_numbers_of_pycocotools() -> None:
    """Random objects, crowds among them, and answers near them; the numbers are those of pycocotools 2.0.11."""
    rng = np.random.default_rng(0)
    truth, found = [], []
    for _ in range(30):
        count = int(rng.integers(1, 9))
        boxes = rng.uniform([0, 0, 65, 65], [60, 60, 125, 125], (count, 4))
        labels, ignored = rng.integers(0, 4, count), rng.random(count) < 0.15
        near = np.concatenate([np.repeat(boxes, 2, 0) + rng.normal(0, 3, (2 * count, 4)), rng.uniform(0, 60, (3, 4))])
        near[-3:, 2:] += 62
        guesses = np.concatenate([np.repeat(labels, 2), rng.integers(0, 4, 3)])
        guesses = np.where(rng.random(len(guesses)) < 0.2, rng.integers(0, 4, len(guesses)), guesses)
        truth.append(objects(boxes.tolist(), labels.tolist(), ignored.tolist()))
        found.append(answers(near.tolist(), guesses.tolist(), rng.random(len(guesses)).round(3).tolist()))
    score = average_precision(truth, found, [(130, 130)] * 30, 4)
    assert [score[key] for key in ("ap", "ap50", "ap75")] == pytest.approx([35.2743, 53.9702, 41.6309], abs=1e-3)


def test_half_of_the_objects_found() -> None:
    """Recall 1/2 at precision 1: 51 of COCO's 101 points."""
    truth = [objects([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 0])]
    score = average_precision(truth, [answers([[0, 0, 10, 10]], [0], [0.5])], [(60, 60)], 1)
    assert score["ap50"] == pytest.approx(100 * 51 / 101, abs=1e-3)


def test_ignored_objects_neither_help_nor_harm() -> None:
    truth = [objects([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 0], [False, True])]
    with_it = answers([[20, 20, 30, 30], [0, 0, 10, 10]], [0, 0], [0.9, 0.5])
    assert average_precision(truth, [with_it], [(60, 60)], 1)["ap"] == 100.0
    assert average_precision(truth, [answers([[0, 0, 10, 10]], [0], [0.5])], [(60, 60)], 1)["ap"] == 100.0


def test_without_an_answer_or_an_object() -> None:
    truth = [objects([[0, 0, 10, 10]], [0])]
    assert average_precision(truth, [answers([], [], [])], [(60, 60)], 1)["ap"] == 0.0
    assert average_precision([objects([], [])], [answers([], [], [])], [(60, 60)], 1)["ap"] is None


def test_masks_by_hand() -> None:
    """The box is right and the mask is the lower half: AP of boxes 100, of masks that of IoU 0.5."""
    square = [[0, 0, 10, 0, 10, 10, 0, 10]]
    truth = [objects([[0, 0, 10, 10]], [0])._replace(outlines=(square,))]
    half = torch.zeros(20, 20, dtype=torch.bool)
    half[4:10, :10] = True
    found = [answers([[0, 0, 10, 10]], [0], [0.9])._replace(masks=[encode_mask(half)])]
    assert average_precision(truth, found, [(20, 20)], 1)["ap"] == 100.0
    score = average_precision(truth, found, [(20, 20)], 1, masks=True)
    assert (score["ap"], score["ap50"], score["ap75"]) == (pytest.approx(30.0), 100.0, 0.0)  # IoU 0.6: 3 of 10


def test_outlines_become_masks() -> None:
    mask = torch.zeros(12, 16, dtype=torch.bool)
    mask[2:6, 3:9] = True
    assert torch.equal(decode_outline([[3, 2, 9, 2, 9, 6, 3, 6]], (12, 16), "x"), mask)
    assert torch.equal(decode_outline(encode_mask(mask), (12, 16), "x"), mask)
    runs = mask.T.flatten().int().tolist()
    lengths, value = [0], 0
    for pixel in runs:
        if pixel != value:
            lengths.append(0)
            value = pixel
        lengths[-1] += 1
    assert torch.equal(decode_outline({"size": [12, 16], "counts": lengths}, (12, 16), "x"), mask)
    with pytest.raises(DataError, match="outline of x can't be read"):
        decode_outline({"size": [12, 16]}, (12, 16), "x")


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("packed", [False, True])
def test_three_layouts_give_the_same(layout: str, packed: bool, tmp_path: Path) -> None:
    root = tmp_path / "data" / "world"
    root.mkdir(parents=True)
    WRITERS[layout](root)
    data = Path(shutil.make_archive(str(tmp_path / "world"), "zip", tmp_path / "data")) if packed else root
    assert refusal(PROTOCOL, data) is None
    boxed = scan_boxed(data)
    assert (boxed.layout, boxed.classes) == (layout, CLASSES)
    for split, expected in things().items():
        assert len(boxed.splits[split]) == len(expected)
        for one, thing in zip(boxed.splits[split], expected, strict=True):
            picture, found = read_annotated(boxed, one)
            assert torch.equal(picture, torch.from_numpy(thing.image).permute(2, 0, 1))
            assert torch.allclose(found.boxes, torch.tensor([thing.box]).float(), atol=1e-3)
            assert (found.labels.tolist(), found.ignored.tolist()) == ([thing.label], [False])


def test_what_is_no_detection_data(splits_folder: Path, tmp_path: Path) -> None:
    assert "holds no images with boxes" in str(refusal(PROTOCOL, splits_folder))
    (tmp_path / "list.txt").write_text("a.png\n")
    assert "no boxes" in str(refusal(PROTOCOL, tmp_path / "list.txt")) or refusal(PROTOCOL, tmp_path / "list.txt")


def change(root: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["annotations"][0].update(bbox=[40, 0, 20, 5]), "box outside of the image: 40, 0, 60, 5"),
        (lambda c: c["annotations"][0].update(bbox=[-5, 0, 20, 5]), "box outside of the image"),
        (lambda c: c["annotations"][0].update(bbox=[9, 9, -3, 5]), "box without width or height"),
        (lambda c: c["annotations"][0].update(category_id=4), "has category 4, not listed"),
        (lambda c: c["annotations"][0].update(image_id=4), "annotation 1 is of image 4, not listed"),
        (lambda c: c["images"][0].update(file_name="gone.png"), "names images that are not there: .*gone.png"),
        (lambda c: c["annotations"][0].pop("bbox"), r"annotations\[0\] has no bbox"),
        (lambda c: c.pop("categories"), "is no COCO file"),
        (lambda c: c["categories"][0].update(name="cat"), "other categories than the other splits"),
        (lambda c: c["categories"].append(c["categories"][0]), "the id 90 is twice in categories"),
        (lambda c: c["images"][0].update(id=17), "the id 17 is twice in images"),
        (lambda c: c["images"][0].update(file_name="001.png"), "001.png is twice in train"),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
            r"annotations\[0\] has the bbox \[1, 2, 3\]: expected four",
        ),
        (lambda c: c["annotations"][0].update(bbox=None), "has no bbox"),
        (lambda c: c["annotations"][0].update(image_id=[7]), r"annotations\[0\] has the image_id \[7\]"),
        (lambda c: c["annotations"].append("x"), r"annotations\[6\] is 'x'"),
        (lambda c: c["images"][1].pop("width"), r"images\[1\] has no width"),
        (lambda c: c["images"][0].pop("file_name"), r"images\[0\] has no file_name"),
        (lambda c: c["images"][0].update(id="17"), "the id 17 is twice in images"),
        (lambda c: c["categories"][1].pop("name"), r"categories\[1\] has no name"),
        (lambda c: c["images"][0].update(width="wide"), "entry that can't be read, of images/train2017/000.png"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 1, 5]]), "annotation 1, has an outline"),
        (lambda c: c["annotations"][0].update(segmentation=[[70, 1, 80, 1, 80, 9]]), "in an image of 48 x 48 pixels"),
        (lambda c: c["annotations"][0].update(segmentation={"size": [9, 9], "counts": [81]}), "has an outline"),
    ],
)
def test_bad_coco(coco: Path, edit: Callable[[dict[str, Any]], None], message: str) -> None:
    change(coco, edit)
    with pytest.raises(DataError, match=message) as caught:
        scan_boxed(coco)
    assert len(str(caught.value).splitlines()) <= 5


def test_names_that_stand_twice_and_json_without_an_end(coco: Path, tmp_path: Path) -> None:
    path = coco / "annotations" / "instances_train2017.json"
    text = path.read_text()
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="is no COCO file"):
        scan_boxed(coco)
    path.write_text(text)
    for split in ("train", "val"):
        other = path.with_name(f"instances_{split}2017.json")
        other.write_text(other.read_text().replace("star", "ring"))
    with pytest.raises(DataError, match="Two classes have the same name: ring, ring"):
        scan_boxed(coco)
    write_voc(tmp_path / "voc")
    lists = tmp_path / "voc/ImageSets/Main"
    for names, message in (("val000\nval000", "val000.png is twice in val"), ("train000", "is in train and in val")):
        (lists / "val.txt").write_text(names)
        with pytest.raises(DataError, match=message):
            scan_boxed(tmp_path / "voc")


def test_a_box_that_sticks_out_by_rounding_is_clipped(coco: Path) -> None:
    change(coco, lambda c: c["annotations"][0].update(bbox=[40.5, 0, 8.2, 5]))
    assert scan_boxed(coco).splits["train"][0].objects.boxes.tolist() == [[40.5, 0, 48, 5]]


def test_crowds_are_not_learned(coco: Path) -> None:
    change(coco, lambda c: c["annotations"][0].update(iscrowd=1))
    boxed = scan_boxed(coco)
    assert boxed.splits["train"][0].objects.ignored.tolist() == [True]
    assert training_example(boxed, boxed.splits["train"][0], True)[1]["boxes"].shape == (0, 4)


def test_an_image_of_another_size(coco: Path) -> None:
    change(coco, lambda c: c["images"][0].update(width=96))
    boxed = scan_boxed(coco)
    with pytest.raises(DataError, match="48 x 48 pixels, its annotation 96 x 48"):
        read_annotated(boxed, boxed.splits["train"][0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("7 0.5 0.5 0.1 0.1", "class 7, which has no name"),
        ("0 0.5 0.5 0.1", "3 numbers after the class"),
        ("0 0.5 0.5 x 0.1", "no list of numbers"),
        ("0 0.9 0.5 0.4 0.1", "outside of the image"),
        ("0 24 24 10 10", "outside of the image"),
        ("0 0.5 0.5 0 0.1", "without width or height"),
    ],
)
def test_bad_yolo(tmp_path: Path, text: str, message: str) -> None:
    write_yolo(tmp_path / "yolo")
    (tmp_path / "yolo/labels/train/002.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        scan_boxed(tmp_path / "yolo")


def test_yolo_polygons_missing_files_and_names(tmp_path: Path) -> None:
    write_yolo(tmp_path / "yolo")
    labels = tmp_path / "yolo" / "labels"
    (labels / "train/002.txt").write_text("1 0.25 0.25 0.75 0.25 0.75 0.5\n")
    (labels / "train/003.txt").unlink()
    boxed = scan_boxed(tmp_path / "yolo")
    assert boxed.notes == ["1 images without a text file count as empty"]
    _, found = read_annotated(boxed, boxed.splits["train"][2])
    assert found.boxes.tolist() == [[12, 12, 36, 24]]
    assert found.outlines == ([[12, 12, 36, 12, 36, 24]],)
    assert len(boxed.splits["train"][3].objects.labels) == 0
    (labels / "val/gone.txt").write_text("0 0.5 0.5 0.1 0.1")
    with pytest.raises(DataError, match="names images that are not there: val/gone"):
        scan_boxed(tmp_path / "yolo")
    (labels / "val/gone.txt").rename(labels / "train/gone.txt")
    assert scan_boxed(tmp_path / "yolo").notes[1] == "1 text files of train without an image are left out"
    (tmp_path / "yolo" / "data.yaml").unlink()
    with pytest.raises(DataError, match="Nothing names the classes"):
        scan_boxed(tmp_path / "yolo")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xmax>", "<xmax>9", "outside of the image"),
        ("</object>", "", "is damaged"),
        ("<annotation>", "<!DOCTYPE a><annotation>", "defines entities"),
        ("<width>48", "<width>x", "size/width is no number"),
        ("<name>ring</name>", "", "has no name"),
        ("<name>ring</name>", "<name> </name>", "has no name"),
    ],
)
def test_bad_voc(tmp_path: Path, old: str, new: str, message: str) -> None:
    write_voc(tmp_path / "voc")
    path = tmp_path / "voc/Annotations/train000.xml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        scan_boxed(tmp_path / "voc")


def test_voc_lists_and_classes(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    lists = tmp_path / "voc/ImageSets/Main"
    (lists / "trainval.txt").write_text((lists / "train.txt").read_text())
    (lists / "test.txt").write_text((lists / "val.txt").read_text())
    assert scan_boxed(tmp_path / "voc").splits.keys() == {"train", "test"}
    path = tmp_path / "voc/Annotations/val000.xml"
    path.write_text(path.read_text().replace("ring", "cat"))
    with pytest.raises(DataError, match="Objects in test of a class that train lacks: cat"):
        scan_boxed(tmp_path / "voc")
    (lists / "test.txt").write_text("nobody")
    with pytest.raises(DataError, match="not there: nobody"):
        scan_boxed(tmp_path / "voc")


def test_difficult_objects_are_learned_and_not_tested(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    path = tmp_path / "voc/Annotations/train000.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    boxed = scan_boxed(tmp_path / "voc")
    assert boxed.splits["train"][0].objects.ignored.tolist() == [True]
    assert len(training_example(boxed, boxed.splits["train"][0], False)[1]["boxes"]) == 1


def test_shares(coco: Path, tmp_path: Path) -> None:
    small, large = (draw_share(100, share, seed=3) for share in (0.1, 0.5))
    assert len(small) == 10 and set(small) < set(large) and small == sorted(small)
    assert small != draw_share(100, 0.1, seed=4) and draw_share(4, 0.1, 0) != []
    source = coco / "annotations" / "instances_train2017.json"
    target = tmp_path / "instances_train2017_0.5.json"
    assert write_share(source, target, 0.5, seed=1) == 3
    content = json.loads(target.read_text())
    assert [image["id"] for image in content["images"]] == [10 * i + 7 for i in draw_share(6, 0.5, 1)]
    assert {a["image_id"] for a in content["annotations"]} == {image["id"] for image in content["images"]}


@pytest.mark.usefixtures("narrow")
def test_the_share_that_was_used_is_written(net: Loaded, tmp_path: Path) -> None:
    """The same for every seed of the training; another --split-seed is another share."""
    for layout, name in (("COCO", "instances_train2017_0.5.json"), ("YOLO", "train_0.5.txt")):
        (tmp_path / layout).mkdir()
        WRITERS[layout](tmp_path / layout)
        texts = []
        for seed, split_seed in ((0, 0), (7, 0), (0, 1)):
            out = tmp_path / f"{layout}-{seed}-{split_seed}.json"
            config = replace(SMALL, steps=1, fraction=0.5, seed=seed, split_seed=split_seed)
            result = run(PROTOCOL, net, tmp_path / layout, config, out)
            assert result["settings"]["split_seed"] == split_seed
            assert result["data"]["splits"]["train"]["images"] == 3
            texts.append((out.with_suffix("") / name).read_text())
        assert texts[0] == texts[1] != texts[2]
        if layout == "COCO":
            write_share(tmp_path / layout / "annotations" / "instances_train2017.json", tmp_path / "x", 0.5, seed=1)
            assert texts[2] == (tmp_path / "x").read_text()
        else:
            assert texts[2].split() == [f"images/train/{i:03d}.png" for i in draw_share(6, 0.5, 1)]


def test_the_picture_of_what_is_found(coco: Path, tmp_path: Path) -> None:
    """Truth to the left, answers to the right; boxes after the ten most certain are not drawn."""
    boxed = scan_boxed(coco)
    examples = boxed.splits["val"]
    far = [[2.0 * i, 2.0 * i, 2.0 * i + 9, 2.0 * i + 9] for i in range(BEST + 2)]
    few, many = ([answers(far[:n], [1] * n, [1 - i / 20 for i in range(n)])] * len(examples) for n in (BEST, BEST + 2))
    sheets = []
    for found in (few, many, [answers([], [], [])] * len(examples)):
        write_sheet(tmp_path / "found.png", boxed, examples, found)
        sheets.append(decode((tmp_path / "found.png").read_bytes()))
    middle = sheets[0].shape[2] // 2
    assert sheets[0].shape == (3, 4 * (SHEET_SIZE + 4), 2 * (SHEET_SIZE + 4))
    assert torch.equal(sheets[0], sheets[1])
    assert torch.equal(sheets[0][..., :middle], sheets[2][..., :middle])
    assert not torch.equal(sheets[2][..., :middle], sheets[2][..., middle:])
    assert not torch.equal(sheets[0][..., middle:], sheets[2][..., middle:])


def test_the_papers_schedules(loaded: Loaded) -> None:
    """methods.md, C5.1 and C5.2."""
    paper = DetectionConfig(schedule="paper")
    assert make_schedule("c4", 16551, paper) == Schedule(24_000, (18_000, 22_000), 100, 16, 0.02)
    assert make_schedule("fpn", 118_000, paper) == Schedule(90_000, (60_000, 80_000), 1000, 16, 0.02)
    at_224 = loaded._replace(image_size=224)
    assert make_sizes(at_224, "c4", paper) == Sizes(tuple(range(480, 801, 32)), 800, 1333)
    assert make_sizes(at_224, "fpn", paper).train == (640, 672, 704, 736, 768, 800)
    assert make_sizes(at_224._replace(image_size=112), "c4", paper).test == 400
    scaled = make_schedule("c4", 128, DetectionConfig())
    assert scaled == Schedule(1536, (1152, 1408), 100, 2, 0.0025)
    own = make_schedule("c4", 128, DetectionConfig(steps=40, train_batch_size=4))
    assert (own.steps, own.milestones, own.warmup, own.lr) == (40, (30, 37), 4, 0.005)


def test_the_learning_rate() -> None:
    schedule = Schedule(100, (60, 80), 10, 16, 0.02)
    rates = [lr_at(schedule, s) for s in (0, 5, 10, 59, 60, 80)]
    assert rates == pytest.approx([2e-5, 0.01001, 0.02, 0.02, 0.002, 0.0002])


def test_mirror_images() -> None:
    picture = torch.arange(2 * 6).view(1, 2, 6).repeat(3, 1, 1).byte()
    mask = torch.zeros(1, 2, 6, dtype=torch.uint8)
    mask[0, :, 1:3] = 1
    turned, target = flipped(picture, {"boxes": torch.tensor([[1.0, 0, 3, 2]]), "masks": mask})
    assert target["boxes"].tolist() == [[3, 0, 5, 2]]
    assert target["masks"][0, 0].tolist() == [0, 0, 0, 1, 1, 0]
    assert torch.equal(turned.flip(2), picture)


def make(net: Loaded, data: Path, kind: str) -> tuple[Task, DetectionConfig]:
    config = replace(SMALL, detector=kind)  # type: ignore[arg-type]
    return make_task(net, scan_boxed(data), config)[0], config


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("kind", ["c4", "fpn"])
def test_every_layer_moves_and_the_start_does_not(kind: str, net: Loaded, coco: Path) -> None:
    task, config = make(net, coco, kind)
    assert task.masks == (kind == "fpn")
    before = {name: value.clone() for name, value in net.backbone.model.state_dict().items()}
    model = train_detector(net, task._replace(schedule=Schedule(3, (), 0, 2, 0.5)), config, ignore)
    assert all(torch.equal(value, before[name]) for name, value in net.backbone.model.state_dict().items())
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        fresh = detector(net, copy.deepcopy(net.backbone), task.kind, 2, task.masks, task.sizes)
    own, start = dict(model.named_parameters()), dict(fresh.named_parameters())
    still = [name for name, p in own.items() if torch.equal(p, start[name])]
    assert still == []
    moved_from = "backbone.stem.0.weight" if kind == "c4" else "backbone.net.model.conv1.weight"
    assert torch.equal(start[moved_from], before["conv1.weight"])
    assert not model.training and all(p.requires_grad for p in model.parameters())


def test_the_shape_of_the_detectors(net: Loaded, coco: Path) -> None:
    """C4: stage 4 and one more BatchNorm on 14 x 14 regions; FPN: BatchNorm in pyramid, box and mask head."""
    sizes = Sizes((48, 64), 64, 107)
    c4 = detector(net, copy.deepcopy(net.backbone), "c4", 2, False, sizes)
    assert c4.roi_heads.box_roi_pool.output_size == (14, 14)
    assert c4.roi_heads.box_head.norm.num_features == 16
    assert c4.rpn._pre_nms_top_n == {"training": 12000, "testing": 6000}
    assert c4.rpn._post_nms_top_n == {"training": 2000, "testing": 1000}
    assert c4.rpn.anchor_generator.num_anchors_per_location() == [15]
    x = torch.zeros(1, 3, 64, 96)
    assert c4.backbone(x).shape == (1, 16, 4, 6)
    assert c4.roi_heads.box_head(torch.zeros(5, 16, 14, 14)).shape == (5, 16)
    assert c4.roi_heads.box_predictor.cls_score.out_features == 3  # the background, too
    fpn = detector(net, copy.deepcopy(net.backbone), "fpn", 2, True, sizes)
    assert [m.shape[1:] for m in fpn.backbone(x).values()] == [
        (256, 16, 24), (256, 8, 12), (256, 4, 6), (256, 2, 3), (256, 1, 2),
    ]  # fmt: skip
    for part in (fpn.backbone.fpn, fpn.roi_heads.box_head, fpn.roi_heads.mask_head):
        assert any(isinstance(m, nn.BatchNorm2d) for m in part.modules())
    assert (c4.transform.min_size[-1], c4.transform.max_size) == (64, 107)
    with torch.random.fork_rng():
        drawn = {c4.transform.torch_choice([]) for _ in range(30)}
    assert drawn == {48, 64}
    norms = make_optimizer(c4).param_groups[1]
    assert norms["weight_decay"] == 0 and all(p.ndim == 1 for p in norms["params"])


def test_precise_batchnorm_is_the_mean_over_batches() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, images: list[Tensor], _targets: Any) -> Tensor:
            out: Tensor = self.norm(torch.stack(images))
            return out

    net = Net().train()
    images = torch.randint(0, 255, (6, 3, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
    batches = [(list(images[i : i + 2]), list[Any]()) for i in (0, 2, 4)]
    precise_batchnorm(net, iter(batches), torch.device("cpu"))
    assert torch.allclose(net.norm.running_mean, images.float().div(255).mean((0, 2, 3)), atol=1e-6)  # type: ignore[arg-type]
    assert net.norm.momentum == 0.1


def test_batches_are_a_function_of_the_seed(net: Loaded, coco: Path) -> None:
    task, config = make(net, coco, "fpn")
    a, b, c = (list(training_batches(task, 6, replace(config, seed=seed))) for seed in (0, 0, 1))
    assert all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p[0], q[0], strict=True))
    assert any(not torch.equal(x, y) for p, q in zip(a, c, strict=True) for x, y in zip(p[0], q[0], strict=True))
    epoch = [tuple(sorted((x.float().mean().item() for batch in a[:3] for x in batch[0]), reverse=True))]
    assert len(set(epoch[0])) == 6  # every image once
    inside = [
        t["masks"][0, y, x]
        for batch in a
        for t in batch[1]
        for x, y in [((t["boxes"][0, :2] + t["boxes"][0, 2:]) / 2).long().tolist()]
    ]
    assert all(inside)  # masks turn with their boxes


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("layout", "kind"), [("PASCAL VOC", "c4"), ("COCO", "fpn"), ("YOLO", "fpn")])
def test_the_result(layout: str, kind: str, net: Loaded, tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    WRITERS[layout](tmp_path / "world")
    outs = [tmp_path / name / "detection.json" for name in ("a", "b")]
    config = replace(SMALL, floor=layout == "PASCAL VOC")
    result = run(PROTOCOL, net, tmp_path / "world", config, outs[0])
    run(PROTOCOL, net, tmp_path / "world", config, outs[1])
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert [path.name for path in (tmp_path / "a" / "detection").iterdir()] == ["found.png"]
    assert str(tmp_path) not in outs[0].read_text()
    assert list(result) == ["protocol", "version", "metrics", "floor", "settings", "data", "seed", "notes"]
    assert result["settings"]["detector"] == kind
    assert result["metrics"].keys() == ({"box", "mask"} if layout == "COCO" else {"box"})
    assert result["floor"].keys() == ({"random_weights"} if config.floor else set())
    assert result["metrics"]["box"]["by_class"].keys() == set(CLASSES)
    assert result["data"]["splits"]["train"]["objects"] == 6
    assert ("without masks" in " ".join(result["notes"])) == (layout == "YOLO")
    assert "box AP50" in columns(result["metrics"]) and "box AP50" in format_result(result, PROTOCOL)
    assert not PROTOCOL.unasked


def test_the_loss_falls(net: Loaded, coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "REGIONS", 32)
    task, config = make(net, coco, "c4")
    losses: list[float] = []
    schedule = Schedule(60, (), 5, 2, 0.05)
    train_detector(net, task._replace(schedule=schedule), config, lambda _, found: losses.append(found["loss"]))
    assert len(losses) == 60 and sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_networks_settings_and_data_that_cannot_be(net: Loaded, coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    vit = net._replace(backbone=backbone("vit_tiny_patch16_224", args))
    with pytest.raises(UsageError, match="is no ResNet"):
        run(PROTOCOL, vit, coco, SMALL)
    for settings in ({"fraction": 0.0}, {"lr": 0.0}, {"steps": 0}, {"short_side": 0}, {"train_batch_size": 0}):
        with pytest.raises(UsageError):
            run(PROTOCOL, net, coco, replace(SMALL, **settings))  # type: ignore[arg-type]
    (coco / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(DataError, match="holds train and not train with val or test"):
        run(PROTOCOL, net, coco, SMALL)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UsageError, match=r"nolabel\[detection\]"):
        run(PROTOCOL, net, coco, SMALL)


def test_nothing_to_learn_or_to_find(net: Loaded, coco: Path) -> None:
    change(coco, lambda c: c.update(annotations=[]))
    with pytest.raises(DataError, match="No image of train has an object"):
        run(PROTOCOL, net, coco, SMALL)


@pytest.mark.usefixtures("narrow")
def test_coco256(net: Loaded, data_packs: Path) -> None:
    """Real boxes and polygons: counts of the pack, and a few steps on a few images."""
    pack = data_packs / "dense" / "coco256.zip"
    if not pack.is_file():
        pytest.skip(f"{pack} is absent")
    boxed = scan_boxed(pack)
    assert {split: len(found) for split, found in boxed.splits.items()} == {"train": 128, "val": 128}
    assert [sum(len(one.objects.labels) for one in boxed.splits[s]) for s in ("train", "val")] == [929, 898]
    assert boxed.notes[-1].startswith("2 text files of train without an image")  # of 12 boxes
    assert len(boxed.classes) == 80
    outlined = scan_boxed(pack, "polygons")
    assert any("without a text file" in note for note in outlined.notes)
    few = outlined._replace(
        splits={s: tuple(o for o in outlined.splits[s] if len(o.objects.labels))[:3] for s in outlined.splits}
    )
    config = replace(SMALL, detector="fpn", steps=2, short_side=96)
    task, split = make_task(net, few, config)
    assert (split, task.masks) == ("val", True)
    model = train_detector(net, task, config, ignore)
    assert not model.training
