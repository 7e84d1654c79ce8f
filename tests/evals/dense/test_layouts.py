"""Trees of images with masks: Cityscapes, PASCAL VOC, folders, DAVIS; and what is wrong with others."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nolabel.errors import DataError, UsageError
from nolabel.evals.dense import attention, segmentation, video
from nolabel.evals.dense.clips import is_binary, read_objects, scan_clips
from nolabel.evals.dense.iou import VOID
from nolabel.evals.dense.layouts import Classes, encode, read_pair, scan_masked
from nolabel.evals.protocol import refusal
from nolabel.evals.shared.trees import open_tree, read_mask


def save(path: Path, pixels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels.astype(np.uint8))
    if palette:
        image.putpalette(bytes(range(256)) * 3)
    image.save(path)


def pair(root: Path, picture: str, mask: str, ids: tuple[int, ...] = (0, 1), palette: bool = False) -> None:
    """A picture of 6 x 4 pixels and a mask whose columns hold the ids in turn."""
    save(root / picture, np.full((4, 6, 3), 90))
    save(root / mask, np.tile(np.array(ids)[np.arange(6) % len(ids)], (4, 1)), palette)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    root = tmp_path / "world"
    for split in ("train", "val"):
        for name in ("a", "b"):
            pair(root, f"images/{split}/{name}.png", f"labels/{split}/{name}.png", (0, 1, 7))
    (root / "classes.json").write_text(json.dumps({"0": "sky", "1": "road", "7": "void"}))
    return root


def test_folders(folders: Path) -> None:
    save(folders / "images/train/without.png", np.zeros((4, 6, 3)))
    masked = scan_masked(folders)
    assert masked.layout == "folders" and list(masked.splits) == ["train", "val"]
    assert masked.splits["train"].pictures == ("images/train/a.png", "images/train/b.png")
    assert masked.classes == Classes(("sky", "road"), (0, 1), (7, 255))
    assert masked.notes == ["1 images without a mask are left out"]
    picture, truth = read_pair(masked, "val", 1)
    assert picture.shape == (3, 4, 6)
    assert truth[0].tolist() == [0, 1, VOID, 0, 1, VOID]


def test_a_zip_with_a_folder_around_it_is_the_same(folders: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "world.zip", "w") as archive:
        for path in folders.rglob("*.*"):
            archive.write(path, Path("some/where") / path.relative_to(folders))
    inside, outside = scan_masked(tmp_path / "world.zip"), scan_masked(folders)
    assert inside[1:] == outside[1:]
    assert torch.equal(read_pair(inside, "val", 0)[1], read_pair(outside, "val", 0)[1])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.yaml", "classes:\n  0: sky\n  1: road\n  7: Void\n"),
        ("classes.yaml", "names: [sky, road, b, c, d, e, f, unlabelled]"),
        ("classes.txt", "sky\nroad\nb\nc\nd\ne\nf\nvoid\n"),
    ],
)
def test_lists_of_classes(folders: Path, name: str, text: str) -> None:
    (folders / "classes.json").unlink()
    (folders / "labels" / name).write_text(text)
    found = scan_masked(folders).classes
    assert found.names[:2] == ("sky", "road") and 7 in found.void
    (folders / "labels" / name).unlink()
    (folders / name).write_text(text)
    assert scan_masked(folders, str(folders / name)).classes == found


def test_classes_without_names_are_the_ids(folders: Path) -> None:
    (folders / "classes.json").unlink()
    masked = scan_masked(folders)
    assert not masked.named and masked.classes == Classes(("0", "1", "7"), (0, 1, 7), (255,))
    assert scan_masked(folders, void=7).classes == Classes(("0", "1"), (0, 1), (255, 7))


def test_void_replaces_a_named_class(folders: Path) -> None:
    assert scan_masked(folders, void=1).classes == Classes(("sky",), (0,), (7, 255, 1))


def test_masks_of_0_and_255_are_one_object(tmp_path: Path) -> None:
    pair(tmp_path, "images/a.png", "masks/a.png", (0, 255))
    masked = scan_masked(tmp_path)
    assert masked.classes == Classes(("background", "object"), (0, 255), ())
    assert read_pair(masked, "all", 0)[1][0].tolist() == [0, 1] * 3


def test_ids_out_of_range_are_named(folders: Path) -> None:
    pair(folders, "images/val/c.png", "labels/val/c.png", (0, 9, 12))
    masked = scan_masked(folders)
    with pytest.raises(DataError, match=r"labels/val/c.png holds the ids 9, 12, which are no class"):
        read_pair(masked, "val", 2)


def test_another_size_is_named(folders: Path) -> None:
    save(folders / "labels/val/a.png", np.zeros((4, 5)))
    with pytest.raises(DataError, match=r"labels/val/a.png has 5 x 4 pixels, its image images/val/a.png 6 x 4"):
        read_pair(scan_masked(folders), "val", 0)


@pytest.mark.parametrize("kind", ["rgb", "damaged"])
def test_masks_that_hold_no_ids(folders: Path, kind: str) -> None:
    path = folders / "labels/val/a.png"
    if kind == "rgb":
        save(path, np.arange(72).reshape(4, 6, 3))
    else:
        path.write_bytes(b"no mask")
    with pytest.raises(DataError, match="picture in colours" if kind == "rgb" else "cannot be read"):
        read_mask(open_tree(folders), "labels/val/a.png")


def test_grey_masks_in_colour_files_and_palettes(tmp_path: Path) -> None:
    save(tmp_path / "masks/a.png", np.full((4, 6, 3), 3))
    save(tmp_path / "masks/b.png", np.full((4, 6), 3), palette=True)
    Image.fromarray(np.full((4, 6), 300, np.uint16)).save(tmp_path / "masks/c.png")
    save(tmp_path / "images/a.png", np.zeros((4, 6, 3)))
    tree = open_tree(tmp_path)
    assert [int(read_mask(tree, f"masks/{name}.png").unique()) for name in "abc"] == [3, 3, 300]


def test_a_picture_that_cannot_be_read_is_an_error(folders: Path) -> None:
    (folders / "images/val/a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"images/val/a.png cannot be used"):
        read_pair(scan_masked(folders), "val", 0)


def test_masks_without_an_image(folders: Path) -> None:
    (folders / "images/val/a.png").unlink()
    with pytest.raises(DataError, match="without an image of that name in images: val/a"):
        scan_masked(folders)


def test_two_masks_of_one_name(folders: Path) -> None:
    save(folders / "labels/val/a.bmp", np.zeros((4, 6)))
    with pytest.raises(DataError, match="differ in the suffix only"):
        scan_masked(folders)


def test_other_trees(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(DataError, match="holds no images with masks"):
        scan_masked(pictures)
    with pytest.raises(DataError, match="does not exist"):
        scan_masked(tmp_path / "nowhere")
    assert "holds no images with masks" in (refusal(attention.PROTOCOL, pictures) or "")
    assert "holds no clips with masks" in (refusal(video.PROTOCOL, pictures) or "")


def test_what_data_is_accepted(folders: Path, tmp_path: Path) -> None:
    assert refusal(attention.PROTOCOL, folders) is refusal(segmentation.PROTOCOL, folders) is None
    pair(tmp_path / "flat", "images/a.png", "masks/a.png")
    assert refusal(attention.PROTOCOL, tmp_path / "flat") is None
    assert refusal(segmentation.PROTOCOL, tmp_path / "flat") == "no masks in train/ with val/ or test/"


def test_a_list_of_classes_that_is_none(folders: Path, tmp_path: Path) -> None:
    (folders / "classes.json").write_text('{"sky": 0}')
    with pytest.raises(DataError, match=r"classes.json is no list of classes"):
        scan_masked(folders)
    with pytest.raises(UsageError, match="cannot be read"):
        scan_masked(folders, str(tmp_path / "nowhere.txt"))


def test_voc(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("2007_1", "2007_2", "2007_3"):
        pair(root, f"JPEGImages/{name}.png", f"SegmentationClass/{name}.png", (0, 15, 255), palette=True)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_1\n2007_3\n")
    (lists / "val.txt").write_text("2007_2\n")
    masked = scan_masked(tmp_path)
    assert masked.layout == "PASCAL VOC" and len(masked.classes.ids) == 21
    assert masked.splits["train"].masks == ("SegmentationClass/2007_1.png", "SegmentationClass/2007_3.png")
    assert read_pair(masked, "val", 0)[1][0].tolist() == [0, 15, VOID] * 2
    pair(root, "JPEGImages/2007_4.png", "SegmentationClassAug/2007_4.png")
    (lists / "train_aug.txt").write_text("2007_4\n")
    assert scan_masked(tmp_path).splits["train"].masks == ("SegmentationClassAug/2007_4.png",)
    for text, message in (
        ("2007_2\n2007_9\n", "Names in val.txt without an image or without a mask: 2007_9"),
        ("2007_2\n2007_2\n", "2007_2.png is twice in val"),
        ("2007_4\n", "without a mask: 2007_4"),
        ("\n", "list of val in ImageSets/Segmentation is empty"),
    ):
        (lists / "val.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            scan_masked(tmp_path)
    (lists / "train_aug.txt").unlink()
    (lists / "val.txt").write_text("2007_3\n")
    with pytest.raises(DataError, match=r"2007_3.png is in train and in val"):
        scan_masked(tmp_path)


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes(tmp_path: Path, kind: str) -> None:
    ids = (7, 8, 4) if kind == "labelIds" else (0, 1, 255)
    for split in ("train", "val"):
        for number in range(2):
            name = f"{split}/ulm/ulm_00000{number}"
            pair(tmp_path, f"leftImg8bit/{name}_leftImg8bit.png", f"gtFine/{name}_gtFine_{kind}.png", ids)
    masked = scan_masked(tmp_path)
    assert masked.layout == "Cityscapes" and masked.classes.names[:2] == ("road", "sidewalk")
    assert len(masked.classes.ids) == 19
    assert read_pair(masked, "train", 1)[1][0].tolist() == [0, 1, VOID] * 2
    picture = tmp_path / "leftImg8bit/val/ulm/ulm_000001_leftImg8bit.png"
    picture.rename(tmp_path / "aside.png")
    with pytest.raises(DataError, match=f"Masks without an image in leftImg8bit/val: .*ulm_000001_gtFine_{kind}.png"):
        scan_masked(tmp_path)
    (tmp_path / "aside.png").rename(picture)
    (tmp_path / f"gtFine/val/ulm/ulm_000001_gtFine_{kind}.png").unlink()
    with pytest.raises(DataError, match="Masks that are missing"):
        scan_masked(tmp_path)


def test_encode_keeps_void_apart() -> None:
    classes = Classes(("a", "b"), (3, 300), (0,))
    assert encode(torch.tensor([[3, 0, 300]]), classes, "m").tolist() == [[0, VOID, 1]]
    with pytest.raises(DataError, match="holds the ids 4, which"):
        encode(torch.tensor([[3, 4]]), classes, "m")
    assert encode(torch.tensor([[3, 4, 300]]), classes._replace(others_void=True), "m").tolist() == [[0, VOID, 1]]


def clip(root: Path, frames: str, masks: str, name: str, ids: tuple[int, ...] = (0, 255), count: int = 4) -> None:
    for i in range(count):
        pair(root, f"{frames}/{name}/{i:05d}.png", f"{masks}/{name}/{i:05d}.png", ids)


def test_clips_of_davis(tmp_path: Path) -> None:
    for name in ("bear", "dog", "train"):
        clip(tmp_path, "JPEGImages/480p", "Annotations/480p", name, (0, 1, 2))
    assert [c.name for c in scan_clips(tmp_path).clips] == ["bear", "dog", "train"]
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("dog\nbear\n")
    found = scan_clips(tmp_path)
    assert [c.name for c in found.clips] == ["bear", "dog"] and found.listed_in == "ImageSets/2017/val.txt"
    assert found.clips[0].frames[1] == "JPEGImages/480p/bear/00001.png"
    (tmp_path / "ImageSets/2017/val.txt").write_text(
        "/JPEGImages/480p/dog/00000.jpg /Annotations/480p/dog/00000.png\n"
        "/JPEGImages/480p/dog/00001.jpg /Annotations/480p/dog/00001.png\n"
    )
    assert [c.name for c in scan_clips(tmp_path).clips] == ["dog"]
    (tmp_path / "ImageSets/2017/val.txt").write_text("dog\ncat\n")
    with pytest.raises(DataError, match=r"val.txt names clips that are not there: cat"):
        scan_clips(tmp_path)
    (tmp_path / "ImageSets/2017/val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"val.txt is empty"):
        scan_clips(tmp_path)


def test_clips_in_folders(tmp_path: Path) -> None:
    clip(tmp_path, "frames", "masks", "dog")
    assert refusal(video.PROTOCOL, tmp_path) is None
    (tmp_path / "masks/dog/00002.png").unlink()  # a frame without a mask is followed and not scored
    assert scan_clips(tmp_path).clips[0].masks[1:] == ("masks/dog/00001.png", None, "masks/dog/00003.png")
    (tmp_path / "masks/dog/00001.png").unlink()
    with pytest.raises(DataError, match="has no mask between its first and its last frame"):
        scan_clips(tmp_path)
    (tmp_path / "masks/dog/00000.png").unlink()
    with pytest.raises(DataError, match=r"The first frame of dog, dog/00000, has no mask"):
        scan_clips(tmp_path)
    (tmp_path / "frames/dog/00003.png").unlink()
    with pytest.raises(DataError, match="Masks in masks without a frame in frames: dog/00003"):
        scan_clips(tmp_path)


def test_objects(tmp_path: Path) -> None:
    clip(tmp_path, "frames", "masks", "one", (0, 255), 1)
    clip(tmp_path, "frames", "masks", "two", (0, 1, 2, 255), 1)
    clip(tmp_path, "frames", "masks", "none", (0,), 1)
    tree = open_tree(tmp_path)
    assert [is_binary(tree, f"masks/{n}/00000.png") for n in ("one", "two", "none")] == [True, False, True]
    found = [read_objects(tree, f"masks/{n}/00000.png", n != "two")[0].tolist() for n in ("one", "two", "none")]
    assert found == [[0, 1] * 3, [0, 1, 2, 0, 0, 1], [0] * 6]
