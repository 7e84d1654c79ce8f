"""JPEGs by simplejpeg: the pixels of Pillow, in full and at 1/2, 1/4, 1/8; and crops that do not depend on it."""

import io

import numpy as np
import pytest
import torch
from hostile import save
from PIL import Image

from nolabel.data import decode as module
from nolabel.data.decode import decode, examine, load, open_image
from nolabel.data.demo import world
from nolabel.data.loader import cut
from nolabel.views import View, draw, reduction, scaled_down

PICTURE = Image.fromarray(world.render(3, 5, 128)[0]).crop((0, 0, 117, 93))  # sides that no block divides
KINDS = {
    "444": {"subsampling": "4:4:4", "quality": 92},
    "422": {"subsampling": "4:2:2", "quality": 80},
    "420": {"subsampling": "4:2:0", "quality": 75},
    "411": {"subsampling": "4:1:1", "quality": 75},
    "progressive": {"progressive": True, "quality": 60},
    "gray": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "restart": {"restart_marker_blocks": 2},
}


def jpeg(kind: str, **more: object) -> bytes:
    options = {**KINDS[kind], **more}
    return save(PICTURE.convert(str(options.pop("mode", "RGB"))), "JPEG", **options)


def by_pillow(data: bytes, factor: int) -> np.ndarray:
    file = Image.open(io.BytesIO(data))
    if factor > 1:
        file.draft(file.mode, (file.width // factor, file.height // factor))
    return np.array(file.convert("RGB"))


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_are_those_of_pillow(kind: str, factor: int) -> None:
    data = jpeg(kind)
    image = load(open_image(data), factor)
    assert tuple(image.shape) == (3, -(-93 // factor), -(-117 // factor))
    assert torch.equal(image, torch.from_numpy(by_pillow(data, factor)).permute(2, 0, 1))


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("Pillow was asked")


@pytest.mark.parametrize("kind", ["444", "420", "progressive", "gray", "restart"])
def test_a_plain_jpeg_is_read_without_pillow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, facts = examine(jpeg(kind))
    monkeypatch.setattr(module.Image, "open", refuse)
    assert torch.equal(decode(jpeg(kind)), pixels)
    monkeypatch.undo()
    monkeypatch.setattr(module, "_plain_jpeg", lambda _: None)  # Pillow opens it
    other, by_pillow_too = examine(jpeg(kind))
    assert torch.equal(other, pixels) and by_pillow_too == facts


@pytest.mark.parametrize("kind", ["420", "gray"])
def test_a_turned_photo_is_opened_by_pillow_and_decoded_by_simplejpeg(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(kind, exif=exif)
    opened, upright = open_image(data), decode(jpeg(kind)).rot90(-1, (1, 2))
    monkeypatch.setattr(opened.file, "load", refuse)
    assert torch.equal(load(opened), upright) and opened.facts.height == 117


def test_what_simplejpeg_refuses_is_judged_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubt(*_: object, **__: object) -> None:
        raise ValueError("a doubt")

    expected = {factor: load(open_image(jpeg("420")), factor) for factor in (1, 4)}
    monkeypatch.setattr(module.simplejpeg, "decode_jpeg", doubt)
    for factor, image in expected.items():
        assert torch.equal(load(open_image(jpeg("420")), factor), image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_before_decoding_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for factor in (1, 2):
        opened = open_image(jpeg("444", exif=exif))
        height, width = opened.facts.height, opened.facts.width
        assert (height, width) == ((93, 117) if orientation < 5 else (117, 93))
        assert tuple(load(opened, factor).shape) == (3, -(-height // factor), -(-width // factor))


def test_other_formats_come_in_full() -> None:
    data = save(PICTURE, "PNG")
    assert torch.equal(load(open_image(data), 4), decode(data))


BIG = View(32, (0.25, 1.0), flip=0, jitter_p=0, grayscale=0)


def test_the_reduction_enlarges_no_crop() -> None:
    for i in range(200):
        drawn = draw(BIG, (0, 0, i, 0), 301, 399)
        factor = reduction([BIG], [drawn])
        side = min(drawn.box[2:])
        assert side >= 32 * factor or factor == 1
        assert factor == 8 or side < 32 * 2 * factor
        top, left, height, width = scaled_down(drawn, factor).box
        assert min(height, width) >= (32 if factor > 1 else 1)
        assert top >= 0 and top + height <= -(-301 // factor)
        assert left >= 0 and left + width <= -(-399 // factor)
        assert abs(top * factor - drawn.box[0]) <= factor / 2
        assert scaled_down(drawn, 1) == drawn


def test_the_smallest_crop_decides() -> None:
    large, small = (draw(BIG, (0, 0, 0, 0), 512, 512)._replace(box=(0, 0, side, side)) for side in (512, 70))
    assert [reduction([BIG] * 2, [large, large]), reduction([BIG] * 2, [large, small])] == [8, 2]


def test_a_scaled_decode_takes_the_same_crops() -> None:
    """Close pixels; a crop that is one output pixel off differs by several times as much."""
    scene, _ = world.render(1, 2, 512)
    data = save(Image.fromarray(scene), "JPEG", quality=95)
    views, total, shifted = (BIG,) * 4, [], []
    for sample in range(6):
        keys = [(0, 0, sample, v) for v in range(4)]
        scaled, full = cut(data, views, keys).views, cut(data, views, keys, full_decode=True).views
        assert reduction(views, [draw(BIG, key, 512, 512) for key in keys]) >= 4
        for a, b in zip(scaled, full, strict=True):
            assert not torch.equal(a, b)  # it was scaled
            total.append((a.float() - b.float()).abs().mean().item())
            shifted.append((a[:, :, 1:].float() - b[:, :, :-1].float()).abs().mean().item())
    print(f"scaled against full decode: mean {np.mean(total):.2f}, one pixel off {np.mean(shifted):.2f}")
    assert np.mean(total) < 0.4 * np.mean(shifted)
