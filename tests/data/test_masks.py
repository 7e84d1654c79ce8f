"""Masks beside photos: told by their names in any common tree, and photos are never taken for masks."""

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nolabel.data.images import left_out, scan
from nolabel.data.masks import find_masks
from nolabel.data.names import compact


def found(names: list[str]) -> set[str]:
    ordered = sorted(names, key=str.encode)
    return {ordered[row] for group in find_masks(compact(ordered)) for row in group.rows}


def pairs(*patterns: str, numbers: tuple[str, ...] = ("0001", "b 2", "c_3_x")) -> list[str]:
    return [pattern.format(n) for pattern, n in itertools.product(patterns, numbers)]


TREES = [  # photos, masks
    (["images/train/{}.jpg"], ["masks/train/{}.png"]),
    (["train/images/{}.jpg"], ["train/masks/{}.png"]),
    (["images/training/{}.jpg"], ["annotations/training/{}.png"]),
    (["img_dir/train/{}.jpg"], ["ann_dir/train/{}.png"]),
    (["Images/{}.jpg"], ["Masks/{}.png", "GroundTruth/{}.png"]),
    (["JPEGImages/{}.jpg"], ["SegmentationClass/{}.png", "SegmentationObject/{}.png", "SegmentationClassAug/{}.png"]),
    (["VOC/JPEGImages/480p/a/{}.jpg"], ["VOC/Annotations/480p/a/{}.png"]),
    (["leftImg8bit/val/a/{}_leftImg8bit.png"], ["gtFine/val/a/{}_gtFine_color.png", "gtFine/val/a/{}_labelIds.png"]),
    (["leftImg8bit_trainvaltest/leftImg8bit/{}.png"], ["gtFine_trainvaltest/gtFine/{}.png"]),
    (["train/{}.jpg"], ["train_masks/{}_mask.gif"]),
    (["train/{}.png", "val/{}.png"], ["trainannot/{}.png", "valannot/{}.png"]),
    (["train/{}.png"], ["train_labels/{}_L.png"]),
    (["CXR_png/{}.png"], ["masks/{}_mask.png"]),
    (["photos of me/{}.jpg"], ["segmentation/{}.png"]),
    (["train2017/{}.jpg"], ["annotations/panoptic_train2017/{}.png", "stuffthingmaps/train2017/{}.png"]),
    (["id{}/images/x.png"], ["id{}/masks/0f3.png", "id{}/masks/a7c.png"]),
    (["a/{}.jpg"], ["a/masks/{}.png"]),
    (["training/images/{}_training.tif"], ["training/1st_manual/{}_manual1.gif", "training/mask/{}_training_mask.gif"]),
    (["x/{}.tif"], ["x/{}_mask.tif"]),
    (["x/{}.jpg"], ["x/{}_segmentation.png"]),
    (["x/{}.jpg"], ["x/{}-label.jpg"]),
    (["x/{}_sat.jpg"], ["x/{}_mask.png"]),
    (["benign/{}.png"], ["benign/{}_mask.png", "benign/{}_mask_1.png"]),
    (["img_{}.png"], ["mask_{}.png"]),
    (["x/{}.jpg"], ["x/{}.png"]),
    (["{}.JPG"], ["{}.PNG"]),
]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree[1][0])
def test_masks_are_told(tree: tuple[list[str], list[str]]) -> None:
    photos, masks = pairs(*tree[0]), pairs(*tree[1])
    for top in ("", "data/set one/"):
        assert found([top + name for name in photos + masks]) == {top + name for name in masks}


PHOTOS = [
    ["with_mask/{}.jpg", "without_mask/{}.jpg"],
    ["mask/{}.png", "no_mask/{}.png"],
    ["mask/{}.png", "face/{}.png"],
    ["cat/{}.jpg", "dog/{}.png"],
    ["masks/{}.png"],
    ["labels of wine/{}.jpg", "bottles/{}.jpg"],
    ["a/{}.jpg", "b/{}.png"],
    ["x/{}_mask.jpg"],
    ["x/segment {}.jpg", "x/label{}.jpg"],
    ["cars/golf {}.jpg", "cars/golf {}_gt.jpg"],
    ["people/mary {}.jpg", "people/mary {}_ann.jpg"],
    ["Ann/{}.jpg", "Bob/{}.jpg"],
    ["manual/{}.jpg", "automatic/{}.jpg"],
    ["picture_frame/{}.jpg", "mask/{}.jpg", "wig/{}.jpg"],
]


@pytest.mark.parametrize("patterns", PHOTOS, ids=lambda patterns: patterns[0])
def test_photos_are_no_masks(patterns: list[str]) -> None:
    assert found(pairs(*patterns)) == set()


def test_one_name_alone_is_no_proof() -> None:
    photos = [f"x/{i}.jpg" for i in range(40)]
    assert found([*photos, "x/3_label.jpg"]) == set()
    assert found([*photos, "x/3.png"]) == found([*photos, "x/3.png", "x/4.png", "x/99.png"]) == set()


def picture(kind: str, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    if kind == "photo":
        return Image.fromarray(noise)
    if kind == "depth":
        return Image.fromarray(noise[..., 0].astype(np.uint16) * 200)
    return Image.fromarray((noise[..., 0] > 128).astype(np.uint8) * (255 if kind == "mask" else 1))


def plant(root: Path, patterns: dict[str, str], numbers: tuple[str, ...] = ("1", "b 2", "c_3")) -> Path:
    for seed, (pattern, kind) in enumerate(patterns.items()):
        for i, name in enumerate(pattern.format(n) for n in numbers):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            picture(kind, 10 * seed + i).save(root / name)
    return root


@pytest.mark.parametrize(
    ("photos", "others", "kind"),
    [
        ("ISIC2018_Training_Input/ISIC_{}.jpg", "ISIC2018_Training_GroundTruth/ISIC_{}_segmentation.png", "mask"),
        ("HAM_images_part_1/{}.jpg", "HAM_segmentations_lesion/{}_segmentation.png", "mask"),
        ("VOC/JPEGImages/{}.jpg", "VOC/SegmentationClassContext/{}.png", "ids"),
        ("DUTS-TR/DUTS-TR-Image/{}.jpg", "DUTS-TR/DUTS-TR-Mask/{}.png", "mask"),
        ("training/images/{}.jpg", "training/v1.2/labels/{}.png", "ids"),
        ("image_02/data/{}.png", "proj_depth/groundtruth/image_02/{}.png", "depth"),
        ("x/{}.jpg", "x/{}.png", "depth"),
        ("x/{}.jpg", "x/{}_label.jpg", "mask"),
        ("face/{}.jpg", "mask/{}.png", "mask"),
        ("train/train-org-img/{}.jpg", "train/train-label-img/{}_lab.png", "ids"),
        ("2_Ortho_RGB/top_{}_RGB.tif", "5_Labels_all/top_{}_label.tif", "ids"),
        ("assembly/{}.jpg", "parts/{}.png", "ids"),
    ],
)
def test_pixels_tell_masks(photos: str, others: str, kind: str, tmp_path: Path) -> None:
    """Where names leave it open a few files are opened: masks are left out, and photos of such names are not."""
    assert list(scan(plant(tmp_path / "masks", {photos: "photo", others: kind})).names) == sorted(
        photos.format(n) for n in ("1", "b 2", "c_3")
    )
    assert len(scan(plant(tmp_path / "photos", {photos: "photo", others: "photo"})).names) == 6


def test_a_scan_leaves_masks_out_and_names_them_once(tmp_path: Path) -> None:
    for name in pairs("JPEGImages/{}.jpg", "SegmentationClass/{}.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images = scan(tmp_path)
    assert list(images.names) == sorted(pairs("JPEGImages/{}.jpg"))
    first = "SegmentationClass/0001.png"
    assert left_out(images) == [f"taken for masks and left out: SegmentationClass/ (3 files, the first is {first})"]
    assert len(scan(tmp_path, keep_masks=True).names) == len(scan(tmp_path, "").names) == 6
    assert len(scan(tmp_path, "SegmentationClass").names) == 3


def test_names_of_a_subset_alone_count() -> None:
    names = compact(sorted(pairs("x/{}.jpg", "x/{}_mask.png")))
    photos = names.take([i for i, name in enumerate(names) if name.endswith("jpg")])
    assert find_masks(photos) == []


@pytest.mark.parametrize("kind", ["plain", "two formats", "folders", "suffixes"])
def test_a_hundred_thousand_names_take_a_moment(kind: str) -> None:
    """Bounds are ten times what it takes: they catch a search that is quadratic."""
    number = 100_000
    second = {
        "plain": "{}/{}.jpg",
        "two formats": "{}/{}x.png",
        "folders": "masks/{}/{}.png",
        "suffixes": "{}/{}_mask.png",
    }
    first = "images/{}/{}.jpg" if kind == "folders" else "{}/{}.jpg"
    half = [(f"{i // 100:04d}", f"{i % 100:03d}") for i in range(number // 2)]
    names = compact(sorted({*(first.format(*n) for n in half), *(second[kind].format(*n) for n in half)}))
    started = time.process_time()
    groups = find_masks(names)
    assert time.process_time() - started < 15
    assert sum(len(group.rows) for group in groups) == (number // 2 if kind in ("folders", "suffixes") else 0)


def test_hostile_names_end() -> None:
    started = time.process_time()
    names = [f"x/{stem}.png" for stem in ("mask_" + "1" * 200 + "x", "instanceids" * 22 + "!", "_".join(["ids"] * 60))]
    assert found([*names, "x/y.jpg"]) == set()
    assert time.process_time() - started < 5
