"""The video protocol: scores whose values follow by hand, frames and masks, and from clips to the result."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from nolabel.data.demo import world as world_module
from nolabel.errors import DataError, StorageError, UsageError
from nolabel.evals.dense.clips import is_binary, read_objects, scan_clips
from nolabel.evals.dense.iou import jaccard
from nolabel.evals.dense.overlay import palette, write_clip, write_mask
from nolabel.evals.dense.propagation import to_pixels
from nolabel.evals.dense.video import PROTOCOL, VideoConfig, follow, frame_size, over_time, score
from nolabel.evals.protocol import run
from nolabel.networks.backbones import backbone
from nolabel.weights.load import Loaded

SMALL = VideoConfig(short_side=40, num_last_frames=2, radius=4)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of the demo world, 40 px, five frames each; in `pair` two objects move in one picture."""
    root = tmp_path_factory.mktemp("clips") / "world"
    for name, parts in (("star", [(9, 1)]), ("pair", [(9, 1), (5, 4)])):
        clips = [world_module.clip(shape, seed, 5, 40) for shape, seed in parts]
        for i in range(5):
            picture = np.concatenate([frames[i] for frames, _ in clips], 1)
            values = np.concatenate([masks[i] * (n + 1) for n, (_, masks) in enumerate(clips)], 1).astype(np.uint8)
            if name == "star":
                values *= 255
            for folder, pixels in (("frames", picture), ("masks", values)):
                path = root / folder / name / f"{i:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def vit() -> Loaded:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = backbone("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}, 32)
    net.eval().requires_grad_(False)
    return Loaded(net, 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bicubic", "tiny-vit", "0123456789abcdef")


def ids(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_over_time_by_hand() -> None:
    """Nine frames: the quarters are frames 1 to 3 and 7 to 9, border frames in both neighbours."""
    found = over_time([1.0, 1.0, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert found.mean == pytest.approx(4.8 / 9)
    assert found.recall == pytest.approx(4 / 9)  # 0.5 is not above 0.5
    assert found.decay == pytest.approx(0.9 - 0.2)
    assert over_time([0.8]) == (pytest.approx(0.8), 1.0, 0.0)


def disc(x: int, size: int = 40) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (rows - 20) ** 2 + (columns - x) ** 2 <= 36


def test_scores_of_two_objects() -> None:
    """The first is followed to the pixel, the second is lost: it is scored for itself."""
    truth = [disc(10).long() + 2 * disc(30).long() for _ in range(4)]
    predicted = [disc(10).long() for _ in range(4)]
    (first_j, first_f), (second_j, second_f) = score(predicted, truth, [1, 2])
    assert first_j == first_f == (1.0, 1.0, 0.0)
    assert second_j == second_f == (0.0, 0.0, 0.0)
    swapped = [2 * disc(10).long() + disc(30).long() for _ in range(4)]
    assert all(j.mean == 0 for j, _ in score(swapped, truth, [1, 2]))  # the id counts, not only the shape


@pytest.mark.parametrize(
    ("size", "short", "patch", "expected"),
    [
        ((480, 854), 480, 16, (480, 832)),
        ((480, 910), 480, 8, (480, 896)),
        ((854, 480), 480, 16, (832, 480)),
        ((480, 854), 480, None, (480, 832)),
        ((480, 854), 240, 16, (240, 416)),
        ((40, 40), 40, 8, (40, 40)),
    ],
)
def test_frame_size(size: tuple[int, int], short: int, patch: int | None, expected: tuple[int, int]) -> None:
    assert frame_size(*size, short, patch) == expected


def test_result(loaded: Loaded, world: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name / "video.json" for name in ("a", "b")]
    result = run(PROTOCOL, loaded, world, SMALL, outs[0])
    shutil.copytree(world, tmp_path / "moved" / "world")
    run(PROTOCOL, loaded, tmp_path / "moved" / "world", SMALL, outs[1])
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert str(tmp_path) not in outs[0].read_text()
    assert list(result) == ["protocol", "version", "metrics", "floor", "settings", "data", "seed", "notes"]
    assert result["metrics"]["objects"].keys() == {"pair/1", "pair/2", "star/1"}
    j = [found["j"] for found in result["metrics"]["objects"].values()]
    assert result["metrics"]["j"]["mean"] == pytest.approx(sum(j) / 3, abs=1e-3)  # over objects, not over clips
    headline = (result["metrics"]["j"]["mean"] + result["metrics"]["f"]["mean"]) / 2
    assert result["metrics"]["j_and_f"] == pytest.approx(headline, abs=1e-3)
    assert result["floor"].keys() == {"random_weights", "first_mask"}
    assert "objects" not in result["floor"]["first_mask"]
    assert json.loads(outs[0].with_suffix(".time.json").read_text())["seconds_per_frame"] > 0
    assert sorted(p.name for p in (tmp_path / "a" / "video").iterdir()) == ["masks", "pair.webp", "star.webp"]
    with Image.open(tmp_path / "a/video/masks/pair/00000.png") as first:
        assert first.mode == "P" and np.array_equal(np.asarray(first), ids(world / "masks/pair/00000.png"))
    assert len(list((tmp_path / "a/video/masks/pair").iterdir())) == 5
    with Image.open(tmp_path / "a/video/star.webp") as animation:
        assert animation.n_frames == 5


def test_masks_are_compared_with_those_of_their_own_frame(
    loaded: Loaded, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who follows every object to the pixel has 100 % of everything."""
    monkeypatch.setattr(
        "nolabel.evals.dense.video.follow",
        lambda loaded, tree, clip, *_: (
            read_objects(tree, str(mask), is_binary(tree, str(clip.masks[0]))) for mask in clip.masks[1:]
        ),
    )
    metrics = run(PROTOCOL, loaded, world, VideoConfig(floor=False))["metrics"]
    assert metrics["j"] == metrics["f"] == {"mean": 100.0, "recall": 100.0, "decay": 0.0}
    assert metrics["j_and_f"] == 100.0


def test_the_first_and_the_last_frame_are_not_scored(loaded: Loaded, world: Path, tmp_path: Path) -> None:
    config = VideoConfig(short_side=160, stage=2, floor=False, masks=False)
    before = run(PROTOCOL, loaded, world, config)["metrics"]
    shutil.copytree(world, tmp_path / "world")
    nothing = Image.new("L", (40, 40))
    nothing.save(tmp_path / "world/masks/star/00004.png")
    assert run(PROTOCOL, loaded, tmp_path / "world", config)["metrics"] == before
    nothing.save(tmp_path / "world/masks/star/00002.png")
    after = run(PROTOCOL, loaded, tmp_path / "world", config)["metrics"]
    assert after["objects"]["star/1"]["j"] == pytest.approx(before["objects"]["star/1"]["j"] * 2 / 3, rel=0.3)


def test_a_clip_that_stands_still_is_followed(vit: Loaded, world: Path, tmp_path: Path) -> None:
    """Then every patch is most like itself, and what is lost is the mask's way through the grid of patches."""
    for folder in ("frames", "masks"):
        for i in range(4):
            (tmp_path / folder / "star").mkdir(parents=True, exist_ok=True)
            shutil.copy(world / folder / "star" / "00000.png", tmp_path / folder / "star" / f"{i:05d}.png")
    found = scan_clips(tmp_path)
    truth = ids(tmp_path / "masks/star/00000.png") == 255
    first = torch.from_numpy(truth.astype(np.int64))
    masks = list(follow(vit, found.tree, found.clips[0], first, VideoConfig(short_side=160, topk=1)))
    channels = torch.stack([1 - first, first])[None].float()
    small = F.interpolate(channels, size=(20, 20), mode="nearest-exact")[0]
    expected = F.interpolate(to_pixels(small, (160, 160))[None, None].float(), size=(40, 40), mode="nearest-exact")[
        0, 0
    ]
    assert len(masks) == 3 and all(torch.equal(mask, expected.byte()) for mask in masks)
    assert float(jaccard(masks[0] > 0, first > 0)) > 0.6


def test_stages_are_finer(loaded: Loaded, world: Path) -> None:
    found = scan_clips(world)
    clip = next(clip for clip in found.clips if clip.name == "star")
    first = torch.from_numpy((ids(world / "masks/star/00000.png") == 255).astype(np.int64))
    config = VideoConfig(short_side=64, stage=2)
    masks = list(follow(loaded, found.tree, clip, first, config))
    assert len(masks) == 4 and masks[0].shape == (40, 40) and set(masks[0].unique().tolist()) <= {0, 1}


def test_fewer_frames_are_noted(loaded: Loaded, world: Path) -> None:
    result = run(PROTOCOL, loaded, world, VideoConfig(short_side=40, max_frames=3, floor=False))
    assert result["notes"] == ["only the first 3 frames of a clip"]
    assert result["data"]["num_frames"] == 6


def test_objects_without_a_number_between_and_a_mask_of_void(vit: Loaded, world: Path, tmp_path: Path) -> None:
    """Objects 2 and 5 are two, not five of which three are found; void alone is no object of a clip with numbers."""
    root = tmp_path / "world"
    shutil.copytree(world, root)
    masks = sorted((root / "masks/star").iterdir())
    for path in masks:
        ids = np.zeros((40, 40), np.uint8)
        ids[:9, :9], ids[20:30, 20:30] = 2, 5
        Image.fromarray(ids).save(path)
    Image.fromarray(np.full((40, 40), 255, np.uint8)).save(masks[1])
    before = run(PROTOCOL, vit, root, SMALL)
    assert [name for name in before["metrics"]["objects"] if name.startswith("star")] == ["star/2", "star/5"]
    assert before["notes"] == [
        "numbers that the masks skip are not scored: star/1, star/3, star/4. DAVIS's own code counts each as an "
        "object that is right in every frame"
    ]
    assert not read_objects(scan_clips(root).tree, "masks/star/00001.png", binary=False).any()
    ids[30:, :20], ids[30:, 20:] = 3, 9  # one within the gap, one above all
    Image.fromarray(ids).save(masks[2])
    after = run(PROTOCOL, vit, root, SMALL)
    assert after["metrics"] == before["metrics"], "what appears later is background"
    assert after["notes"] == [
        "objects that appear after the first frame are not scored, as in DAVIS's metric: star/3, star/9",
        "numbers that the masks skip are not scored: star/1, star/4. DAVIS's own code counts each as an "
        "object that is right in every frame",
    ]


def test_masks_that_do_not_fit(loaded: Loaded, world: Path, tmp_path: Path) -> None:
    root = tmp_path / "world"
    shutil.copytree(world, root)
    Image.new("L", (40, 30)).save(root / "masks/star/00002.png")
    with pytest.raises(DataError, match=r"star/00002.png and .*star/00000.png differ in size"):
        run(PROTOCOL, loaded, root, SMALL)
    Image.fromarray(np.full((40, 40), 2, np.uint8)).save(root / "masks/star/00002.png")
    with pytest.raises(DataError, match=r"star/00002.png holds numbers of objects, and the first mask"):
        run(PROTOCOL, loaded, root, SMALL)
    Image.new("RGB", (30, 30)).save(root / "frames/star/00001.png")
    with pytest.raises(DataError, match=r"masks/star/00000.png has 40 x 40 pixels, its image .*00001.png 30 x 30"):
        run(PROTOCOL, loaded, root, SMALL)
    Image.new("L", (40, 40)).save(root / "masks/star/00000.png")
    with pytest.raises(DataError, match="The first mask of star is empty"):
        run(PROTOCOL, loaded, root, SMALL)


@pytest.mark.parametrize(
    "config",
    [
        VideoConfig(topk=0),
        VideoConfig(radius=-1),
        VideoConfig(temperature=0.001),
        VideoConfig(stage=5),
        VideoConfig(max_frames=2),
    ],
)
def test_bad_settings_are_refused_at_once(loaded: Loaded, config: VideoConfig) -> None:
    with pytest.raises(UsageError):
        run(PROTOCOL, loaded, "nowhere", config)


def test_the_palette() -> None:
    """As in PASCAL VOC: dark red, green, olive, blue, ..., and 255 nearly white."""
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert [tuple(c) for c in palette()[:5].tolist()] == expected
    assert tuple(palette()[8].tolist()) == (64, 0, 0)
    assert tuple(palette()[255].tolist()) == (224, 224, 192)


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_mask(tmp_path / "file" / "a.png", torch.zeros(2, 2))
    with pytest.raises(StorageError, match="cannot be written"):
        write_clip(tmp_path / "file" / "a.webp", [torch.zeros(3, 8, 8).byte()], [torch.zeros(8, 8)])


def test_davis(loaded: Loaded, data_packs: Path, tmp_path: Path) -> None:
    """Three frames of two clips of the real pack; a still mask is a strong guess for so short a time."""
    pack = data_packs / "dense" / "davis16_val8.zip"
    if not pack.is_file():
        pytest.skip(f"{pack} is absent")
    found = scan_clips(pack)
    assert len(found.clips) == 8 and found.listed_in == "val.txt"
    assert sum(len(clip.frames) for clip in found.clips) == 382
    for clip in found.clips[:2]:
        for i in range(3):
            for kind, name in (("frames", clip.frames[i]), ("masks", str(clip.masks[i]))):
                path = tmp_path / kind / clip.name / Path(name).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(read_bytes(pack, name))
    result = run(PROTOCOL, loaded, tmp_path, VideoConfig(short_side=96, masks=False))
    assert result["data"]["num_frames"] == 6
    assert 50 < result["floor"]["first_mask"]["j"]["mean"] < 100
    assert 0 < result["metrics"]["j"]["mean"] < 100


def read_bytes(pack: Path, name: str) -> bytes:
    with zipfile.ZipFile(pack) as archive:
        return archive.read(name)
