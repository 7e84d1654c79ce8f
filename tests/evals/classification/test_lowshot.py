"""The low-shot protocol: which images are learned from, what chooses the regularisation, lists of names."""

import json
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from nolabel.data.images import scan_labelled
from nolabel.errors import DataError, UsageError
from nolabel.evals.classification.logistic import center_rows
from nolabel.evals.classification.lowshot import PROTOCOL, LowshotConfig, columns
from nolabel.evals.classification.shots import draw_rows, read_list
from nolabel.evals.protocol import EvalConfig, format_result, run
from nolabel.evals.shared.cache import pooled
from nolabel.weights.load import Loaded

ONE = LowshotConfig(shots=(1, 5), fractions=(), strengths=(0.1,), floor=False)


def test_the_result(loaded: Loaded, splits_folder: Path, tmp_path: Path) -> None:
    config = LowshotConfig(fractions=(0.01, 0.25), strengths=(0.1, 1.0))
    files = [tmp_path / f"{i}.json" for i in range(2)]
    result = run(PROTOCOL, loaded, splits_folder, config, files[0])
    run(PROTOCOL, loaded, shutil.copytree(splits_folder, tmp_path / "there" / "pets"), config, files[1])
    assert files[0].read_bytes() == files[1].read_bytes()
    assert json.loads(files[0].read_text()) == json.loads(json.dumps(result))
    assert list(result) == ["protocol", "version", "metrics", "floor", "settings", "data", "seed", "notes"]
    assert list(result["metrics"]) == ["1 img", "2 img", "5 img", "25 %"]
    assert result["notes"] == ["1 % skipped: 0 images for 3 classes"]
    assert [case["images"] for case in result["metrics"].values()] == [[3] * 3, [6] * 3, [15] * 3, [9] * 3]
    assert result["settings"]["strength_chosen_on"] == "val"
    assert {name: list(found) for name, found in result["floor"].items()} == {
        "raw_pixels": list(result["metrics"]),
        "random_weights": list(result["metrics"]),
    }
    case = result["metrics"]["5 img"]
    assert case["top1"] == pytest.approx(statistics.fmean(case["splits"]), abs=1e-3)
    assert case["std"] == pytest.approx(statistics.stdev(case["splits"]), abs=1e-3)
    assert case["strength"] == max(case["sweep"], key=lambda s: (s["chosen_by"], s["strength"]))["strength"]
    assert "±" in str(columns(result["metrics"])["1 img"])
    assert "5 img" in format_result(result, PROTOCOL)


@pytest.mark.parametrize("preprocess", ["center", "unit"])
def test_it_is_logistic_regression_of_scikit_learn(loaded: Loaded, splits_folder: Path, preprocess: str) -> None:
    config = LowshotConfig(shots=(5,), fractions=(), strengths=(0.1,), preprocess=preprocess, floor=False, splits=2)  # type: ignore[arg-type]
    found = run(PROTOCOL, loaded, splits_folder, config)["metrics"]["5 img"]["splits"]
    splits = scan_labelled(splits_folder)
    train, test = (
        pooled(loaded, splits["train"], EvalConfig(), None),
        pooled(loaded, splits["test"], EvalConfig(), None),
    )

    def ready(x: torch.Tensor) -> torch.Tensor:
        return center_rows(x.double()) if preprocess == "center" else torch.nn.functional.normalize(x.double())

    for split in range(2):
        rows = draw_rows(train.labels, 15, 0, split)
        oracle = LogisticRegression(C=10, fit_intercept=False, tol=1e-9, max_iter=10_000)
        oracle.fit(ready(train.features[rows]).numpy(), train.labels[rows].numpy())
        expected = 100 * oracle.score(ready(test.features).numpy(), test.labels.numpy())
        assert found[split] == pytest.approx(expected, abs=1e-3)


def test_val_alone_is_reported_and_a_tenth_of_train_decides(loaded: Loaded, splits_folder: Path) -> None:
    """The images that decide are not learned from."""
    shutil.rmtree(splits_folder / "test")
    result = run(
        PROTOCOL, loaded, splits_folder, LowshotConfig(shots=(12,), fractions=(), strengths=(0.1, 1.0), floor=False)
    )
    assert result["settings"]["strength_chosen_on"] == "10 % of train"
    assert result["data"]["reported_on"] == "val"
    assert result["metrics"]["12 img"]["images"] == [33] * 3  # eleven of twelve in each class
    assert result["notes"] == ["12 img: classes with fewer images give all they have"]
    alone = LowshotConfig(shots=(12,), fractions=(), strengths=(0.1,), floor=False)
    result = run(PROTOCOL, loaded, splits_folder, alone)
    assert result["metrics"]["12 img"]["images"] == [36] * 3
    assert result["settings"]["strength_chosen_on"] == "nothing"


def test_draws_are_nested_balanced_and_different() -> None:
    labels = torch.arange(1000) % 7
    draws = {n: draw_rows(labels, n, 0, 0) for n in (7, 14, 20, 100)}
    for small, large in ((7, 14), (14, 20), (20, 100)):
        assert set(draws[small].tolist()) < set(draws[large].tolist())
    for n, rows in draws.items():
        counts = labels[rows].bincount(minlength=7)
        assert len(set(rows.tolist())) == n == counts.sum()
        assert counts.max() - counts.min() <= 1
    assert not torch.equal(draws[100], draw_rows(labels, 100, 0, 1))
    assert not torch.equal(draws[100], draw_rows(labels, 100, 1, 0))
    assert torch.equal(draws[100], draw_rows(labels, 100, 0, 0))


def test_one_percent_of_imagenet_has_the_published_form() -> None:
    """12,811 images: 811 classes of 13 and 189 of 12 (here 1,000 classes of 1,281 or 1,282 images)."""
    labels = torch.arange(1_281_167) % 1000
    amount = int(0.01 * len(labels))
    counts = labels[draw_rows(labels, amount, 0, 0)].bincount()
    assert amount == 12_811
    assert counts.bincount(minlength=14)[12:].tolist() == [189, 811]


def test_a_class_with_few_images_gives_all_it_has() -> None:
    labels = torch.tensor([0] * 50 + [1])
    assert labels[draw_rows(labels, 10, 0, 0)].bincount().tolist() == [5, 1]


IDS = ("train/n01/n01_1.webp", "train/n01/n01_2.webp", "train/n02/n02_1.webp", "train/n02/x.y.webp")


@pytest.mark.parametrize(
    "lines",
    [
        ["train/n01/n01_2.webp", "train/n02/n02_1.webp"],
        ["n01/n01_2.webp", "n02/n02_1.webp"],
        ["n01_2.JPEG", "n02_1.JPEG"],  # the lists of 1 % of ImageNet, beside converted images
        ["n02_1", "n01_2", ""],
    ],
)
def test_lists_of_names(lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n".join(lines))
    assert read_list(tmp_path / "list.txt", IDS).tolist() == [1, 2]


def test_dots_in_names(tmp_path: Path) -> None:
    for line in ("x.y", "x.y.webp", "x.y.JPEG"):
        (tmp_path / "list.txt").write_text(line)
        assert read_list(tmp_path / "list.txt", IDS).tolist() == [3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01_1.JPEG\nn09_1.JPEG", "names that train lacks: n09_1.JPEG"),
        ("n01_1.JPEG\ntrain/n01/n01_1.webp", "names an image twice: train/n01/n01_1.webp"),
        ("\n", "names no image"),
        ("1.webp", "names that train lacks"),
    ],
)
def test_bad_lists(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_list(tmp_path / "list.txt", IDS)
    with pytest.raises(DataError, match=r"names that fit several images of train: 1\.jpg"):
        (tmp_path / "list.txt").write_text("1.jpg")
        read_list(tmp_path / "list.txt", ("train/a/1.jpg", "train/b/1.jpg"))
    with pytest.raises(DataError, match="cannot be read"):
        read_list(tmp_path / "none.txt", IDS)


def test_files_are_splits(loaded: Loaded, splits_folder: Path, tmp_path: Path) -> None:
    paths = []
    for i in range(2):
        paths.append(tmp_path / f"set{i}.txt")
        paths[i].write_text("\n".join(f"{c}/{j:03d}.png" for c in ("cat", "dog", "newt") for j in range(i, i + 3)))
    result = run(PROTOCOL, loaded, splits_folder, LowshotConfig(files=tuple(paths), strengths=(0.1, 1.0), floor=False))
    assert list(result["metrics"]) == ["files"]
    assert result["metrics"]["files"]["images"] == [9, 9]
    assert result["settings"]["files"] == ["set0.txt", "set1.txt"]
    paths[0].write_text("cat/000.png\ndog/000.png")
    with pytest.raises(DataError, match=r"set0\.txt names no image of 1 classes of train: newt"):
        run(PROTOCOL, loaded, splits_folder, LowshotConfig(files=tuple(paths), strengths=(0.1, 1.0), floor=False))


def test_what_cannot_be_measured(loaded: Loaded, splits_folder: Path) -> None:
    with pytest.raises(DataError, match="Expected train/ with val/ or test/"):
        run(PROTOCOL, loaded, splits_folder / "train", ONE)
    for settings, message in (
        ({"shots": (0,)}, "from 1 up"),
        ({"fractions": (1.5,)}, "at most 1"),
        ({"splits": 0}, "from 1 up"),
        ({"strengths": (-1.0,)}, "above 0"),
        ({"strengths": ()}, "above 0"),
        ({"shots": (), "fractions": ()}, "nothing to learn from"),
        ({"preprocess": "centre"}, "use one of center"),
        ({"before_norm": True}, "no plain ViT"),
        ({"blocks": 2}, "not 2"),
    ):
        with pytest.raises(UsageError, match=message):
            run(PROTOCOL, loaded, splits_folder, LowshotConfig(**settings))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="Nothing is left to measure: 1 % skipped"):
        run(PROTOCOL, loaded, splits_folder, LowshotConfig(shots=(), fractions=(0.01,)))


def test_nothing_to_choose_the_regularisation_on(loaded: Loaded, splits_folder: Path) -> None:
    shutil.rmtree(splits_folder / "test")
    for path in (splits_folder / "train").rglob("*.png"):
        if path.name != "000.png":
            path.unlink()
    with pytest.raises(DataError, match=r"--strengths 0\.075"):
        run(PROTOCOL, loaded, splits_folder, LowshotConfig(shots=(1,), fractions=(), floor=False))
    assert run(PROTOCOL, loaded, splits_folder, ONE)["metrics"]["1 img"]["images"] == [3, 3, 3]
