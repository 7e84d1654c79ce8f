"""The animation of attention: as many frames, the picture on the left, and a map of the right place on the right."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nolabel.cli import main
from nolabel.errors import DataError
from nolabel.networks.backbones import backbone
from nolabel.plots import attention_clip, clip_frames

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def pages(path: Path) -> list[np.ndarray]:
    with Image.open(path) as animation:
        found = []
        for i in range(animation.n_frames):
            animation.seek(i)
            found.append(np.asarray(animation.convert("RGB")))
    return found


@pytest.mark.parametrize("has_attention", [True, False])
def test_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_attention: bool) -> None:
    """The map's peak, and inferno's brightest yellow with it, moves from the left to the right."""
    with torch.random.fork_rng(devices=[]):
        net = backbone("vit_tiny_patch16_224" if has_attention else "resnet18")

    def peak(_: object, frame: torch.Tensor) -> torch.Tensor:
        values = torch.zeros(2, 4, 6)
        values[:, 1, 0 if float(frame.mean()) < 0 else 5] = 1
        return values

    monkeypatch.setattr(f"nolabel.plots.clip.{'attention_maps' if has_attention else 'similarity_map'}", peak)
    frames = [torch.full((3, 32, 48), value) for value in (-0.8, 0.8)]
    attention_clip(tmp_path / "clip.webp", net, frames, MEAN, STD)
    found = pages(tmp_path / "clip.webp")
    assert len(found) == 2 and found[0].shape == (240, 2 * 360 + 4, 3)
    for page, level, bright, dark in ((found[0], 25, 370, 700), (found[1], 230, 700, 370)):
        assert abs(int(page[120, 100, 0]) - level) < 12
        assert page[90, bright].sum() > 500 > 100 > page[90, dark].sum()


def test_show_attention_writes_a_clip(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["show", "attention", "random:resnet18", str(pictures / "val" / "checks"), "--out", str(tmp_path)]
    main.main([*args, "--size", "64", "--clip"])
    assert capsys.readouterr().out.split() == [str(tmp_path / "attention.webp")]
    assert len(pages(tmp_path / "attention.webp")) == 6


def animation(path: Path, num_frames: int = 3) -> Path:
    frames = [Image.new("RGB", (48, 32), (80 * i, 0, 0)) for i in range(num_frames)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, lossless=True)
    return path


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_the_frames_of_one_file(tmp_path: Path, suffix: str) -> None:
    path = animation(tmp_path / f"a{suffix}")
    found = clip_frames([path], 100)
    assert [name for name, _ in found] == ["a-00000", "a-00001", "a-00002"]
    for i, (_, frame) in enumerate(found):
        assert frame.shape == (3, 32, 48)
        assert abs(int(frame[0, 16, 24]) - 80 * i) < 4 and int(frame[1, 16, 24]) < 4
    assert len(clip_frames([path], 2)) == 2
    assert clip_frames([path, path], 2) == clip_frames([tmp_path], 2) == []


def test_a_clip_that_cannot_be_read(tmp_path: Path) -> None:
    video, damaged = tmp_path / "a.mp4", animation(tmp_path / "a.gif")
    video.write_bytes(b"0000ftypisom")
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(DataError, match=r"ffmpeg -i .*a\.mp4 frames/%05d\.png"):
        clip_frames([video], 9)
    with pytest.raises(DataError, match=r"a\.gif cannot be read at frame 0"):
        clip_frames([damaged], 9)


def test_show_attention_of_a_clip(tmp_path: Path) -> None:
    clip = animation(tmp_path / "clip.gif")
    main.main(["show", "attention", "random:resnet18", str(clip), "--out", str(tmp_path), "--size", "64", "--clip"])
    assert len(pages(tmp_path / "attention.webp")) == 3
