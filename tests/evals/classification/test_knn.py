"""The whole protocol, from weights and class folders to the result file; the monitor of runs; real images."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from nolabel.data.images import scan_labelled
from nolabel.errors import DataError, StorageError, UsageError
from nolabel.evals.classification.knn import PROTOCOL, KNNConfig, monitor, monitor_images
from nolabel.evals.classification.neighbours import knn, leave_one_out, raw_floor
from nolabel.evals.protocol import EvalConfig, run
from nolabel.evals.shared.cache import pooled
from nolabel.evals.shared.features import raw_pixels
from nolabel.evals.shared.labelled import subset
from nolabel.evals.shared.results import data_name, result_path
from nolabel.weights.load import Loaded

SMALL = KNNConfig(ks=(1, 5, 100))


def test_reports_test_and_chooses_k_on_val(loaded: Loaded, splits_folder: Path) -> None:
    result = run(PROTOCOL, loaded, splits_folder, SMALL)
    tables = {name: pooled(loaded, split, EvalConfig(), None) for name, split in scan_labelled(splits_folder).items()}
    on_test = knn(tables["train"], tables["test"], SMALL.ks)
    on_val = knn(tables["train"], tables["val"], SMALL.ks)
    for name, expected in (("top1", on_test.top1), ("top5", on_test.top5)):
        assert result["metrics"][name] == pytest.approx({str(k): v for k, v in expected.items()}, abs=1e-4)
    assert on_test.top1 != on_val.top1
    assert result["metrics"]["k"] == max(SMALL.ks, key=lambda k: (on_val.top1[k], -k))
    assert result["metrics"]["k_chosen_on"] == "val"
    assert result["data"]["reported_on"] == "test"
    assert {name: part["images"] for name, part in result["data"]["splits"].items()} == {
        "train": 36,
        "val": 15,
        "test": 12,
    }
    assert result["notes"] == ["k = 100: all 36 training images, there are no more"]


def test_floors(loaded: Loaded, splits_folder: Path) -> None:
    splits = scan_labelled(splits_folder)
    floor = run(PROTOCOL, loaded, splits_folder, SMALL)["floor"]
    raw = raw_floor(raw_pixels(splits["train"]), raw_pixels(splits["test"]), SMALL.ks)
    assert floor["raw_pixels"]["top1"] == pytest.approx({str(k): v for k, v in raw.top1.items()}, abs=1e-4)
    assert floor["random_weights"].keys() == {"top1", "top5"}
    assert run(PROTOCOL, loaded, splits_folder, KNNConfig(ks=(1,), floor=False))["floor"] == {}


def test_random_weights_come_from_the_seed(loaded: Loaded, splits_folder: Path) -> None:
    state = torch.get_rng_state()
    floors = [
        run(PROTOCOL, loaded, splits_folder, KNNConfig(ks=(1, 2, 3, 4, 5), seed=s))["floor"] for s in (0, 0, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert floors[0] == floors[1]
    assert any(f["random_weights"] != floors[0]["random_weights"] for f in floors[2:])
    assert all(f["raw_pixels"] == floors[0]["raw_pixels"] for f in floors)


def test_same_seed_same_bytes_wherever_the_data_lies(loaded: Loaded, splits_folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "pets"
    shutil.copytree(splits_folder, moved)
    outs = [tmp_path / "run" / "eval" / f"{name}.json" for name in ("a", "b")]
    result = run(PROTOCOL, loaded, splits_folder, SMALL, outs[0])
    run(PROTOCOL, loaded, moved, KNNConfig(ks=(1, 5, 100), workers=1), outs[1])
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert json.loads(outs[0].read_text()) == json.loads(json.dumps(result))
    assert str(tmp_path) not in outs[0].read_text()
    assert list(result) == ["protocol", "version", "metrics", "floor", "settings", "data", "seed", "notes"]
    times = json.loads(outs[0].with_suffix(".time.json").read_text())
    assert times["seconds"].keys() == {"weights", "floor"}


def test_val_alone_is_reported_and_k_chosen_on_a_tenth_of_train(loaded: Loaded, splits_folder: Path) -> None:
    shutil.rmtree(splits_folder / "test")
    result = run(PROTOCOL, loaded, splits_folder, SMALL)
    assert result["data"]["reported_on"] == "val"
    assert result["metrics"]["k_chosen_on"] == "10 % of train"
    train, val = (pooled(loaded, s, EvalConfig(), None) for s in scan_labelled(splits_folder).values())
    assert result["metrics"]["top1"]["1"] == pytest.approx(knn(train, val, (1,)).top1[1], abs=1e-4)


def test_too_few_images_to_choose_k(loaded: Loaded, splits_folder: Path) -> None:
    shutil.rmtree(splits_folder / "train")
    (splits_folder / "val").rename(splits_folder / "train")
    metrics = run(PROTOCOL, loaded, splits_folder, KNNConfig(ks=(1, 18, 100), floor=False))["metrics"]
    assert (metrics["k"], metrics["k_chosen_on"]) == (18, "nothing")


def test_class_folders_without_splits_leave_one_out(loaded: Loaded, splits_folder: Path) -> None:
    folder = splits_folder / "val"
    for extra in list((folder / "newt").iterdir())[1:]:
        extra.unlink()
    result = run(PROTOCOL, loaded, folder, KNNConfig(ks=(1, 10)))
    table = pooled(loaded, scan_labelled(folder)["all"], EvalConfig(), None)
    expected = leave_one_out(table, (1, 10)).top1
    assert result["metrics"]["top1"] == pytest.approx({str(k): v for k, v in expected.items()}, abs=1e-4)
    assert result["data"]["reported_on"] == "leave one out"
    assert result["data"]["splits"]["all"]["images"] == 11
    assert result["notes"] == ["classes of one image, which can't be right: newt"]


def test_leave_one_out_takes_at_most_5000_images(
    loaded: Loaded, splits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nolabel.evals.classification.knn.MAX_LEAVE_ONE_OUT", 9)
    result = run(PROTOCOL, loaded, splits_folder / "train", KNNConfig(ks=(1,)))
    assert result["data"]["splits"]["all"]["images"] == 9
    assert result["notes"] == ["9 of 36 images, evenly over the classes"]


def test_zip(loaded: Loaded, splits_folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for path in splits_folder.rglob("*.png"):
            archive.write(path, path.relative_to(splits_folder))
    assert run(PROTOCOL, loaded, tmp_path / "pets.zip", SMALL) == run(PROTOCOL, loaded, splits_folder, SMALL)


def test_unreadable_images_are_counted(loaded: Loaded, splits_folder: Path) -> None:
    (splits_folder / "train" / "dog" / "000.png").write_bytes(b"no image")
    splits = run(PROTOCOL, loaded, splits_folder, SMALL)["data"]["splits"]
    assert (splits["train"]["images"], splits["train"]["unreadable"]) == (35, 1)
    assert (splits["test"]["images"], splits["test"]["unreadable"]) == (12, 0)


def test_a_class_that_train_lacks_is_named(loaded: Loaded, splits_folder: Path) -> None:
    for path in (splits_folder / "train" / "newt").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="Classes in val without a readable image in train: newt"):
        run(PROTOCOL, loaded, splits_folder, SMALL)
    shutil.rmtree(splits_folder / "train" / "newt")
    with pytest.raises(DataError, match="in val without a readable image in train: newt"):
        run(PROTOCOL, loaded, splits_folder, SMALL)


def test_no_class_folders(loaded: Loaded, splits_folder: Path) -> None:
    with pytest.raises(DataError):
        run(PROTOCOL, loaded, splits_folder / "train" / "cat", SMALL)


@pytest.mark.parametrize(
    "config",
    [
        KNNConfig(ks=()),
        KNNConfig(ks=(20, 0)),
        KNNConfig(temperature=0),
        KNNConfig(image_size=0),
        KNNConfig(batch_size=0),
        KNNConfig(workers=-1),
    ],
)
def test_bad_settings_are_refused_at_once(loaded: Loaded, config: KNNConfig) -> None:
    with pytest.raises(UsageError, match="must be"):
        run(PROTOCOL, loaded, "nowhere", config)


def test_a_result_that_cannot_be_written(loaded: Loaded, splits_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        run(PROTOCOL, loaded, splits_folder, KNNConfig(ks=(1,), floor=False), tmp_path / "file" / "knn.json")


def test_result_path(loaded: Loaded, splits_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = result_path(folder, "knn", splits_folder)
    assert first == folder / "eval" / "knn.json"
    run(PROTOCOL, loaded, splits_folder, KNNConfig(ks=(1,), floor=False), first)
    assert result_path(folder, "knn", splits_folder) == first
    assert result_path(folder, "knn", tmp_path / "birds.zip") == folder / "eval" / "knn-birds.json"
    first.write_text("{")
    assert result_path(folder, "knn", tmp_path / "birds.zip") == first
    assert data_name("some/where/birds.zip") == data_name("birds/") == "birds"
    assert data_name(splits_folder / "train" / "..") == "pets"


def test_monitor_is_the_protocol(loaded: Loaded, splits_folder: Path) -> None:
    splits = scan_labelled(splits_folder)
    images = monitor_images(splits, loaded.image_size)
    train, val = (
        pooled(loaded, splits["train"], EvalConfig(), None),
        pooled(loaded, splits["val"], EvalConfig(), None),
    )  # val, never test, is watched
    assert monitor(loaded.backbone, images, loaded.mean, loaded.std) == knn(train, val, (20,)).top1[20]
    assert images.raw == raw_floor(raw_pixels(splits["train"]), raw_pixels(splits["val"]), (20,)).top1[20]
    images = monitor_images({"all": splits["train"]}, loaded.image_size)
    assert monitor(loaded.backbone, images, loaded.mean, loaded.std) == leave_one_out(train, (20,)).top1[20]


def test_monitor_of_at_most_so_many_images(splits_folder: Path) -> None:
    splits = scan_labelled(splits_folder)
    images = monitor_images(splits, 16, max_images=9)
    assert images.train.images.shape == (9, 3, 16, 16)
    assert images.train.ids == subset(splits["train"], 9).images.names
    assert images.test is not None
    assert images.test.labels.bincount().tolist() == [3, 3, 3]


def numpy_floor(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    """20-NN of mean-centred pixels in percent, by Pillow, numpy and scikit-learn alone."""
    oracle = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    oracle.fit(train[0] - train[0].mean(0), train[1])
    return float(100 * (oracle.predict(test[0] - train[0].mean(0)) == test[1]).mean())


def test_raw_pixels_of_imagenette(data_packs: Path) -> None:
    """500 and 300 images give 30.0 %; all of them 37.4 % (9,469 and 3,925)."""
    pack = data_packs / "imagenette224" / "imagenette224.zip"
    if not pack.is_file():
        pytest.skip(f"{pack} is absent")
    splits = scan_labelled(pack)
    assert {name: len(s.labels) for name, s in splits.items()} == {"train": 9469, "val": 3925}
    parts = subset(splits["train"], 500), subset(splits["val"], 300)
    tables = [raw_pixels(part) for part in parts]
    arrays = []
    with zipfile.ZipFile(pack) as archive:
        for part in parts:
            files = (archive.open(name) for name in part.images.names)
            images = (Image.open(f).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC) for f in files)
            arrays.append((np.stack([np.asarray(i) for i in images]).reshape(len(part.labels), -1) / 255, part.labels))
    floor = raw_floor(tables[0], tables[1], (20,)).top1[20]
    assert floor == pytest.approx(numpy_floor(*arrays), abs=1)
    assert 25 < floor < 35


def test_raw_pixels_of_cifar10(data_packs: Path, tmp_path: Path) -> None:
    """1,000 and 500 images give 26.6 %; all of them 45.8 % (50,000 and 10,000)."""
    pack = data_packs / "cifar10" / "cifar10_jpeg.npz"
    if not pack.is_file():
        pytest.skip(f"{pack} is absent")
    arrays = np.load(pack)
    for split, count in (("train", 1000), ("test", 500)):  # any prefix of the pack is balanced
        ends, data = arrays[f"{split}_offsets"][: count + 1], arrays[f"{split}_jpeg"]
        for i in range(count):
            folder = tmp_path / split / str(arrays["class_names"][arrays[f"{split}_labels"][i]])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:05d}.jpg").write_bytes(data[ends[i] : ends[i + 1]].tobytes())
    splits = scan_labelled(tmp_path)
    floor = raw_floor(raw_pixels(splits["train"]), raw_pixels(splits["test"]), (20,)).top1[20]
    assert 22 < floor < 32
