"""Images with masks in the trees and values in which they are shared: read in one way, or refused with both shown."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nolabel.errors import DataError
from nolabel.evals.dense import attention, segmentation
from nolabel.evals.dense.iou import VOID
from nolabel.evals.dense.layouts import masked_leaks, read_pair, report_masks, scan_masked
from nolabel.evals.dense.mask_folders import Pairs
from nolabel.evals.protocol import refusal

SPLITS = {"train": 3, "val": 2}


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def mask(*ids: int) -> np.ndarray:
    return np.tile(np.array(ids)[np.arange(6) % len(ids)], (4, 1))


def plant(root: Path, pictures: str, masks: str, names: tuple[str, str] = ("train", "val")) -> None:
    for (split, count), name in zip(SPLITS.items(), names, strict=True):
        for i in range(count):
            save(root / pictures.format(s=name, n=f"{split}_{i}"), np.full((4, 6, 3), 40 * i))
            save(root / masks.format(s=name, n=f"{split}_{i}"), mask(0, 1) + (split == "val"))


TREES = [
    ("images/{s}/{n}.jpg", "annotations/{s}/{n}.png", ("training", "validation")),
    ("images/{s}/{n}.jpg", "masks/{s}/{n}.png", ("Train", "valid")),
    ("{s}/images/{n}.jpg", "{s}/masks/{n}.png", ("train", "test")),
    ("img_dir/{s}/{n}.jpg", "ann_dir/{s}/{n}.png", ("train", "val")),
    ("{s}/{n}.jpg", "stuffthingmaps_trainval2017/{s}/{n}.png", ("train2017", "val2017")),
    ("Images/{s}/{n}.jpg", "Masks/{s}/{n}.png", ("train2017", "val2017")),
    ("Imgs/{s}/{n}.png", "GroundTruth/{s}/{n}.png", ("train", "val")),
    ("images/{s}/{n}.jpg", "masks/{s}/{n}_mask.png", ("train", "val")),
    ("images/{s}/{n}.jpg", "masks/{s}/{n}_segmentation.png", ("train", "val")),
    ("data/{s}/{n}.jpg", "data/{s}/{n}_mask.png", ("train", "val")),
    ("{s}/{n}.jpg", "{s}_masks/{n}_mask.gif", ("train", "val")),
    ("{s}/{n}.png", "{s}annot/{n}.png", ("train", "val")),
    ("{s}/{n}.png", "{s}_labels/{n}_L.png", ("train", "val")),
    ("{s}/{n}_sat.jpg", "{s}/{n}_mask.png", ("train", "valid")),
    ("{s}_images/{n}.jpg", "{s}_labels/{n}.png", ("train", "val")),
    ("a/b/images/{s}/x/{n}.jpg", "a/b/labels/{s}/x/{n}.png", ("train", "val")),
]


@pytest.mark.parametrize(("pictures", "masks", "names"), TREES, ids=lambda value: str(value)[:30])
def test_trees(pictures: str, masks: str, names: tuple[str, str], tmp_path: Path) -> None:
    plant(tmp_path, pictures, masks, names)
    found = scan_masked(tmp_path)
    second = "test" if "test" in names else "val"
    assert {split: len(pairs.masks) for split, pairs in found.splits.items()} == {"train": 3, second: 2}
    top = found.tree.top
    for (split, number), name, key in zip(SPLITS.items(), names, ("train", second), strict=True):
        stems = [f"{split}_{i}" for i in range(number)]
        expected = Pairs(
            tuple(pictures.format(s=name, n=n).removeprefix(top) for n in stems),
            tuple(masks.format(s=name, n=n).removeprefix(top) for n in stems),
        )
        assert found.splits[key] == expected
    assert found.classes.ids == (0, 1, 2)
    assert refusal(segmentation.PROTOCOL, tmp_path) is refusal(attention.PROTOCOL, tmp_path) is None
    assert read_pair(found, second, 0)[1][0].tolist() == [1, 2] * 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("labels/train/train_0.png", r"two masks.*two ways: \(1\) .*; \(2\) "),
        ("images/valid/x.jpg masks/valid/x.png", "val and valid both mean val"),
        ("masks/val/lost.png", "Masks in masks without an image of that name in images: val/lost"),
        ("images/other/x.jpg masks/other/x.png", "Masks beside the folders train, val and test: masks/other/x.png"),
    ],
)
def test_trees_that_are_refused(more: str, message: str, tmp_path: Path) -> None:
    plant(tmp_path, "images/{s}/{n}.jpg", "masks/{s}/{n}.png")
    for name in more.split():
        save(tmp_path / name, mask(0, 1))
    with pytest.raises(DataError, match=message) as caught:
        scan_masked(tmp_path)
    assert len(str(caught.value).splitlines()) <= 5


def world(root: Path, *masks: tuple[str, np.ndarray]) -> Path:
    for i, (split, pixels) in enumerate(masks):
        save(root / f"images/{split}/{i}.jpg", np.full((4, 6, 3), 9 * i))
        save(root / f"masks/{split}/{i}.png", pixels)
    return root


VALUES = {
    "black and white": ([("train", mask(0, 255)), ("val", mask(0, 255))], (0, 255), ()),
    "a border": ([("train", mask(0, 1, 255)), ("val", mask(0, 1))], (0, 1), (255,)),
    "a border, from 1": ([("train", mask(1, 2, 3, 255)), ("val", mask(1, 3))], (1, 2, 3), (255,)),
    "ids with gaps": ([("train", mask(0, 7)), ("val", mask(0, 9))], (0, 7, 9), (255,)),
}


@pytest.mark.parametrize("values", VALUES)
def test_meaning_of_the_ids(values: str, tmp_path: Path) -> None:
    masks, ids, void = VALUES[values]
    found = scan_masked(world(tmp_path, *masks))
    assert (found.classes.ids, found.classes.void) == (ids, void)


grey = np.r_[np.zeros(40), np.arange(120, 250, 10), np.full(47, 255)].reshape(10, 10)
UNCLEAR = {
    "one more value": [("train", mask(0, 128, 255)), ("val", mask(0, 255))],
    "another value in val": [("train", mask(0, 255)), ("val", mask(0, 64, 255))],
    "1 in train and 255 in val": [("train", mask(0, 1)), ("val", mask(0, 255))],
    "1 and 255 in different masks": [("train", mask(0, 1)), *[("train", mask(0, 255))] * 3, ("val", mask(0, 1))],
    "smoothed": [("train", grey), ("val", mask(0, 255))],
    "1 and 255": [("train", mask(7, 255)), ("val", mask(7, 255))],
}


@pytest.mark.parametrize("values", UNCLEAR)
def test_255_that_may_be_a_class_is_refused(values: str, tmp_path: Path) -> None:
    world(tmp_path, *UNCLEAR[values])
    with pytest.raises(DataError, match=r"two ways: \(1\) 255 is void; \(2\) 255 is a class"):
        scan_masked(tmp_path)
    if values == "one more value":
        assert scan_masked(tmp_path, void=255).classes.ids == (0, 128)
        (tmp_path / "ids.yaml").write_text("0: ground\n128: edge\n255: thing\n")
        assert scan_masked(tmp_path, str(tmp_path / "ids.yaml")).classes.ids == (0, 128, 255)


def test_objects_in_val_only(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train hold background alone; object \(255\) only in the other split"):
        scan_masked(world(tmp_path, ("train", mask(0)), ("val", mask(0, 255))))


COLOUR_LISTS = {
    "classes.json": '{"classes": [{"name": "ground", "color": [0, 0, 0]}, {"name": "thing", "color": [128, 0, 0]}]}',
    "classes.yaml": '[{name: ground, color: "#000000"}, {name: thing, color: "800000"}]',
    "class_dict.csv": "name,r,g,b\nground,0,0,0\nthing,128,0,0\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nground:0,0,0::\nthing:128,0,0::\nvoid:224,224,192::\n",
}


def test_cityscapes_as_its_zips_unpack(tmp_path: Path) -> None:
    """Every id that is no class is void there, too."""
    for split in ("train", "val"):
        stem = f"{split}/bonn/bonn_{split}"
        save(tmp_path / f"leftImg8bit_trainvaltest/leftImg8bit/{stem}_leftImg8bit.png", np.zeros((4, 6, 3)))
        save(tmp_path / f"gtFine_trainvaltest/gtFine/{stem}_gtFine_labelIds.png", mask(4, 7, 26))
    found = scan_masked(tmp_path)
    assert len(found.classes.ids) == 19 and found.classes.names[0] == "road" and found.named
    assert read_pair(found, "val", 0)[1][0].tolist() == [VOID, 0, 13] * 2


def test_classes_of_another_tool_in_the_tree_of_voc(tmp_path: Path) -> None:
    """CVAT exports its own classes in VOC's tree: they are not aeroplane and bicycle."""
    colours = np.array([(0, 0, 0), (128, 0, 0)])
    for name in ("a", "b"):
        save(tmp_path / f"JPEGImages/{name}.jpg", np.zeros((4, 6, 3)))
        save(tmp_path / f"SegmentationClass/{name}.png", colours[mask(0, 1)])
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    for split, name in (("train", "a"), ("val", "b")):
        (tmp_path / f"ImageSets/Segmentation/{split}.txt").write_text(f"{name}\n")
    assert scan_masked(tmp_path).classes.names[:2] == ("background", "aeroplane")
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nowl:128,0,0::\n")
    found = scan_masked(tmp_path)
    assert found.layout == "PASCAL VOC" and found.classes.names == ("background", "owl")
    assert read_pair(found, "val", 0)[1][0].tolist() == [0, 1] * 3


@pytest.mark.parametrize("name", COLOUR_LISTS)
def test_masks_in_colours(name: str, tmp_path: Path) -> None:
    colours = np.array([(0, 0, 0), (128, 0, 0), (224, 224, 192)])
    with pytest.raises(DataError, match=r"picture in colours .*\n.*a list of classes with the\ncolour of each"):
        scan_masked(world(tmp_path, ("train", colours[mask(0, 1)]), ("val", colours[mask(1, 0)])))
    (tmp_path / name).write_text(COLOUR_LISTS[name])
    found = scan_masked(tmp_path)
    assert found.classes.names == ("ground", "thing") and found.classes.ids == (0, 128 << 16)
    assert read_pair(found, "val", 0)[1][0].tolist() == [1, 0] * 3
    save(tmp_path / "masks/val/1.png", colours[mask(0, 2)])
    if "void" in COLOUR_LISTS[name]:
        assert read_pair(found, "val", 0)[1][0].tolist() == [0, VOID] * 3
    else:
        with pytest.raises(DataError, match="holds the ids #e0e0c0, which are no class"):
            read_pair(found, "val", 0)


@pytest.mark.parametrize("text", ['[{"name": "a"}]', '[{"name": "a", "color": [0, 0, 999]}]', '[{"color": "#000000"}]'])
def test_lists_of_colours_that_are_none(text: str, tmp_path: Path) -> None:
    (world(tmp_path, ("train", mask(0, 1)), ("val", mask(0, 1))) / "classes.json").write_text(text)
    with pytest.raises(DataError, match="is no list of classes"):
        scan_masked(tmp_path)


def test_what_was_read_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(tmp_path, "images/{s}/{n}.jpg", "masks/{s}/{n}.png", ("training", "validation"))
    save(tmp_path / "images/training/without.jpg", mask(0))
    report_masks(scan_masked(tmp_path), "val")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "images: train 3 in images/training/, val 2 in images/validation/; reported: val",
        "classes: 3 (0, 1, 2)",
        "not used: 1 images without a mask are left out",
        "void: 255; layout: folders",
    ]


def test_images_of_train_in_val(tmp_path: Path) -> None:
    plant(tmp_path, "images/{s}/{n}.jpg", "masks/{s}/{n}.png")
    found = scan_masked(tmp_path)
    assert masked_leaks(found, ("train", "val")) == ["2 of 2 images of val are in train, too, byte for byte"]
    save(tmp_path / "images/val/val_0.jpg", np.full((4, 6, 3), 250))
    assert masked_leaks(scan_masked(tmp_path), ("train", "val"))[0].startswith("1 of 2 ")
    assert torch.equal(read_pair(found, "val", 1)[1], torch.from_numpy(mask(1, 2)))
