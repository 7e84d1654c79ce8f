"""`nolabel embed`: what stands in the file, for labelled and for plain images."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nolabel.cli import main
from nolabel.data.images import scan, scan_labelled
from nolabel.errors import UsageError
from nolabel.evals.embed import embed_images
from nolabel.evals.protocol import EvalConfig
from nolabel.evals.shared.cache import pooled
from nolabel.evals.shared.pieces import Layout
from nolabel.weights.load import Loaded

CONFIG = EvalConfig()


def test_npz_of_plain_images(loaded: Loaded, splits_folder: Path, tmp_path: Path) -> None:
    (splits_folder / "train" / "cat" / "000.png").write_bytes(b"")
    (splits_folder / "loose.png").write_bytes((splits_folder / "train" / "cat" / "001.png").read_bytes())
    done = embed_images(loaded, splits_folder, tmp_path / "f.npz", Layout(), CONFIG)
    assert done == (tmp_path / "f.npz", 63, 1, 64)
    arrays = np.load(tmp_path / "f.npz")  # pickle is not allowed by default
    assert set(arrays) == {"features", "ids", "about"}
    names = scan(splits_folder).names
    assert arrays["ids"].tolist() == [name for name in names if name != "train/cat/000.png"]
    row = arrays["ids"].tolist().index("train/dog/003.png")
    splits = scan_labelled(splits_folder)
    table = pooled(loaded, splits["train"], EvalConfig(), None)
    expected = table.features[table.ids.index("train/dog/003.png")]
    torch.testing.assert_close(torch.from_numpy(arrays["features"][row]), expected)
    about = json.loads(str(arrays["about"]))
    assert (about["backbone"], about["image_size"], about["blocks"]) == ("resnet18", 16, 1)
    again = embed_images(loaded, splits_folder, tmp_path / "g.npz", Layout(), CONFIG)
    assert again.path.read_bytes() == done.path.read_bytes()
    assert str(tmp_path) not in str(arrays["about"])


def test_npz_with_labels(loaded: Loaded, splits_folder: Path, tmp_path: Path) -> None:
    embed_images(loaded, splits_folder, tmp_path / "f.npz", Layout(), CONFIG, labelled=True)
    arrays = np.load(tmp_path / "f.npz")
    assert arrays["classes"].tolist() == ["cat", "dog", "newt"]
    for name, split, label in zip(arrays["ids"], arrays["split"], arrays["label"], strict=True):
        assert name.split("/")[:2] == [split, arrays["classes"][label]]
    assert len(arrays["ids"]) == 63


@pytest.mark.parametrize("labelled", [False, True])
def test_parquet(labelled: bool, loaded: Loaded, splits_folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("f.npz", "f.parquet"):
        embed_images(loaded, splits_folder, tmp_path / name, Layout(), CONFIG, labelled=labelled)
    arrays, table = np.load(tmp_path / "f.npz"), parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["ids", *(["split", "class"] if labelled else []), "features"]
    assert table["ids"].to_pylist() == arrays["ids"].tolist()
    assert np.array_equal(np.array(table["features"].to_pylist(), dtype=np.float32), arrays["features"])
    assert json.loads(table.schema.metadata[b"nolabel"]) == json.loads(str(arrays["about"]))
    if labelled:
        assert table["class"].to_pylist() == arrays["classes"][arrays["label"]].tolist()


def test_without_pyarrow(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'nolabel\[parquet\]'"):
        embed_images(loaded, tmp_path, tmp_path / "f.parquet", Layout(), CONFIG)


def test_the_command(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "f.npz"
    arguments = ["embed", "random:resnet18", str(pictures / "val"), "--out", str(out), "--image-size", "32"]
    main.main(arguments)
    assert capsys.readouterr().out == f"{out}: 12 images, 512 numbers each\n"
    for extra, message in (([], "exists: choose another --out"), (["--out", "f.csv"], "must end in .npz or .parquet")):
        with pytest.raises(SystemExit) as left:
            main.main([*arguments, *extra])
        assert left.value.code == 2
        assert message in capsys.readouterr().err
    main.main([*arguments, "--overwrite"])
