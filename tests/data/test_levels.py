"""Files of more than 8 bits: the range that a user states, values of "nothing here", bands, and what is reported."""

import dataclasses
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from nolabel.config import resolve
from nolabel.config.load import load_recipe
from nolabel.data.bad_files import BadImage
from nolabel.data.check import check, format_check
from nolabel.data.decode import decode, read_values
from nolabel.data.depths import Looked, describe_values, look_at_values, suggest
from nolabel.data.images import scan, scanned_in
from nolabel.data.loader import cut
from nolabel.data.packing import resized
from nolabel.errors import DataError, UsageError
from nolabel.evals.protocol import EvalConfig, check_common
from nolabel.evals.shared.cache import _key
from nolabel.evals.shared.reading import report_values
from nolabel.views import View
from nolabel.weights.load import load_weights
from nolabel.weights.timm import save_weights

WAVES = (np.sin(np.arange(24 * 32).reshape(24, 32) / 50) + 1) / 2
TWELVE = (WAVES * 4095).astype("<u2")


def tiff(pixels: np.ndarray, photometric: int, extra: int | None = None, nodata: str = "") -> bytes:
    """An uncompressed TIFF of (H, W) or (H, W, bands)."""
    h, w, n = pixels.reshape(*pixels.shape[:2], -1).shape
    tags: dict[int, tuple[int, list[int] | bytes]] = {
        256: (4, [w]), 257: (4, [h]), 258: (3, [8 * pixels.dtype.itemsize] * n), 259: (3, [1]), 262: (3, [photometric]),
        273: (4, [0]), 277: (3, [n]), 278: (4, [h]), 279: (4, [pixels.nbytes]),
        339: (3, [{"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]] * n),
    }  # fmt: skip
    if extra is not None:
        tags[338] = (3, [extra] * (n - (3 if photometric == 2 else 1)))
    if nodata:
        tags[42113] = (2, nodata.encode() + b"\0")
    at = 8 + 2 + 12 * len(tags) + 4
    entries = tail = b""
    for tag, (kind, values) in sorted(tags.items()):
        raw = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{'HI'[kind == 4]}", *values)
        if tag == 273:
            entries += struct.pack("<HHI", tag, kind, 1) + b"DATA"
            continue
        long = len(raw) > 4
        entries += struct.pack("<HHI", tag, kind, len(values))
        entries += struct.pack("<I", at + len(tail)) if long else raw.ljust(4, b"\0")
        tail += raw if long else b""
    entries = entries.replace(b"DATA", struct.pack("<I", at + len(tail)))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + b"\0" * 4 + tail + pixels.tobytes()


def saved(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def expected(values: np.ndarray, low: float, high: float) -> torch.Tensor:
    return torch.from_numpy(np.rint(255 * np.clip((values.astype(float) - low) / (high - low), 0, 1)).astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_twelve_bits_in_sixteen(kind: str) -> None:
    data = saved(TWELVE, kind)
    assert decode(data).max() == 16
    for limits in ((0, 4095), (100, 2000)):
        assert torch.equal(decode(data, limits=limits)[0], expected(TWELVE, *limits))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_colours_of_sixteen_bits_keep_their_low_bytes(order: str) -> None:
    color = np.stack([TWELVE, TWELVE // 2, TWELVE // 3], -1)
    data = tiff(color.astype("<u2"), 2)
    if order == ">u2":  # a PNG is big endian
        file = io.BytesIO()
        header = struct.pack(">IIBBBBB", 32, 24, 16, 2, 0, 0, 0)
        rows = b"".join(b"\0" + row.astype(order).tobytes() for row in color)
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
            file.write(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))
        data = file.getvalue()
    assert decode(data).max() == 15  # the high byte
    assert torch.equal(decode(data, limits=(0, 4095)).permute(1, 2, 0), expected(color, 0, 4095))


def test_files_of_8_bits_have_no_range() -> None:
    grey = (WAVES * 255).astype(np.uint8)
    for kind in ("PNG", "JPEG", "TIFF"):
        data = saved(np.stack([grey] * 3, -1), kind)
        assert torch.equal(decode(data, limits=(0, 4095)), decode(data))
        assert read_values(data) is None


@pytest.mark.parametrize(
    ("mark", "dtype", "stated"),
    [
        (-9999, "<f4", "-9999"), (-9999, "<f4", ""), (-99999, "<f4", ""), (-32768, "<i2", ""),
        (-3.4028234e38, "<f4", ""), (1e20, "<f4", ""), (np.nan, "<f4", ""), (-2147483648, "<i4", ""),
        (7, "<f4", "7"), (32767, "<i2", ""),
    ],
)  # fmt: skip
def test_nodata_takes_no_part_in_the_scale(mark: float, dtype: str, stated: str) -> None:
    height = (WAVES * 900 + 100).astype(dtype)
    holed = height.copy()
    holed[:4, :10] = mark
    found, plain = decode(tiff(holed, 1, nodata=stated)), decode(tiff(height, 1))
    assert (found[:, :4, :10] == 0).all()
    assert (found[:, 4:].int() - plain[:, 4:].int()).abs().max() <= 3
    values = read_values(tiff(holed, 1, nodata=stated))
    assert values is not None and values.nodata == pytest.approx(40 / 768)
    assert 100 <= values.low < values.high <= 1000
    assert (decode(tiff(holed, 1, nodata=stated), limits=(0, 1000))[:, :4, :10] == 0).all()


def test_values_near_the_others_are_no_nodata() -> None:
    """-9999 among values down to -9000, and a value far off that no program writes as a mark."""
    near = (WAVES * 9999 - 9999).astype("<f4")
    near[0, 0] = -9999
    far = (WAVES * 900 + 100).astype("<f4")
    far[0, 0] = -5000
    for height in (near, far):
        values = read_values(tiff(height, 1))
        assert values is not None and values.nodata == 0


def test_only_what_is_marked_as_alpha_is_alpha() -> None:
    color = np.dstack([np.full((24, 32, 3), 90, np.uint8), np.zeros((24, 32), np.uint8)])
    shown = {extra: decode(tiff(color, 2, extra)).unique().tolist() for extra in (None, 0, 2)}
    assert shown == {None: [90], 0: [90], 2: [255]}
    assert decode(saved(color, "PNG")).unique().tolist() == [255]
    deep = color.astype("<u2") * 10
    assert decode(tiff(deep, 2, 2), limits=(0, 900)).unique().tolist() == [255]
    for extra in (None, 0):
        values = read_values(tiff(color, 2, extra))
        assert values is not None and values.bands == 4
        assert "1 of 1 images have 4 bands, of which not all are used" in describe_values(Looked([values], 1), None)[0]
        assert decode(tiff(deep, 2, extra), limits=(0, 900)).unique().tolist() == [255]
    assert read_values(tiff(color, 2, 2)) is None
    values = read_values(tiff(deep, 2, 2))
    assert values is not None and values.bands == 0


@pytest.mark.parametrize(
    ("pixels", "photometric", "message"),
    [
        (np.zeros((24, 32, 4), np.uint8), 1, "4 bands (8-bit unsigned, black is zero), nolabel reads 1 or 3"),
        (np.zeros((24, 32, 8), np.uint8), 1, "8 bands (8-bit unsigned"),
        (np.zeros((24, 32, 4), "<u2"), 1, "4 bands (16-bit unsigned"),
        (np.zeros((24, 32, 2), "<f4"), 1, "2 bands (32-bit float"),
        (np.zeros((24, 32, 3), "<f4"), 2, "3 bands of 32-bit float"),
        (np.zeros((24, 32, 3), np.uint8), 1, "3 bands that are not marked as RGB but as black is zero"),
    ],
)
def test_bands_are_named_and_never_called_damaged(pixels: np.ndarray, photometric: int, message: str) -> None:
    with pytest.raises(BadImage) as caught:
        decode(tiff(pixels, photometric, 0))
    assert caught.value.reason == "unsupported mode"
    assert caught.value.detail.startswith(message)


@pytest.mark.parametrize(
    ("low", "high", "option"),
    [
        (0, 4095, "0 4095"), (3, 2999, "0 4095"), (0, 1023, "0 1023"), (-400, 1200, "-400 1200"), (0.1, 0.9, "0.1 0.9"),
        (30000, 34000, "30000 34000"), (0, 1, "0 1"), (0, 100, "0 100"), (0, 255, "0 255"),
    ],
)  # fmt: skip
def test_the_range_that_is_suggested(low: float, high: float, option: str) -> None:
    assert suggest(low, high) == f"--range {option}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scans").mkdir()
    for i in range(3):
        (tmp_path / f"scans/{i}.png").write_bytes(saved(TWELVE, "PNG"))
    Image.new("RGB", (32, 24), (9, 9, 9)).save(tmp_path / "scans/photo.jpg")
    return tmp_path / "scans"


def test_what_is_lost_is_reported(folder: Path) -> None:
    (line,) = describe_values(look_at_values(scan(folder)), None)
    assert line.startswith("3 of 4 images have 16-bit values from 0 to 4094 of 65535: they become 17 of 256 grey")
    assert line.endswith("--range 0 4095")
    assert line in " ".join(format_check(check(folder)).split())
    (line,) = describe_values(look_at_values(scan(folder)), (0, 4095))
    assert line == "range 0 to 4095 in 3 of 4 images; 1 have 8 bits and are read as they are"
    words = " ".join(format_check(check(folder, limits=(0, 1000))).split())
    assert "values are from 0 to 4094: those outside" in words
    for i in range(3):
        (folder / f"{i}.png").write_bytes(saved(TWELVE * 16, "PNG"))
    assert describe_values(look_at_values(scan(folder)), None) == []


def test_holes_in_depth_maps_and_constant_files() -> None:
    """Holes of 65535 are white until a range is stated; no range is suggested for one value."""
    values = read_values(saved(np.where(TWELVE < 800, 65535, TWELVE), "PNG"))
    assert values is not None and values.nodata
    assert describe_values(Looked([values], 1), None)[1].endswith("of all): read as values, black with --range")
    assert describe_values(Looked([values], 1), (0, 4095))[1].endswith("of all): black")
    for constant in (read_values(saved(np.full((4, 4), 7, np.uint16), "PNG")), values._replace(low=7, high=7)):
        assert constant is not None and "--range 7" not in describe_values(Looked([constant], 1), None)[0]


def test_floats_are_reported() -> None:
    values = read_values(tiff((WAVES * 900 + 100).astype("<f4"), 1))
    assert values is not None
    (line,) = describe_values(Looked([values], 1), None)
    assert "brightness does not compare" in line and line.endswith("--range 100 1000")


def test_the_range_goes_with_the_images(folder: Path) -> None:
    with scanned_in((0, 4095)):
        images = scan(folder)
    assert (images.limits, scan(folder).limits) == ((0, 4095), None)
    view = View(16, (1, 1), jitter_p=0, grayscale=0)
    data = saved(TWELVE, "PNG")
    bright = cut(data, [view], [(0, 0, 0, 0)], limits=(0, 4095)).views[0]
    assert bright.max() > 200 > 17 > cut(data, [view], [(0, 0, 0, 0)]).views[0].max()


def test_deep_files_are_packed_as_they_are() -> None:
    assert resized(saved(TWELVE, "PNG"), 8, 95) is None
    assert resized(saved((WAVES * 255).astype(np.uint8), "PNG"), 8, 95) is not None


def test_the_range_goes_with_the_weights(tmp_path: Path) -> None:
    net = load_weights("random:resnet18").backbone
    half = (0.5, 0.5, 0.5)
    save_weights(net, tmp_path / "plain", 32, half, half)
    save_weights(net, tmp_path / "deep", 32, half, half, limits=(0.0, 4095.0))
    assert load_weights(tmp_path / "plain").limits is None
    assert load_weights(tmp_path / "deep").limits == (0, 4095)
    assert timm.create_model(f"local-dir:{tmp_path / 'deep'}", pretrained=True) is not None
    file = tmp_path / "deep/config.json"
    for bad in ([1], [5, 2], "x", [0, float("inf")]):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"nolabel": {"range": bad}}))
        with pytest.raises(DataError, match=r"nolabel.range is .*: expected two numbers"):
            load_weights(tmp_path / "deep")


def test_ranges_that_cannot_be(folder: Path) -> None:
    config: Any = dataclasses.replace(load_recipe("simclr-small"), batch_size=2, range=(5.0, 5.0))
    with pytest.raises(UsageError, match="--range 5 5: expected two numbers, the lower one first"):
        resolve(config, 4, 1, torch.device("cpu"))
    with pytest.raises(UsageError, match="the lower one first"):
        check_common(EvalConfig(range=(9.0, 1.0)))
    with pytest.raises(UsageError, match="the lower one first"):
        check(folder, limits=(9, 1))


def test_evaluations_report_what_is_lost(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_values(scan(folder))
    assert "values: 3 of 4 images have 16-bit values from 0 to 4094" in capsys.readouterr().err
    assert not report_values(scan(folder), ["photo.jpg"])


def planes(pixels: np.ndarray) -> bytes:
    """The same as `tiff`, the channels one after the other in one strip each, as for tag 284."""
    data = tiff(pixels, 2)
    apart = np.ascontiguousarray(np.moveaxis(pixels, -1, 0)).tobytes()
    at = data.index(struct.pack("<HHI", 339, 3, 3))  # the last tag gives way to that of planes
    return (data[:at] + struct.pack("<HHIHH", 284, 3, 1, 2, 0) + data[at + 12 :])[: -len(apart)] + apart


def test_planes_of_sixteen_bits_are_never_taken_for_bytes() -> None:
    with pytest.raises(BadImage, match="16-bit channels in planes"):
        decode(planes(np.stack([TWELVE] * 3, -1)))


def test_kept_features_are_those_of_one_range(folder: Path) -> None:
    images = scan(folder)
    keys = {_key(images._replace(limits=limits), {}) for limits in (None, (0.0, 4095.0), (0.0, 1000.0))}
    assert len(keys) == 3
