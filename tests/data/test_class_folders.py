"""Trees of class folders as people have them: read in the one way there is, or refused with both ways shown."""

import os
import random
import unicodedata
import zipfile
from pathlib import Path

import pytest

from nolabel.data.images import LabelledImages, fingerprint, left_out, scan, scan_labelled
from nolabel.data.splits import split_of, splits_of
from nolabel.errors import DataError

CLASSES = ("cat", "dog")


def classes(*folders: str, names: tuple[str, ...] = CLASSES) -> list[str]:
    return [f"{folder}/{name}/{i}.jpg".lstrip("/") for folder in folders for name in names for i in range(2)]


def plant(root: Path, names: list[str]) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def zipped(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in random.Random(0).sample(names, len(names)):
            archive.writestr(name, name)
    return path


def in_short(found: dict[str, LabelledImages]) -> dict[str, tuple[str, ...]]:
    """The images of each split, with class."""
    return {
        split: tuple(f"{part.classes[i]}: {name}" for name, i in zip(part.images.names, part.labels, strict=True))
        for split, part in found.items()
    }


@pytest.mark.parametrize(
    ("split", "spellings"),
    [
        (
            "train",
            "train TRAIN Training training_set Train-Images trainset train2017 trainval train_val2012 TrainData tr",
        ),
        (
            "val",
            "val Valid validation VALIDATION minival validation_set val-images val2014 dev Validate ValidationSet",
        ),
        ("test", "test Test testing TESTING test_set test-images test2019 eval Evaluation tst"),
        (None, "trainA strain trains-and-cars tests_of_time contest 2017 images train_labels valley evaluate_me"),
    ],
)
def test_spellings_of_splits(split: str | None, spellings: str) -> None:
    assert {name: split_of(name) for name in spellings.split()} == dict.fromkeys(spellings.split(), split)


def test_splits_with_words_in_common() -> None:
    assert splits_of(["seg_train", "seg_test", "seg_pred"]) == {"seg_train": "train", "seg_test": "test"}
    assert splits_of(["pets-v2-train", "pets-v2-valid"]) == {"pets-v2-train": "train", "pets-v2-valid": "val"}
    market = ["bounding_box_train", "bounding_box_test", "query"]
    assert splits_of(market) == {"bounding_box_train": "train", "bounding_box_test": "test"}
    assert splits_of(["cat_train", "dog_train"]) == splits_of(["bus", "train_station"]) == {}


TREES: dict[str, tuple[list[str], dict[str, int], tuple[str, ...]]] = {
    "valid": (classes("train", "valid"), {"train": 4, "val": 4}, ()),
    "other letters": (classes("Training", "TEST"), {"train": 4, "test": 4}, ()),
    "all three": (classes("train_set", "dev", "Testing"), {"train": 4, "val": 4, "test": 4}, ()),
    "a wrapper": ([*classes("data/train", "data/val"), "README.txt", "docs/a.txt"], {"train": 4, "val": 4}, ()),
    "two wrappers": (classes("a/b/train", "a/b/val"), {"train": 4, "val": 4}, ()),
    "images above": (classes("images/train", "images/validation"), {"train": 4, "val": 4}, ()),
    "images above classes": (classes("images"), {"all": 4}, ()),
    "images below": (classes("train/images", "val/images"), {"train": 4, "val": 4}, ()),
    "macOS": ([*classes("pets"), "__MACOSX/pets/cat/._0.jpg", ".DS_Store"], {"all": 4}, ()),
    "git": ([*classes(""), ".git/HEAD", ".ipynb_checkpoints/0-checkpoint.jpg", "Thumbs.db"], {"all": 4}, ()),
    "folders without images": ([*classes("", names=CLASSES), "annotations/0.xml", "labels/0.txt"], {"all": 4}, ()),
    "words in common": (
        [*classes("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/seg_pred/0.jpg"],
        {"train": 4, "test": 4},
        ("seg_pred/ (1 image)",),
    ),
    "unlabelled test": ([*classes("train"), "test/0.jpg", "test/1.jpg"], {"train": 4}, ("test/ (2 images)",)),
    "beside splits": (
        [*classes("train", "val"), "more/x/0.jpg", "0.jpg", "train/0.jpg", "val/void/0.jpg"],
        {"train": 4, "val": 4},
        (
            "1 image directly in the root",
            "more/ (1 image)",
            "1 image beside the class folders in train/",
            "val/void/ (1 image)",
        ),
    ),
    "a copy inside": (
        classes("x/train", "x/val", "x/x/train", "x/x/val"),
        {"train": 4, "val": 4},
        ("x/x/ (8 images)",),
    ),
    "splits in classes": (classes("cat", "dog", names=("train", "test")), {"train": 4, "test": 4}, ()),
    "masks in classes": (
        [*classes(""), "cat/0_mask.png", "cat/1_mask.png"],
        {"all": 4},
        ("*_mask.png (2 files, the first is cat/0_mask.png)",),
    ),
    "masks beside": (
        [*classes("images/train", "images/test"), "annotations/0.png"],
        {"train": 4, "test": 4},
        ("annotations/ (1 file, the first is annotations/0.png)",),
    ),
    "numbered folders in classes": (classes("cat", "dog", names=("cam1", "cam2", "cam3")), {"all": 12}, ()),
    "shards in classes": (classes("cat", "dog", names=("000", "001")), {"all": 8}, ()),
    "kinds in classes": (classes("cat", "dog", names=("original", "images")), {"all": 8}, ()),
    "one folder in each class": (classes("cat", "dog", names=("more",)), {"all": 4}, ()),
    "train is a class": (["bus/0.jpg", "car/0.jpg", "train/0.jpg"], {"all": 3}, ()),
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("packed", [False, True])
def test_trees(tree: str, packed: bool, tmp_path: Path) -> None:
    names, expected, unused = TREES[tree]
    found = scan_labelled(zipped(tmp_path / "d.zip", names) if packed else plant(tmp_path / "d", names))
    assert {split: len(part.labels) for split, part in found.items()} == expected
    assert all(part.unused == unused for part in found.values())
    assert tree == "train is a class" or all(part.classes == CLASSES for part in found.values())
    labels = {line.split(": ")[0]: line.split(": ")[1] for lines in in_short(found).values() for line in lines}
    assert all(f"{label}/" in name for label, name in labels.items())


REFUSED = {
    "two validations": (classes("train", "val", "valid"), r"holds val/ and valid/: each means val"),
    "two tests": (classes("train", "test", "eval"), r"holds eval/ and test/: each means test"),
    "a class called train": (
        [*classes("train"), "bus/0.jpg"],
        r"\(1\) classes bus, train, .*\(2\) train as",
    ),
    "two data sets": (
        classes("a/train", "a/val", "b/train", "b/val"),
        r"\(1\) classes a, b, .*\(2\) a, b as data",
    ),
    "pictures beside a data set": ([*classes("pets/train", "pets/val"), "docs/0.jpg"], r"\(1\) classes docs, pets"),
    "sets by category": (
        [f"{c}/{s}/0.png" for c in ("bottle", "cable") for s in ("train/good", "test/good", "test/broken")],
        r"\(2\) bottle, cable as data sets",
    ),
    "no class folders": (["train/0.jpg", "val/0.jpg"], "splits without class folders: in train/, val/"),
    "no class folders, and more": (["train/0.jpg", "test/0.jpg", "x/0.jpg"], "splits without class folders"),
    "splits as classes": (
        classes("train", names=("train", "val")) + classes("val"),
        r"\(1\) train, val as classes of train",
    ),
    "images as a class": (["images/0.jpg", "other/0.jpg"], "images/ holds pictures of all kinds\nIt is beside other"),
    "clips": (classes("frames", "masks"), "frames/ holds pictures of all kinds"),
    "folds": (classes("fold1", "fold2"), r"\(1\) classes fold1, fold2; \(2\) classes cat, dog, in fold1, fold2 as"),
    "words of another language": (
        classes("entrenamiento", "prueba"),
        r"\(2\) classes cat, dog, in entrenamiento, prueba",
    ),
    "kinds of pictures": (
        classes("train/color", "train/grey", "test/color", "test/grey"),
        r"\(1\) classes color, grey",
    ),
    "one class missing in a part": (
        [*classes("a", names=("x", "y", "z")), *classes("b", names=("x", "y"))],
        r"\(2\) classes x, y, in a, b as data sets",
    ),
    "a copy beside": ([*classes(""), *classes("thumbs")], r"where thumbs holds cat, dog, too; \(2\) classes cat, dog,"),
    "a copy of itself inside": ([*classes("d"), *classes("d/d")], r"where d holds cat, dog, too"),
    "masks only": (["images/0.jpg", "masks/0.png"], r"two class folders with images but 1[^0]"),
}


@pytest.mark.parametrize("tree", REFUSED)
@pytest.mark.parametrize("packed", [False, True])
def test_trees_that_are_refused(tree: str, packed: bool, tmp_path: Path) -> None:
    names, message = REFUSED[tree]
    with pytest.raises(DataError, match=message) as caught:
        scan_labelled(zipped(tmp_path / "d.zip", names) if packed else plant(tmp_path / "d", names))
    assert len(str(caught.value).splitlines()) <= 5


def test_pictures_of_other_suffixes_are_named(tmp_path: Path) -> None:
    plant(tmp_path, classes("train", "val", names=("cat", "dog")))
    for split in ("train", "val"):
        (tmp_path / split / "owl").mkdir()
        (tmp_path / split / "owl/0.jfif").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF\0")
    found = scan_labelled(tmp_path)
    assert found["val"].unused == ("files of other suffixes: 2 .jfif (JPEG: name it .jpg)",)
    assert left_out(scan(tmp_path)) == ["files of other suffixes: 2 .jfif (JPEG: name it .jpg)"]


PARTS = ("train", "Val", "test", "valid", "cat", "dog", "images", "masks", "extra", ".git", "__MACOSX", "void", "x")
FILES = ("0.jpg", "1.png", "0_mask.png", "note.txt", "._0.jpg", "0.png")


def test_a_zip_is_read_as_its_unpacked_tree(tmp_path: Path) -> None:
    """For any tree: equal splits, classes, notes and errors, and equal images to train on."""
    outcomes = set[str]()
    for seed in range(150):
        r = random.Random(seed)
        names = sorted(
            {"/".join([*r.choices(PARTS, k=r.randint(0, 3)), r.choice(FILES)]) for _ in range(r.randint(1, 9))}
        )
        names = [n for n in names if not any(other.startswith(n + "/") for other in names)]
        folder, archive = plant(tmp_path / f"{seed}/d", names), zipped(tmp_path / f"{seed}.zip", names)
        found = []
        for data in (folder, archive):
            try:
                splits = scan_labelled(data)
                read: object = in_short(splits), next(iter(splits.values())).unused
                outcomes.add("labelled")
            except DataError as error:
                read = str(error).replace(str(data), "DATA").partition("\nLeft out")[0]
                outcomes.add(read.splitlines()[0][:24])
            try:
                images = scan(data)
                found.append((read, tuple(images.names), fingerprint(images), left_out(images)))
            except DataError:
                found.append((read, "no image"))
        assert found[0] == found[1], names
    assert len(outcomes) > 3


def test_names_that_differ_in_bytes_only(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for other in (apart, f"{composed} "):
        names = [*classes("train", names=(composed, "tea")), *classes("val", names=(other, "tea"))]
        with pytest.raises(DataError, match=r"look equal and differ in their bytes only: .*caf"):
            scan_labelled(plant(tmp_path / str(len(os.listdir(tmp_path))), names))
    assert scan_labelled(plant(tmp_path / "letters", ["a/0.jpg", "A/0.jpg"]))["all"].classes == ("A", "a")


def test_a_split_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, [*classes("train", "val"), "lost+found/x"])
    scandir = os.scandir

    def guarded(path: str) -> object:
        if str(path).endswith(closed):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    closed = "lost+found"
    assert list(scan_labelled(tmp_path)) == ["train", "val"]
    closed = "val"
    with pytest.raises(DataError, match=r"val/ of .* cannot be listed \(Permission denied\)"):
        scan_labelled(tmp_path)
    assert left_out(scan(tmp_path)) == ["left out, as they cannot be listed: val/ (Permission denied)"]


def test_a_split_that_is_a_link_to_nothing(tmp_path: Path) -> None:
    plant(tmp_path, classes("train"))
    (tmp_path / "val").symlink_to(tmp_path / "unmounted")
    with pytest.raises(DataError, match=r"val/ of .* cannot be listed \(a link to nothing"):
        scan_labelled(tmp_path)
