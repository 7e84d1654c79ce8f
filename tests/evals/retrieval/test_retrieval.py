"""The retrieval protocol on a small made-up ground truth, on what can be wrong with one, and on real images."""

import dataclasses
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nolabel.data.demo import world
from nolabel.errors import DataError, UsageError
from nolabel.evals.protocol import refusal, run
from nolabel.evals.retrieval import descriptors
from nolabel.evals.retrieval.descriptors import MultiScale, color_histogram, whole_patches
from nolabel.evals.retrieval.groundtruth import ground_truth
from nolabel.evals.retrieval.retrieval import PROTOCOL, RetrievalConfig, columns, cut, thumbnail
from nolabel.networks.backbones import Backbone, backbone
from nolabel.weights.load import Loaded

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Pictures of four things each: 0 is the query, 1 is junk, 2 and 3 are easy, 4 and 5 hard."""
    folder = tmp_path / "scenes"
    (folder / "jpg").mkdir(parents=True)
    gnd: dict[str, Any] = {"imlist": [], "qimlist": [], "gnd": []}
    for thing in range(4):
        pictures = [world.render(thing, 100 * thing + number, 32) for number in range(6)]
        for number, (picture, _) in enumerate(pictures):
            Image.fromarray(picture).save(folder / "jpg" / f"{thing}_{number}.png")
        rows, columns = np.nonzero(pictures[0][1])
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        start = len(gnd["imlist"])
        gnd["imlist"] += [f"{thing}_{number}" for number in range(1, 6)]
        gnd["qimlist"].append(f"{thing}_0")
        kinds = {"junk": [start], "easy": [start + 1, start + 2], "hard": [start + 3, start + 4]}
        gnd["gnd"].append({"bbx": list(map(float, box)), **kinds})
    (folder / "gnd.json").write_text(json.dumps(gnd))
    return folder


def change(folder: Path, how: Change) -> None:
    gnd = json.loads((folder / "gnd.json").read_text())
    how(gnd)
    (folder / "gnd.json").write_text(json.dumps(gnd))


def test_the_result(loaded: Loaded, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "retrieval.json"
    result = run(PROTOCOL, loaded, scenes, RetrievalConfig(image_size=32, seed=1), out)
    assert list(result) == ["protocol", "version", "metrics", "floor", "settings", "data", "seed", "notes"]
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    assert result["metrics"].keys() == {"easy", "medium", "hard"}
    assert result["floor"].keys() == {"raw_pixels", "color_histogram", "random_weights"}
    assert result["metrics"] != result["floor"]["random_weights"]
    assert result["data"]["num_queries"] == 4 and result["data"]["num_database"] == 20
    assert columns(result["metrics"]).keys() == {"mAP easy", "mAP medium", "mAP hard", "mP@10 medium"}
    assert str(tmp_path) not in out.read_text()


def test_a_network_that_sees_the_thing_finds_everything(loaded: Loaded, scenes: Path) -> None:
    """Features made of the thing's number give 100 %: nothing is lost on the way from files to metrics."""
    for path in (scenes / "jpg").iterdir():
        Image.new("RGB", (32, 24), {"0": "red", "1": "lime", "2": "blue", "3": "white"}[path.name[0]]).save(path)
    result = run(PROTOCOL, loaded, scenes, RetrievalConfig())
    perfect = {"map": 100.0, "mp": {"1": 100.0, "5": 100.0, "10": 100.0}}
    assert result["floor"]["color_histogram"] == dict.fromkeys(("easy", "medium", "hard"), perfect)


def test_levels_and_junk(scenes: Path) -> None:
    truths = ground_truth(scenes).truths
    assert truths["easy"][1] == ([6, 7], [5, 8, 9])
    assert truths["medium"][1] == ([6, 7, 8, 9], [5])
    assert truths["hard"][1] == ([8, 9], [5, 6, 7])


def test_a_zip_in_a_folder_of_its_own(loaded: Loaded, scenes: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scenes.zip", "w") as archive:
        for path in sorted(scenes.rglob("*.*")):
            archive.write(path, f"scenes/{path.relative_to(scenes)}")
    config = RetrievalConfig(floor=False)
    expected = run(PROTOCOL, loaded, scenes, config)
    found = run(PROTOCOL, loaded, tmp_path / "scenes.zip", config)
    assert found["metrics"] == expected["metrics"]
    assert found["data"]["ground_truth"] == expected["data"]["ground_truth"]


def test_same_seed_same_bytes_wherever_the_data_lies(loaded: Loaded, scenes: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "scenes"
    shutil.copytree(scenes, moved)
    outs = [tmp_path / f"{name}.json" for name in "ab"]
    run(PROTOCOL, loaded, scenes, RetrievalConfig(floor=False), outs[0])
    run(PROTOCOL, loaded, moved, RetrievalConfig(floor=False, workers=1), outs[1])
    assert outs[0].read_bytes() == outs[1].read_bytes()


@pytest.mark.parametrize("setting", [{"multi_scale": True}, {"crop_queries": True}, {"image_size": 16}])
def test_settings_are_used(loaded: Loaded, scenes: Path, setting: dict[str, Any]) -> None:
    plain = run(PROTOCOL, loaded, scenes, RetrievalConfig(image_size=32, floor=False))
    other = run(PROTOCOL, loaded, scenes, RetrievalConfig(**{"image_size": 32, "floor": False, **setting}))
    assert other["metrics"] != plain["metrics"] and other["settings"] != plain["settings"]


def test_whitening_is_learned_on_other_images(loaded: Loaded, scenes: Path, splits_folder: Path) -> None:
    plain = run(PROTOCOL, loaded, scenes, RetrievalConfig())
    white = run(PROTOCOL, loaded, scenes, RetrievalConfig(whiten=str(splits_folder)))
    assert white["metrics"] != plain["metrics"]
    assert white["floor"]["random_weights"] != plain["floor"]["random_weights"]
    assert white["floor"]["raw_pixels"] == plain["floor"]["raw_pixels"]
    assert white["settings"]["whiten"]["name"] == "pets"


def test_kept_features_give_the_same_bytes(
    loaded: Loaded, scenes: Path, splits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time no image is read; cropped queries, more scales and new boxes have features of their own."""
    monkeypatch.setenv("NOLABEL_CACHE", str(tmp_path / "kept"))
    config = RetrievalConfig(image_size=32, whiten=str(splits_folder))
    plain, first, again = (tmp_path / f"{name}.json" for name in ("plain", "first", "again"))
    run(PROTOCOL, loaded, scenes, dataclasses.replace(config, cache=False), plain)
    run(PROTOCOL, loaded, scenes, config, first)
    for setting in ({"multi_scale": True}, {"crop_queries": True}):
        other = dataclasses.replace(config, **setting)
        expected = run(PROTOCOL, loaded, scenes, dataclasses.replace(other, cache=False))
        assert run(PROTOCOL, loaded, scenes, other) == expected
    with monkeypatch.context() as patch:
        patch.setattr(descriptors, "prepared", None)
        run(PROTOCOL, loaded, scenes, config, again)
        cropped = dataclasses.replace(config, crop_queries=True)
        before = run(PROTOCOL, loaded, scenes, cropped)
    assert plain.read_bytes() == first.read_bytes() == again.read_bytes()
    change(scenes, lambda gnd: [entry.__setitem__("bbx", [0, 0, 9, 9]) for entry in gnd["gnd"]])
    assert run(PROTOCOL, loaded, scenes, cropped)["metrics"] != before["metrics"]


def test_queries_without_answers_are_reported(loaded: Loaded, scenes: Path) -> None:
    def forget(gnd: dict[str, Any]) -> None:
        for entry in gnd["gnd"]:
            entry["hard"] = []
        gnd["gnd"][0]["easy"] = []

    change(scenes, forget)
    result = run(PROTOCOL, loaded, scenes, RetrievalConfig(floor=False))
    assert result["metrics"]["hard"]["map"] is None and columns(result["metrics"])["mAP hard"] == "none"
    assert "easy: 1 of 4 queries" in result["notes"][0] and "hard: 4 of 4" in result["notes"][2]


def _twice(gnd: dict[str, Any]) -> None:
    gnd["imlist"][1] = gnd["imlist"][0]


def _self(gnd: dict[str, Any]) -> None:
    gnd["imlist"][1] = gnd["qimlist"][0]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda g: g["imlist"].__setitem__(3, "gone"), "does not hold: gone"),
        (lambda g: g["gnd"][2]["hard"].append(20), "query 2_0: index 20 is not in imlist, which has 20"),
        (lambda g: g["gnd"][2]["hard"].append(-1), "index -1 is not in imlist"),
        (lambda g: g["gnd"][2]["hard"].append(2.0), "lists of indices"),
        (lambda g: g["gnd"][2].__setitem__("easy", None), "lists of indices"),
        (lambda g: g["gnd"][2]["hard"].append(g["gnd"][2]["easy"][0]), "listed twice, or as two of"),
        (lambda g: g["gnd"][2].__setitem__("bbx", [5, 5, 3, 9]), "bbx must be"),
        (lambda g: g["gnd"][2].__setitem__("bbx", [5, 5, float("inf"), 9]), "bbx must be"),
        (lambda g: g["gnd"][2].__setitem__("bbx", [True, 5, 8, 9]), "bbx must be"),
        (lambda g: g["gnd"][2].__setitem__("ok", [1]), "ok is none of easy, hard, junk and bbx"),
        (lambda g: g["gnd"].pop(), "as long as qimlist"),
        (lambda g: g.pop("qimlist"), "cannot be read"),
        (lambda g: g.__setitem__("gnd", [3] * 4), "lists of indices"),
        (_twice, "is twice in imlist"),
        (_self, "would find itself"),
    ],
)
def test_wrong_ground_truth(loaded: Loaded, scenes: Path, how: Change, message: str) -> None:
    change(scenes, how)
    with pytest.raises(DataError, match=message):
        run(PROTOCOL, loaded, scenes, RetrievalConfig())


def test_wrong_folders(loaded: Loaded, scenes: Path) -> None:
    assert refusal(PROTOCOL, scenes) is None
    (scenes / "jpg" / "0_1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 images of the ground truth cannot be read, such as jpg/0_1\.png"):
        run(PROTOCOL, loaded, scenes, RetrievalConfig())
    shutil.copy(scenes / "jpg" / "0_2.png", scenes / "jpg" / "0_2.jpg")
    with pytest.raises(DataError, match="0_2 may be"):
        run(PROTOCOL, loaded, scenes, RetrievalConfig())
    shutil.copy(scenes / "gnd.json", scenes / "gnd_2.json")
    assert "several ground truths" in (refusal(PROTOCOL, scenes) or "")
    for path in scenes.glob("*.json"):
        for text in ("[", "[" * 100_000):
            path.write_text(text)
            with pytest.raises(DataError):
                run(PROTOCOL, loaded, scenes, RetrievalConfig())
        path.unlink()
    assert refusal(PROTOCOL, scenes) == "no gnd.json with queries and their answers"
    with pytest.raises(DataError, match=r"holds no gnd\*\.json"):
        run(PROTOCOL, loaded, scenes, RetrievalConfig())


def test_boxes_that_are_missing_or_outside(loaded: Loaded, scenes: Path) -> None:
    cropped = RetrievalConfig(crop_queries=True)
    change(scenes, lambda g: g["gnd"][1].__setitem__("bbx", [40, 40, 50, 50]))
    with pytest.raises(DataError, match=r"outside its image of 32x32"):
        run(PROTOCOL, loaded, scenes, cropped)
    change(scenes, lambda g: g["gnd"][1].pop("bbx"))
    with pytest.raises(UsageError, match="needs a bbx for every query"):
        run(PROTOCOL, loaded, scenes, cropped)


def test_images_keep_their_shape_and_are_never_enlarged() -> None:
    image = torch.randint(0, 256, (3, 30, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert thumbnail(image, 20).shape == (3, 10, 20)
    assert torch.equal(thumbnail(image, 80), image)
    assert torch.equal(cut(image, (-3.0, 9.6, 20.4, 31.4)), image[:, 10:, :20])
    with pytest.raises(DataError, match="Was the image made smaller"):
        cut(image, (-3.0, 9.6, 20.4, 33.0))


def test_multi_scale_is_the_mean_of_the_features(loaded: Loaded) -> None:
    x = torch.randn(2, 3, 40, 32, generator=torch.Generator().manual_seed(0))
    sizes = [x] + [
        torch.nn.functional.interpolate(x, scale_factor=s, mode="bilinear", align_corners=False)
        for s in (0.5**0.5, 0.5)
    ]
    expected = torch.stack([loaded.backbone(size).pooled for size in sizes]).mean(0)
    torch.testing.assert_close(MultiScale(loaded.backbone)(x).pooled, expected)


@pytest.fixture(scope="module")
def vit() -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return backbone("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}).eval()


def test_a_vit_sees_whole_patches_of_any_image(vit: Backbone) -> None:
    x = torch.randn(1, 3, 37, 21, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole_patches(x, 8), x[..., :32, :16])
    assert whole_patches(x[..., :5], 8).shape == (1, 3, 32, 8)
    assert whole_patches(x, None) is x
    with torch.no_grad():
        torch.testing.assert_close(MultiScale(vit, (1.0,))(x).pooled, vit(x[..., :32, :16]).pooled)
        assert MultiScale(vit)(x).pooled.shape == (1, 32)


def test_histogram_by_hand() -> None:
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    image[:, 0, 0] = torch.tensor([255, 32, 31])
    histogram = color_histogram(image)
    assert histogram[0] == pytest.approx(0.75**0.5) and histogram[7 * 64 + 8] == pytest.approx(0.5)
    assert histogram.norm() == pytest.approx(1)


def test_real_images(loaded: Loaded, data_packs: Path, tmp_path: Path) -> None:
    """The first five of twenty things of a pack of real video frames."""
    pack = data_packs / "dense" / "davis20_retrieval.zip"
    if not pack.is_file():
        pytest.skip(f"{pack} is not there")
    truth = ground_truth(pack)
    assert len(truth.queries.names) == 20 and len(truth.database.names) == 260
    with zipfile.ZipFile(pack) as archive:
        gnd = json.loads(archive.read("gnd.json"))
        gnd = {"imlist": gnd["imlist"][:65], "qimlist": gnd["qimlist"][:5], "gnd": gnd["gnd"][:5]}
        archive.extractall(tmp_path, [f"jpg/{name}.webp" for name in (*gnd["imlist"], *gnd["qimlist"])])
    (tmp_path / "gnd.json").write_text(json.dumps(gnd))
    result = run(PROTOCOL, loaded, tmp_path, RetrievalConfig(image_size=64))
    colors = result["floor"]["color_histogram"]
    assert all(colors[level]["map"] > 90 for level in colors)
    assert all(20 < result["metrics"][level]["map"] < colors[level]["map"] for level in colors)
