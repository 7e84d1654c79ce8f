"""The copy-detection protocol on copies made on the spot, on Copydays' layout, and on real images."""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from nolabel.data.decode import decode
from nolabel.data.demo import world
from nolabel.data.images import scan
from nolabel.errors import DataError, UsageError
from nolabel.evals.protocol import refusal, run
from nolabel.evals.retrieval import descriptors
from nolabel.evals.retrieval.attacks import attack
from nolabel.evals.retrieval.copies import PROTOCOL, CopiesConfig, columns, descriptor_size
from nolabel.evals.retrieval.copydays import copy_set, evenly
from nolabel.evals.retrieval.descriptors import CopyDescriptor, gem
from nolabel.networks.backbones import backbone
from nolabel.weights.load import Loaded

FEW = ("strong", "crops/30", "crops/60", "blur/3")


def render(folder: Path, numbers: range, size: int = 48) -> Path:
    folder.mkdir(parents=True)
    for number in numbers:
        Image.fromarray(world.render(number % 10, number, size)[0]).save(folder / f"{number:06d}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("copies") / "photos", range(12))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("copies") / "others", range(100, 140))


@pytest.fixture
def copydays(tmp_path: Path, photos: Path) -> Path:
    """Copydays' layout and its names: image 2003's second copy is strong/200302.png."""
    folder = tmp_path / "copydays"
    for block in ("original", "strong", "jpegqual/8", "crops/30"):
        (folder / block).mkdir(parents=True)
    for number, path in enumerate(sorted(photos.iterdir())):
        image = decode(path.read_bytes())
        for place, (block, copies) in enumerate({"original": 1, "strong": 2, "jpegqual/8": 1, "crops/30": 1}.items()):
            for copy in range(copies):
                name = f"2{number:03d}{10 * place + copy:02d}.png"
                changed = image if block == "original" else attack(image, block, name, 0)
                Image.fromarray(changed.permute(1, 2, 0).numpy()).save(folder / block / name)
    return folder


def test_copies_made_on_the_spot(loaded: Loaded, photos: Path, others: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "copies.json"
    config = CopiesConfig(distractors=str(others), attacks=FEW, seed=1)
    result = run(PROTOCOL, loaded, photos, config, out)
    assert list(result) == ["protocol", "version", "metrics", "floor", "settings", "data", "seed", "notes"]
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    assert list(result["metrics"]["map"]) == list(FEW)
    mean = sum(result["metrics"]["map"][f"crops/{level}"] for level in (30, 60)) / 2
    assert columns(result["metrics"])["crops"] == pytest.approx(mean, abs=1e-3)
    assert result["floor"].keys() == {"raw_pixels", "color_histogram", "random_weights"}
    assert result["metrics"] != result["floor"]["random_weights"]
    counts = {"num_originals": 12, "num_copies": 48, "num_distractors": 40}
    assert {key: result["data"][key] for key in counts} == counts
    assert result["settings"]["image_size"] == 23 and result["settings"]["distractors"]["name"] == "others"
    (note,) = result["notes"]
    assert note.startswith("not whitened") and str(tmp_path) not in out.read_text()
    with Image.open(out.with_suffix("") / "attacks.png") as sheet:
        assert sheet.width == 5 * 130 + 2 and sheet.height == 8 * 130 + 2


def test_whatever_the_number_of_workers_and_of_images_a_batch(loaded: Loaded, photos: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(photos, tmp_path / "moved" / "photos")
    outs = [tmp_path / f"{name}.json" for name in "ab"]
    run(PROTOCOL, loaded, photos, CopiesConfig(attacks=FEW, floor=False), outs[0])
    run(PROTOCOL, loaded, moved, CopiesConfig(attacks=FEW, floor=False, workers=1, batch_size=7), outs[1])
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert "no distractors" in outs[0].read_text()


def test_copydays(loaded: Loaded, copydays: Path, others: Path, tmp_path: Path) -> None:
    found = copy_set(copydays, 1)
    assert list(found.blocks) == ["strong", "jpegqual/8", "crops/30"] and found.notes == ()
    (copydays / "blurred").mkdir()
    shutil.copy(next((copydays / "strong").iterdir()), copydays / "blurred")
    assert copy_set(copydays, 1).notes == ("1 images outside of original, strong, jpegqual, crops are left out",)
    shutil.rmtree(copydays / "blurred")
    assert found.blocks["strong"].originals == tuple(i for i in range(12) for _ in range(2))
    result = run(PROTOCOL, loaded, copydays, CopiesConfig(distractors=str(others)), tmp_path / "c.json")
    assert result["metrics"]["map"]["original"] == 100.0
    assert list(result["metrics"]["map"]) == ["original", "strong", "jpegqual/8", "crops/30"]
    assert result["data"]["num_copies"] == 12 + 24 + 12 + 12 and result["settings"]["attacks"] is None
    assert result["floor"]["color_histogram"]["map"]["crops/30"] > 50
    assert not (tmp_path / "c").exists()
    with zipfile.ZipFile(tmp_path / "copydays.zip", "w") as archive:
        for path in sorted(copydays.rglob("*.png")):
            archive.write(path, f"copydays/{path.relative_to(copydays)}")
    zipped = run(PROTOCOL, loaded, tmp_path / "copydays.zip", CopiesConfig(distractors=str(others)))
    assert zipped["metrics"] == result["metrics"] and zipped["floor"] == result["floor"]


def test_a_copy_is_matched_with_its_own_original(loaded: Loaded, copydays: Path) -> None:
    """Copies without any change give 100 %, and those of the next image don't: who belongs to whom is read right."""
    for path in (copydays / "strong").iterdir():
        shutil.copy(copydays / "original" / f"{path.name[:4]}00.png", path)
    right = run(PROTOCOL, loaded, copydays, CopiesConfig(floor=False))["metrics"]["map"]["strong"]
    for path in (copydays / "strong").iterdir():
        shutil.copy(copydays / "original" / f"2{(int(path.name[1:4]) + 1) % 12:03d}00.png", path)
    wrong = run(PROTOCOL, loaded, copydays, CopiesConfig(floor=False))["metrics"]["map"]["strong"]
    assert right == 100 > 50 > wrong


def test_names_that_do_not_give_the_original(loaded: Loaded, copydays: Path) -> None:
    for i, path in enumerate(sorted((copydays / "crops" / "30").iterdir())):
        path.rename(path.with_name(f"x{i:04d}.png"))
    found = copy_set(copydays, 1)
    assert found.blocks["crops/30"].originals == tuple(range(12))
    assert found.notes == ("crops/30: names do not give the original, so both were taken in sorted order",)
    next((copydays / "crops" / "30").iterdir()).unlink()
    with pytest.raises(DataError, match="11 copies of 12 originals"):
        run(PROTOCOL, loaded, copydays, CopiesConfig())
    shutil.rmtree(copydays / "crops")
    for path in (copydays / "original").iterdir():
        path.rename(path.with_name(f"IMG_{path.name}"))  # the same first four characters
    for path in (copydays / "strong").iterdir():
        path.rename(path.with_name(f"IMG_{path.name}"))
    with pytest.raises(DataError, match="strong/ holds 24 copies of 12 originals"):
        run(PROTOCOL, loaded, copydays, CopiesConfig())


def test_images_that_cannot_be_read(loaded: Loaded, copydays: Path, photos: Path, tmp_path: Path) -> None:
    (copydays / "strong" / "200010.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 images of the set cannot be read, such as strong/200010\.png"):
        run(PROTOCOL, loaded, copydays, CopiesConfig())
    some = shutil.copytree(photos, tmp_path / "some")
    (some / "000000.png").write_bytes(b"no image")
    result = run(PROTOCOL, loaded, some, CopiesConfig(attacks=("crops/10",), floor=False))
    assert result["data"]["num_originals"] == 11 and "1 originals cannot be read and are left out" in result["notes"]
    for path in some.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="None of the 12 images"):
        run(PROTOCOL, loaded, some, CopiesConfig())


def test_masks_beside_images_are_no_originals(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "pack" / "images" / "train")
    shutil.copytree(photos, tmp_path / "pack" / "semantic" / "train")
    assert len(copy_set(tmp_path / "pack", 100).originals.names) == 12


def test_every_attack_is_measured_on_its_own_copies(loaded: Loaded, photos: Path) -> None:
    orders = [("crops/60", "strong"), ("strong", "crops/60"), ("strong",)]
    found = [run(PROTOCOL, loaded, photos, CopiesConfig(attacks=o))["floor"]["color_histogram"]["map"] for o in orders]
    assert found[0] == found[1] and found[2]["strong"] == found[0]["strong"] < 100


def test_a_subset_is_even_and_reported(photos: Path, loaded: Loaded) -> None:
    assert [name[:6] for name in evenly(scan(photos), 4).names] == ["000000", "000003", "000006", "000009"]
    result = run(PROTOCOL, loaded, photos, CopiesConfig(max_originals=5, attacks=("blur/1",), floor=False))
    assert result["data"]["num_originals"] == 5
    assert "5 of 12 images, evenly over their order" in result["notes"]


def test_whitening(loaded: Loaded, photos: Path, others: Path) -> None:
    results = [
        run(PROTOCOL, loaded, photos, CopiesConfig(attacks=FEW, whiten=whiten, whiten_centered=centered))
        for whiten, centered in ((None, False), (str(others), False), (str(others), True))
    ]
    assert len({json.dumps(r["metrics"]) for r in results}) == 3
    assert len({json.dumps(r["floor"]["raw_pixels"]) for r in results}) == 1
    assert results[1]["settings"]["whiten"]["images"] == 40
    assert not any("not whitened" in note for note in results[1]["notes"])
    assert "whitening from 40 images for 128 dimensions: take more of them" in results[1]["notes"]


def test_kept_descriptors_give_the_same_bytes(
    loaded: Loaded, photos: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time no image is read; other attacks, seeds and sizes have descriptors of their own."""
    monkeypatch.setenv("NOLABEL_CACHE", str(tmp_path / "kept"))
    config = CopiesConfig(attacks=FEW, distractors=str(others), whiten=str(others))
    plain, first, again = (tmp_path / f"{name}.json" for name in ("plain", "first", "again"))
    run(PROTOCOL, loaded, photos, dataclasses.replace(config, cache=False), plain)
    assert not (tmp_path / "kept").exists()
    run(PROTOCOL, loaded, photos, config, first)
    changed = [{"seed": 5}, {"image_size": 30}, {"attacks": FEW[::-1]}]
    expected = [
        run(PROTOCOL, loaded, photos, dataclasses.replace(config, cache=False, **c))["metrics"] for c in changed
    ]
    found = [run(PROTOCOL, loaded, photos, dataclasses.replace(config, **c))["metrics"] for c in changed]
    assert found == expected
    with monkeypatch.context() as patch:
        patch.setattr(descriptors, "prepared", None)
        run(PROTOCOL, loaded, photos, config, again)
        with pytest.raises(TypeError):
            run(PROTOCOL, loaded, photos, dataclasses.replace(config, seed=6))
    assert plain.read_bytes() == first.read_bytes() == again.read_bytes()


def test_the_descriptor(loaded: Loaded) -> None:
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, found = loaded.backbone(x), CopyDescriptor(loaded.backbone)(x).pooled
    slow = [
        [sum(max(float(v), 1e-6) ** 4 for v in column) / len(column) for column in image.T]
        for image in features.patches
    ]
    torch.testing.assert_close(found, torch.cat([features.pooled, torch.tensor(slow) ** 0.25], 1))
    assert gem(torch.full((1, 3, 2), -5.0)).flatten().tolist() == pytest.approx([1e-6, 1e-6])


def test_the_size_follows_the_weights(loaded: Loaded) -> None:
    assert descriptor_size(loaded._replace(image_size=224)) == 320
    vit = backbone("vit_tiny_patch16_224", {"embed_dim": 32, "depth": 1, "num_heads": 2})
    assert descriptor_size(loaded._replace(backbone=vit, image_size=224)) == 320
    assert descriptor_size(loaded._replace(backbone=vit, image_size=128)) == 176


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"attacks": ("smudge",)}, "no attack 'smudge'"),
        ({"max_originals": 0}, "max_originals must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_wrong_settings(loaded: Loaded, photos: Path, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(PROTOCOL, loaded, photos, CopiesConfig(**setting))
    with pytest.raises(UsageError, match="every original would be found twice"):
        run(PROTOCOL, loaded, photos, CopiesConfig(distractors=f"{photos}/"))


def test_accepts_any_images(photos: Path, copydays: Path, tmp_path: Path) -> None:
    assert refusal(PROTOCOL, photos) is None and refusal(PROTOCOL, copydays) is None
    assert "does not exist" in (refusal(PROTOCOL, tmp_path / "gone") or "")


def test_real_images(loaded: Loaded, data_packs: Path) -> None:
    coco, nette = data_packs / "dense" / "coco256.zip", data_packs / "imagenette224" / "imagenette224.zip"
    if not (coco.is_file() and nette.is_file()):
        pytest.skip(f"{coco} or {nette} is not there")
    config = CopiesConfig(max_originals=8, distractors=str(nette), max_distractors=24, attacks=("strong", "crops/30"))
    result = run(PROTOCOL, loaded._replace(image_size=45), coco, config)
    assert result["data"] | {"fingerprint": ""} == {
        "name": "coco256",
        "num_originals": 8,
        "num_copies": 16,
        "num_distractors": 24,
        "fingerprint": "",
    }
    colors = result["floor"]["color_histogram"]["map"]
    assert colors["crops/30"] > 90 > colors["strong"]
    assert 0 < result["metrics"]["map"]["strong"] < result["metrics"]["map"]["crops/30"]
