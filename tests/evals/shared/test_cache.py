"""Kept features: the same numbers, found only where everything that decides them is the same."""

import copy
import dataclasses
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nolabel.data.images import LabelledImages, scan_labelled
from nolabel.evals.classification.knn import PROTOCOL, KNNConfig
from nolabel.evals.protocol import EvalConfig, cache_folder, run
from nolabel.evals.shared import cache
from nolabel.evals.shared.cache import features, pooled, stamp
from nolabel.evals.shared.pieces import POOLED, Layout, pieces_of
from nolabel.weights.load import Loaded

CONFIG = EvalConfig()


@pytest.fixture
def train(splits_folder: Path) -> LabelledImages:
    return scan_labelled(splits_folder)["train"]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number a pass over the images: how many there were."""
    seen: list[int] = []
    original = cache._extract

    def counted(loaded: Loaded, labelled: LabelledImages, pieces: object, config: EvalConfig) -> object:
        seen.append(len(labelled.labels))
        return original(loaded, labelled, pieces, config)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "_extract", counted)
    return seen


def test_the_same_numbers(loaded: Loaded, train: LabelledImages, tmp_path: Path, passes: list[int]) -> None:
    Path(train.images.root, train.images.names[3]).write_bytes(b"")
    expected = pooled(loaded, train, CONFIG, None)
    assert passes == [36]
    for _ in range(2):
        table = features(loaded, train, [POOLED], CONFIG, tmp_path / "kept").table([POOLED])
        assert torch.equal(table.features, expected.features)
        assert torch.equal(table.labels, expected.labels)
        assert table.ids == expected.ids
    assert passes == [36, 36]
    assert len(expected.ids) == 35
    assert [p.suffix for p in (tmp_path / "kept").iterdir()] == [".safetensors"]


def test_the_same_result(loaded: Loaded, splits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLABEL_CACHE", str(tmp_path / "kept"))
    files = [tmp_path / f"{i}.json" for i in range(3)]
    for file, kept in zip(files, (False, True, True), strict=True):
        run(PROTOCOL, loaded, splits_folder, KNNConfig(ks=(1, 5), cache=kept), file)
        assert (tmp_path / "kept").exists() == kept
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()


def test_what_decides_the_numbers_decides_the_file(
    loaded: Loaded, train: LabelledImages, tmp_path: Path, passes: list[int]
) -> None:
    def ask(loaded: Loaded = loaded, labelled: LabelledImages = train, **settings: object) -> None:
        features(loaded, labelled, [POOLED], dataclasses.replace(CONFIG, **settings), tmp_path / "kept")  # type: ignore[arg-type]

    ask()
    other = copy.deepcopy(loaded.backbone)
    next(other.parameters()).data += 0.1
    ask(loaded._replace(backbone=other))  # its fingerprint is that of the file it came from
    ask(loaded._replace(mean=(0.4, 0.5, 0.5)))
    ask(loaded._replace(interpolation="bilinear"))
    ask(image_size=32)
    ask(precision="bf16")
    ask(batch_size=7)
    fewer = train._replace(images=train.images._replace(names=train.images.names[:9]), labels=train.labels[:9])
    ask(labelled=fewer)
    assert passes == [36] * 7 + [9]
    ask()
    ask(seed=3, workers=1, floor=False)  # none of these is a matter of features
    ask(loaded._replace(name="elsewhere"))
    assert len(passes) == 8


def test_an_edited_image_is_noticed(loaded: Loaded, train: LabelledImages, tmp_path: Path, passes: list[int]) -> None:
    """Even where its size stays the same."""
    path = Path(train.images.root, train.images.names[0]).with_suffix(".bmp")
    Image.new("RGB", (20, 20), (200, 0, 0)).save(path)
    train = train._replace(
        images=train.images._replace(names=(train.images.names[0][:-3] + "bmp", *train.images.names[1:]))
    )
    before = features(loaded, train, [POOLED], CONFIG, tmp_path / "kept")
    size = path.stat().st_size
    Image.new("RGB", (20, 20), (0, 0, 200)).save(path)
    assert path.stat().st_size == size
    after = features(loaded, train, [POOLED], CONFIG, tmp_path / "kept")
    assert len(passes) == 2
    assert not torch.equal(before.pieces[POOLED][0], after.pieces[POOLED][0])


def test_the_stamp_of_a_zip_is_that_of_its_content(splits_folder: Path, tmp_path: Path) -> None:
    stamps = []
    for name, day in (("a", 1), ("b", 2)):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for path in sorted(splits_folder.rglob("*.png")):
                data = path.read_bytes()
                archive.writestr(zipfile.ZipInfo(str(path.relative_to(splits_folder)), (2026, 1, day, 0, 0, 0)), data)
        stamps.append(stamp(scan_labelled(tmp_path / f"{name}.zip")["train"].images))
    assert stamps[0] == stamps[1]
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for path in sorted(splits_folder.rglob("*.png")):
            data = path.read_bytes()
            archive.writestr(str(path.relative_to(splits_folder)), data[:-1] + bytes([data[-1] ^ 1]))
    assert stamp(scan_labelled(tmp_path / "c.zip")["train"].images) != stamps[0]


def test_a_moved_folder_is_the_same(splits_folder: Path, tmp_path: Path) -> None:
    before = stamp(scan_labelled(splits_folder)["train"].images)
    assert stamp(scan_labelled(splits_folder.rename(tmp_path / "moved"))["train"].images) == before


def test_only_what_is_missing_is_computed(
    loaded: Loaded, train: LabelledImages, tmp_path: Path, passes: list[int]
) -> None:
    from nolabel.networks.backbones import backbone

    args = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    vit = loaded._replace(backbone=backbone("vit_tiny_patch16_224", args).eval())
    wanted = pieces_of(vit.backbone, Layout(3))
    features(vit, train, wanted, CONFIG, tmp_path)  # linear
    features(vit, train, [POOLED], CONFIG, tmp_path)  # k-NN finds its own
    assert passes == [36]
    table = features(vit, train, pieces_of(vit.backbone, Layout(1, True)), CONFIG, tmp_path)
    assert passes == [36, 36]
    assert set(table.pieces) == set(pieces_of(vit.backbone, Layout(1, True)))
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


def test_damaged_files_are_made_again(loaded: Loaded, train: LabelledImages, tmp_path: Path, passes: list[int]) -> None:
    first = features(loaded, train, [POOLED], CONFIG, tmp_path / "kept")
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    again = features(loaded, train, [POOLED], CONFIG, tmp_path / "kept")
    assert len(passes) == 2
    assert torch.equal(first.pieces[POOLED], again.pieces[POOLED])
    features(loaded, train, [POOLED], CONFIG, tmp_path / "kept")
    assert len(passes) == 2


def test_a_folder_that_cannot_be_written_costs_only_time(
    loaded: Loaded, train: LabelledImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    table = features(loaded, train, [POOLED], CONFIG, tmp_path / "file" / "kept")
    assert len(table.ids) == 36
    assert "features are not kept" in capsys.readouterr().err


def test_what_was_used_longest_ago_makes_room(
    loaded: Loaded, train: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    sizes = (16, 24, 32)
    for age, size in enumerate(sizes[:2]):
        features(loaded, train, [POOLED], dataclasses.replace(CONFIG, image_size=size), tmp_path)
        for file in tmp_path.glob("*.safetensors"):
            if file.stat().st_mtime > 10**9:
                os.utime(file, (age + 1, age + 1))
    monkeypatch.setattr(cache, "MAX_BYTES", 2 * max(f.stat().st_size for f in tmp_path.iterdir()))
    features(loaded, train, [POOLED], dataclasses.replace(CONFIG, image_size=16), tmp_path)  # used just now
    features(loaded, train, [POOLED], dataclasses.replace(CONFIG, image_size=32), tmp_path)
    assert len(passes) == 3
    for size, expected in ((16, 3), (32, 3), (24, 4)):
        features(loaded, train, [POOLED], dataclasses.replace(CONFIG, image_size=size), tmp_path)
        assert len(passes) == expected


def test_where_features_are_kept(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOLABEL_CACHE", str(tmp_path / "mine"))
    assert cache_folder(loaded, CONFIG) == tmp_path / "mine"
    assert cache_folder(loaded, EvalConfig(cache=False)) is None
    monkeypatch.delenv("NOLABEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder(loaded, CONFIG) == tmp_path / "user" / "nolabel"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    assert cache_folder(loaded._replace(name=str(tmp_path / "run")), CONFIG) == tmp_path / "run" / "eval" / "cache"


def turn_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def swap_for_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def swap_for_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


STRANGE: dict[str, Callable[[Path], object]] = {
    "a bit turned": turn_a_bit,
    "a pipe": swap_for_pipe,
    "a link": swap_for_link,
    "other names": lambda path: cache._save({path: {"a": torch.zeros(3)}}),
    "no hash": lambda path: save_file({"features": torch.zeros(36, 32), "rows": torch.arange(36)}, path),
    "rows beyond": lambda path: cache._save({path: {"features": torch.zeros(2, 32), "rows": torch.tensor([0, 36])}}),
    "rows below": lambda path: cache._save({path: {"features": torch.zeros(1, 32), "rows": torch.tensor([-1])}}),
    "fewer rows": lambda path: cache._save({path: {"features": torch.zeros(9, 32), "rows": torch.arange(8)}}),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_strange_files_are_not_used(
    strange: str, loaded: Loaded, train: LabelledImages, tmp_path: Path, passes: list[int]
) -> None:
    expected = pooled(loaded, train, CONFIG, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    STRANGE[strange](path)
    table = pooled(loaded, train, CONFIG, tmp_path)
    assert passes == [36, 36] and torch.equal(table.features, expected.features) and table.ids == expected.ids
    pooled(loaded, train, CONFIG, tmp_path)
    assert passes == [36, 36] and not path.is_symlink()


def test_files_of_others_make_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_BYTES", 300)
    names = ("model.safetensors", f"{'0' * 24}.safetensors", "notes.txt", "x" * 24 + "-pooled0.safetensors")
    for name in names:
        (tmp_path / name).write_bytes(bytes(400))
    (tmp_path / f"{'0' * 24}-pooled0.safetensors").write_bytes(bytes(200))
    cache._save({tmp_path / f"{'1' * 24}-pooled0.safetensors": {"features": torch.zeros(50), "rows": torch.zeros(1)}})
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names, f"{'1' * 24}-pooled0.safetensors"])
