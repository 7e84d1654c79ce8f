"""Bytes to RGB: every mode of Pillow, every orientation, and files that must be refused."""

import builtins
import io
import resource
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import BAD, GOOD, PICTURE, PIXELS, WHOLE, File, chunk, png, save
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

from nolabel.data.bad_files import BadImage
from nolabel.data.decode import Facts, decode, examine
from nolabel.data.images import read, scan
from nolabel.data.modes import to_rgb

EXACT = torch.from_numpy(PIXELS.astype(np.uint8)).permute(2, 0, 1)  # (3, 48, 64)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of two images."""
    assert a.shape == b.shape
    return float((a.int() - b.int()).abs().max())


# ---- whole and broken files


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.name)
def test_good_files(file: File) -> None:
    image = decode(file.data)
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 48, 64))
    if not file.name.endswith(".gif"):  # its palette has few colours
        assert error(image, EXACT) <= (12 if WHOLE["jpg"][:3] == file.data[:3] else 0)


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.name)
def test_bad_files(file: File, capfd: pytest.CaptureFixture[str]) -> None:
    start = time.thread_time()
    with pytest.raises(BadImage) as caught:
        decode(file.data)
    assert time.thread_time() - start < 0.5
    assert caught.value.reason in file.reasons
    if file.reasons == ("truncated",) and not file.name.endswith(".bmp"):
        assert "stop before the end" in caught.value.detail  # seen before Pillow and its libraries see it
    assert caught.value.detail and len(caught.value.detail) < 250 and caught.value.detail.isprintable()
    assert " at 0x" not in caught.value.detail  # no addresses: the same file gives the same words
    assert capfd.readouterr() == ("", "")


def test_the_corpus_is_large_enough() -> None:
    assert len(BAD) >= 60
    assert len({file.name for file in (*BAD, *GOOD)}) == len(BAD) + len(GOOD)


SMALL = PICTURE.resize((9, 7))
CUTS = {
    "jpg": save(SMALL, "JPEG"),
    "progressive.jpg": save(SMALL, "JPEG", progressive=True),
    "thumbnail.jpg": save(SMALL, "JPEG", comment=b"\xff\xd8\xff\xda\xff\xd9"),
    "png": save(SMALL, "PNG"),
    "palette.png": save(SMALL.quantize(), "PNG"),
    "webp": save(SMALL, "WEBP"),
    "lossless.webp": save(SMALL, "WEBP", lossless=True),
    "raw.tiff": save(SMALL, "TIFF"),
    "lzw.tiff": save(SMALL, "TIFF", compression="tiff_lzw"),
    "deflate.tiff": save(SMALL, "TIFF", compression="tiff_adobe_deflate"),
    "jpeg.tiff": save(SMALL, "TIFF", compression="jpeg"),
    "bmp": save(SMALL, "BMP"),
    "palette.bmp": save(SMALL.quantize(), "BMP"),
    "ppm": save(SMALL, "PPM"),
}
ROW_PADDING = {"bmp": 1, "palette.bmp": 3}  # bytes at the end that hold no pixel


@pytest.mark.parametrize("name", CUTS)
def test_a_file_cut_anywhere_is_refused(name: str) -> None:
    data = CUTS[name]
    whole = decode(data)
    survivors, reasons = [], set()
    for end in range(len(data)):
        try:
            image = decode(data[:end])
        except BadImage as error:
            reasons.add(error.reason)
            continue
        survivors.append(end)
        assert torch.equal(image, whole)
    assert survivors == list(range(len(data) - ROW_PADDING.get(name, 0), len(data)))
    assert reasons <= {"empty", "not an image", "truncated"} | (
        {"damaged"} if name[-3:] in ("bmp", "ppm", "iff") else set()
    )


def test_a_tiff_with_its_directory_in_front_is_refused_when_cut() -> None:
    grey = SMALL.convert("L").tobytes()
    strip = zlib.compress(grey)
    tags = (
        (256, 9),
        (257, 7),
        (258, 8),
        (259, 8),
        (262, 1),
        (273, 122),
        (277, 1),
        (278, 7),
        (279, len(strip)),
    )
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + directory + bytes(4) + strip
    assert decode(data)[0].flatten().tolist() == list(grey)
    for end in range(1, len(strip)):
        with pytest.raises(BadImage, match="truncated"):
            decode(data[:-end])


def test_only_the_first_frame_must_be_whole() -> None:
    frames = [PICTURE.convert("P").rotate(30 * turn) for turn in range(9)]
    movie = save(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert torch.equal(decode(movie[: len(movie) // 2]), decode(movie))
    with pytest.raises(BadImage, match="truncated"):
        decode(movie[: len(movie) // 10])


def test_postscript_starts_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a program or file was opened")

    postscript = save(PICTURE, "EPS")
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(BadImage, match="not an image"):
        decode(postscript)


# ---- limits


def test_pixel_limit_is_judged_from_the_header() -> None:
    data = save(PICTURE, "PNG")
    assert decode(data, max_pixels=48 * 64).shape == (3, 48, 64)
    with pytest.raises(BadImage) as caught:
        decode(data, max_pixels=48 * 64 - 1)
    assert (caught.value.reason, caught.value.detail) == (
        "too large",
        "64 x 48 = 3,072 pixels, more than 3,071: cut it into tiles or make it smaller",
    )


def test_bombs_take_neither_memory_nor_time() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.thread_time()
    bombs = [file for file in BAD if file.reasons == ("too large",)]
    for file in bombs:
        with pytest.raises(BadImage):
            decode(file.data)
    assert time.thread_time() - start < 0.1 * len(bombs)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB; bytes on macOS
    assert grown * (1 if sys.platform == "darwin" else 1024) < 300e6


@pytest.mark.parametrize("height", [1, 2, 3, 7, 31, 1000])
@pytest.mark.parametrize("width", [1, 2, 3, 7, 31, 1000])
def test_tiny_and_long_images(width: int, height: int) -> None:
    data = save(Image.new("RGB", (width, height), (10, 200, 90)), "PNG")
    image = decode(data)
    assert tuple(image.shape) == (3, height, width)
    assert image.flatten(1).float().mean(1).tolist() == [10, 200, 90]
    if min(width, height) < 8:
        with pytest.raises(BadImage, match=f"too small: {width} x {height} pixels"):
            decode(data, min_size=8)
    else:
        decode(data, min_size=8)


# ---- modes

ORANGE = (240, 120, 40)
GREY = round(240 * 0.299 + 120 * 0.587 + 40 * 0.114)
EVERY_MODE = {  # mode -> what ORANGE becomes; None: there is no rule
    "1": (255, 255, 255),
    "L": (GREY,) * 3,
    "P": ORANGE,
    "RGB": ORANGE,
    "RGBX": ORANGE,
    "CMYK": ORANGE,
    "YCbCr": ORANGE,
    "LAB": ORANGE,
    "HSV": ORANGE,
    "RGBA": ORANGE,
    "LA": (GREY,) * 3,
    "PA": ORANGE,
    "I;16": (GREY,) * 3,
    "I;16L": (GREY,) * 3,
    "I;16B": (GREY,) * 3,
    "I;16N": (GREY,) * 3,
    "I": (255, 255, 255),
    "F": (255, 255, 255),
    "RGBa": None,
    "La": None,
}


def of_mode(mode: str) -> Image.Image:
    """16 x 16 pixels of ORANGE in `mode`; the first pixel is black so that I and F have a range."""
    image = Image.new("RGB", (16, 16), ORANGE)
    if mode.startswith("I;16"):
        values = np.full((16, 16), GREY * 257, dtype=">u2" if mode.endswith("B") else "<u2")
        return Image.frombytes(mode, (16, 16), values.tobytes())
    if mode in ("I", "F"):
        grey = Image.new("L", (16, 16), GREY)
        grey.putpixel((0, 0), 0)
        grey.putpixel((1, 0), 0)
        return grey.convert(mode)
    if mode == "1":
        return Image.new("1", (16, 16), 1)
    if mode == "P":
        return image.quantize(4)
    if mode == "PA":
        return image.quantize(4).convert("PA")
    if mode == "LAB":
        return Image.merge("LAB", [Image.new("L", (16, 16), value) for value in (164, 172, 190)])
    return image.convert("RGBA").convert(mode) if mode in ("RGBa", "La") else image.convert(mode)


def test_the_table_has_every_mode_of_pillow() -> None:
    assert set(Image.MODES) <= EVERY_MODE.keys()


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_every_mode(mode: str) -> None:
    image, expected = of_mode(mode), EVERY_MODE[mode]
    assert image.mode == mode or mode == "I;16N"
    if expected is None:
        with pytest.raises(BadImage, match="unsupported mode"):
            to_rgb(image)
        return
    found = to_rgb(image)
    assert (found.mode, found.size) == ("RGB", (16, 16))
    assert np.abs(np.subtract(found.getpixel((8, 8)), expected)).max() <= 5


IN_FILES = [
    *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(("TIFF", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F")),
    *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
    *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    *(("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")),
    *(("GIF", mode) for mode in ("1", "L", "P")),
    *(("PPM", mode) for mode in ("1", "L", "RGB")),
]


@pytest.mark.parametrize(("kind", "mode"), IN_FILES)
def test_every_mode_from_files(kind: str, mode: str) -> None:
    image, facts = examine(save(of_mode(mode), kind))
    expected = EVERY_MODE[mode]
    assert expected is not None
    assert np.abs(np.subtract(image[:, 8, 8].tolist(), expected)).max() <= 5
    assert facts[0] == kind and facts[2:] == (16, 16)


def test_facts() -> None:
    assert examine(save(PICTURE.convert("L"), "PNG"))[1] == Facts("PNG", "L", 64, 48)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert examine(save(PICTURE, "JPEG", exif=exif))[1] == Facts("JPEG", "RGB", 48, 64)


def test_sixteen_bits_are_divided_by_257() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = torch.from_numpy(np.round(values / 257).astype(np.uint8))
    for kind, options in (("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})):
        image = decode(save(Image.fromarray(values), kind, **options))
        assert all(torch.equal(channel, expected) for channel in image)
    big_endian = b"MM\0*" + save(Image.frombytes("I;16B", (256, 256), values.byteswap().tobytes()), "TIFF")[4:]
    assert big_endian  # Pillow writes its own byte order; the raw mode itself is tested above


def test_sixteen_bit_colour_png() -> None:
    values = (np.arange(3 * 64).reshape(8, 8, 3) * 257).astype(">u2")  # 8-bit values written with 16 bits
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    image, facts = examine(png(8, 8, 16, 2, rows))
    assert facts.mode == "RGB"
    assert torch.equal(image, torch.from_numpy((values // 257).astype(np.uint8)).permute(2, 0, 1))


# ---- transparency


def test_transparent_parts_show_the_background_and_not_hidden_colour() -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., 0] = 255  # red, hidden on the left, half visible in the middle
    rgba[:, 3:5, 3] = 128
    rgba[:, 5:, 3] = 255
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        data = save(Image.fromarray(rgba), kind, **options)
        image = decode(data)
        assert image[:, 0, 0].tolist() == [255, 255, 255]
        assert np.abs(np.subtract(image[:, 0, 3].tolist(), (255, 127, 127))).max() <= 1
        assert image[:, 0, 7].tolist() == [255, 0, 0]
        assert decode(data, background=(124, 116, 104))[:, 0, 0].tolist() == [124, 116, 104]


def test_transparent_palettes_and_colours() -> None:
    index = Image.new("P", (4, 4), 0)
    index.putpalette([255, 0, 0, 0, 0, 255])
    index.putpixel((3, 3), 1)
    for data in (
        save(index, "PNG", transparency=0),
        save(index, "PNG", transparency=b"\0\xff"),
        save(index, "GIF", transparency=0),
        save(index.convert("RGB"), "PNG", transparency=(255, 0, 0)),
    ):
        image = decode(data)
        assert image[:, 0, 0].tolist() == [255, 255, 255]
        assert image[:, 3, 3].tolist() == [0, 0, 255]
    grey = save(Image.new("L", (4, 4), 7), "PNG", transparency=7)
    assert decode(grey)[:, 0, 0].tolist() == [255, 255, 255]


# ---- values of any scale


def test_floats_are_scaled_by_their_percentiles() -> None:
    values = np.linspace(-3.0, 7.0, 4096, dtype=np.float32).reshape(64, 64)
    image = decode(save(Image.fromarray(values), "TIFF"))[0].float()
    low, high = np.percentile(values, (0.5, 99.5))
    expected = torch.from_numpy(np.clip((values - low) / (high - low), 0, 1) * 255)
    assert (image - expected).abs().max() <= 0.51
    assert (image.min(), image.max()) == (0, 255)


def test_floats_between_0_and_1_are_not_black() -> None:
    values = np.random.Generator(np.random.Philox(key=5)).random((32, 32), dtype=np.float32)
    assert 110 < decode(save(Image.fromarray(values), "TIFF")).float().mean() < 145


@pytest.mark.parametrize("tags", [(340, 341), (280, 281)])
def test_a_declared_range_is_obeyed(tags: tuple[int, int]) -> None:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    kind = np.float32 if tags[0] == 340 else np.int32
    for tag, value in zip(tags, (0, 200), strict=True):
        directory[tag] = value
        directory.tagtype[tag] = 12 if tags[0] == 340 else 3
    values = np.tile(np.array([50, 100, 300], kind), (3, 1))
    image = decode(save(Image.fromarray(values), "TIFF", tiffinfo=directory))
    assert image[0, 0].tolist() == [64, 128, 255]


def test_sixteen_bit_pgm_has_the_range_of_its_header() -> None:
    assert decode(b"P5\n2 1\n65535\n" + struct.pack(">HH", 257, 25700))[:, 0].tolist() == [[1, 100]] * 3


def test_values_that_are_not_finite() -> None:
    values = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(100, 100)
    values[0, :3] = np.nan, np.inf, -np.inf
    image = decode(save(Image.fromarray(values), "TIFF"))[0]
    assert image[0, :3].tolist() == [0, 255, 0]
    assert abs(int(image[50, 0]) - 128) <= 3


def test_mostly_equal_values_still_have_a_range() -> None:
    values = np.zeros((100, 100), np.int32)
    values[50, 50] = -70_000
    image = decode(save(Image.fromarray(values), "TIFF"))[0]
    assert (image[50, 50], image[0, 0]) == (0, 255)


@pytest.mark.parametrize("value", [0.0, 5.5, np.nan])
def test_equal_values_without_a_range_are_refused(value: float) -> None:
    with pytest.raises(BadImage, match="no contrast"):
        decode(save(Image.fromarray(np.full((5, 5), value, np.float32)), "TIFF"))


# ---- orientation


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as a camera stores them: the inverse of what a viewer does, from the table of the EXIF standard."""
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    image = Image.fromarray(np.ascontiguousarray(stored(PIXELS.astype(np.uint8), orientation)))
    data = save(image, kind, exif=exif, **options)
    found = decode(data)
    assert error(found, EXACT) <= (12 if kind == "JPEG" else 0)
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert torch.equal(found, torch.from_numpy(np.array(turned)).permute(2, 0, 1))


def test_damaged_or_odd_exif_changes_nothing() -> None:
    for orientation in (0, 9, 200):
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert torch.equal(decode(save(PICTURE, "PNG", exif=exif)), EXACT)
    rows = b"".join(b"\0" + row.tobytes() for row in PIXELS.astype(np.uint8))
    for exif_bytes in (b"", b"junk", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"):
        assert torch.equal(decode(png(64, 48, 8, 2, rows, chunk(b"eXIf", exif_bytes))), EXACT)


# ---- no side effects


def test_pillow_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    decode(WHOLE["png"])
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadImage, match="too large: 3,072 pixels, more than 2,000: cut it"):
        decode(WHOLE["png"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadImage, match="too large: 20000 x 20000"):
        decode(next(file.data for file in BAD if file.name == "bomb.png"))


def test_warnings_of_pillow_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # 3072 pixels: Pillow warns, and raises above 4000
    caught: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                decode(WHOLE["png"])
        except BaseException as problem:
            caught.append(problem)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Image.DecompressionBombWarning):
            Image.open(io.BytesIO(WHOLE["png"]))
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert caught == []
        with pytest.raises(UserWarning, match="ours"):
            warnings.warn("ours", stacklevel=1)


def test_the_result_is_ours_alone() -> None:
    first, second = decode(WHOLE["png"]), decode(WHOLE["png"])
    first.zero_()
    assert torch.equal(second, EXACT)
    assert second.permute(1, 2, 0).is_contiguous()


# ---- real images


def test_real_images_are_those_of_pillow(data_packs: Path) -> None:
    for pack in ("imagenette224/imagenette224.zip", "dense/coco256.zip"):
        images = scan(data_packs / pack)
        with zipfile.ZipFile(data_packs / pack) as archive:
            for index in range(0, len(images.names), len(images.names) // 20):
                with archive.open(images.names[index]) as file:
                    expected = np.array(Image.open(file).convert("RGB"))
                image = decode(read(images, index))
                assert torch.equal(image, torch.from_numpy(expected).permute(2, 0, 1))


def test_real_images_cut_at_the_end_are_refused(data_packs: Path) -> None:
    images = scan(data_packs / "imagenette224" / "imagenette224.zip")
    for index in range(0, len(images.names), 700):
        data = read(images, index)
        picture = Image.open(io.BytesIO(data))
        for whole in (data, save(picture, "JPEG"), save(picture, "PNG"), save(picture, "TIFF")):
            for end in (1, 2, len(whole) // 100, len(whole) // 2):
                with pytest.raises(BadImage):
                    decode(whole[:-end])


def repeat_scan(times: int) -> bytes:
    """A JPEG whose last scan comes `times` more."""
    file = io.BytesIO()
    Image.new("L", (16, 16), 90).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * times + data[-2:]


def test_jpegs_of_many_scans_are_refused() -> None:
    assert decode(repeat_scan(20)).shape == (3, 16, 16)
    with pytest.raises(BadImage, match=r"too slow: a JPEG of 2[0-9]{3} scans|too slow: a JPEG of 2,[0-9]{3} scans"):
        decode(repeat_scan(2000))


def test_what_follows_a_jpeg_counts_for_no_scan() -> None:
    """Cameras append a video, in which any bytes occur."""
    data = repeat_scan(0)
    assert torch.equal(decode(data + b"\x00\x02" + b"\xff\xda\x00\x02" * 500 + b"\xff\xd9"), decode(data))


def test_large_pnms_of_text_are_refused() -> None:
    with pytest.raises(BadImage, match="bytes of a text PNM, more than 10,000,000: save it as PNG"):
        decode(b"P3 2000 2000 255\n" + b"1 " * 12_000_000)
    assert decode(b"P3 1 1 255\n9 8 7\n").flatten().tolist() == [9, 8, 7]
