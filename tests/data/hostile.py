"""Files that break image readers, all made here. `BAD` must be refused, `GOOD` must be read."""

import gzip
import io
import os
import socket
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

PIXELS = np.random.Generator(np.random.Philox(key=7)).integers(0, 256, (6, 8, 3)).repeat(8, 0).repeat(8, 1)
PICTURE = Image.fromarray(PIXELS.astype(np.uint8))  # 64 x 48 in blocks of 8, so that JPEG keeps it


class File(NamedTuple):
    name: str
    data: bytes
    reasons: tuple[str, ...] = ()
    """The reasons with which it may be refused."""


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, color: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG of any kind; `rows` are the filtered rows, `extra` whole chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


WHOLE = {
    "jpg": save(PICTURE, "JPEG", quality=95, subsampling=0),
    "png": save(PICTURE, "PNG"),
    "webp": save(PICTURE, "WEBP", lossless=True),
    "tiff": save(PICTURE, "TIFF", compression="tiff_lzw"),
    "bmp": save(PICTURE, "BMP"),
}
CUT = ("truncated", "damaged")
NO_IMAGE = ("not an image",)
TOO_LARGE = ("too large",)


def cut_files() -> list[File]:
    shares = (0.01, 0.05, 0.5, 0.99)
    cuts = [(kind, data, round(100 * s), max(3, int(s * len(data)))) for kind, data in WHOLE.items() for s in shares]
    thumbnail = save(PICTURE, "JPEG", comment=b"a thumbnail ends here: \xff\xd9")
    raw, tall = save(PICTURE, "TIFF"), struct.pack("<HHII", 257, 4, 1, 48)  # the height
    heads = [("jpg", 20), ("png", 33), ("webp", 20), ("tiff", 8), ("bmp", 54)]
    return [
        *(
            File(f"cut_{percent}.{kind}", data[:end], ("truncated",) if end > 12 else (*CUT, *NO_IMAGE))
            for kind, data, percent, end in cuts
        ),
        *(File(f"header.{kind}", WHOLE[kind][:end], CUT) for kind, end in heads),
        File("no_end.jpg", WHOLE["jpg"][:-2], ("truncated",)),
        File("zero_tail.jpg", WHOLE["jpg"][:-200] + bytes(200), ("truncated",)),
        File("zero_tail_thumbnail.jpg", thumbnail[:-200] + bytes(200), ("truncated",)),
        File("missing_strips.tiff", raw.replace(tall, tall[:8] + b"\xff" + tall[9:]), ("damaged",)),
        File("no_end.png", WHOLE["png"][:-12], ("truncated",)),
        File("strip_outside.tiff", save(PICTURE, "TIFF")[:-1], ("truncated",)),
    ]


def damaged_files() -> list[File]:
    plain = WHOLE["png"]
    frame = WHOLE["jpg"].index(b"\xff\xc0")  # marker, length, depth, height, width
    return [
        File("checksum_pixels.png", flipped(plain, plain.index(b"IDAT") + 12), ("damaged",)),
        File("checksum_header.png", flipped(plain, 20), ("damaged",)),
        File("no_pixels.png", plain[:33] + chunk(b"IEND", b""), CUT),
        File("zero_height.jpg", WHOLE["jpg"][: frame + 5] + bytes(2) + WHOLE["jpg"][frame + 7 :], CUT),
        File("noise_inside.webp", WHOLE["webp"][:30] + bytes(len(WHOLE["webp"]) - 30), CUT),
        File("random.tiff", b"II*\0" + np.random.Generator(np.random.Philox(key=1)).bytes(999), CUT),
        File(
            "random_body.gif",
            b"GIF89a" + np.random.Generator(np.random.Philox(key=2)).bytes(999),
            (*CUT, *TOO_LARGE),
        ),
        File("palette_missing.png", png(4, 4, 8, 3, bytes(20)), CUT),
    ]


def other_files() -> list[File]:
    pages = save(PICTURE, "PDF")
    return [
        File("empty.jpg", b"", ("empty",)),
        File("one_byte.jpg", b"\xff", NO_IMAGE),
        File("random.jpg", np.random.Generator(np.random.Philox(key=3)).bytes(5000), NO_IMAGE),
        File("page.jpg", b"<!DOCTYPE html><html><title>404 Not Found</title></html>", NO_IMAGE),
        File("text.png", "Zażółć gęślą jaźń\n".encode() * 50, NO_IMAGE),
        File("packed.png", gzip.compress(b"no image here" * 100, mtime=0), NO_IMAGE),
        File("array.png", npy(), NO_IMAGE),
        File("vector.png", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', NO_IMAGE),
        File("postscript.jpg", save(PICTURE, "EPS"), NO_IMAGE),
        File("pages.jpg", pages, NO_IMAGE),
        File(
            "photoshop.tif",
            b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3) + bytes(99),
            NO_IMAGE,
        ),
        File("medical.tif", bytes(128) + b"DICM" + bytes(300), NO_IMAGE),
        File("icon.png", save(PICTURE, "ICNS"), NO_IMAGE),
        File("jpeg2000.jpg", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200), NO_IMAGE),
        File("avif.jpg", b"\0\0\0\x20ftypavif" + bytes(200), NO_IMAGE),
        File("archive.jpg", b"PK\x03\x04" + bytes(200), NO_IMAGE),
    ]


def large_files() -> list[File]:
    frame = WHOLE["jpg"].index(b"\xff\xc0")
    huge = WHOLE["jpg"][: frame + 5] + struct.pack(">HH", 60000, 60000) + WHOLE["jpg"][frame + 9 :]
    tags = (
        (256, 60000),
        (257, 60000),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 110),
        (277, 1),
        (278, 60000),
        (279, 9),
    )
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags))
    tiff += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags) + bytes(20)
    return [
        File("bomb.png", png(20000, 20000, 1, 0, bytes(2501 * 20000)), TOO_LARGE),
        File("wide.png", png(2**31 - 1, 1, 8, 0, bytes(99)), (*TOO_LARGE, *CUT)),
        File("huge.jpg", huge, TOO_LARGE),
        File("huge.tif", tiff, TOO_LARGE),
        File("huge.gif", b"GIF89a\xff\xff\xff\xff" + save(PICTURE, "GIF")[10:], TOO_LARGE),
        File(
            "huge.bmp",
            b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 24, *[0] * 6),
            TOO_LARGE,
        ),
    ]


def good_files() -> list[File]:
    still = PICTURE.convert("P")
    blank = Image.new("P", PICTURE.size)
    first = WHOLE["tiff"]
    directory = struct.unpack("<I", first[4:8])[0]
    after = directory + 2 + 12 * struct.unpack("<H", first[directory : directory + 2])[0]
    return [
        *(File(f"whole.{kind}", data) for kind, data in WHOLE.items()),
        File("jpeg_named.png", WHOLE["jpg"]),
        File("png_named.jpg", WHOLE["png"]),
        File("progressive.jpg", save(PICTURE, "JPEG", quality=95, subsampling=0, progressive=True)),
        File("trailer.jpg", WHOLE["jpg"] + b"\xff\xda" + bytes(500)),
        File("movie.gif", save(still, "GIF", save_all=True, append_images=[blank] * 300)),
        File(
            "movie.webp",
            save(PICTURE, "WEBP", lossless=True, save_all=True, append_images=[blank.convert("RGB")]),
        ),
        File("pages.tiff", save(PICTURE, "TIFF", save_all=True, append_images=[blank.convert("RGB")])),
        File("loop.tiff", first[:after] + struct.pack("<I", directory) + first[after + 4 :]),
        File(
            "odd_exif.jpg",
            save(PICTURE, "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
        ),
    ]


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, PIXELS)
    return buffer.getvalue()


BAD = (*cut_files(), *damaged_files(), *other_files(), *large_files())
GOOD = tuple(good_files())

NAMES = (  # all are legal on Linux
    b"caf\xe9.jpg",
    b"\xff\xfe\x80.jpg",
    "café.jpg".encode(),
    "日本語.jpg".encode(),
    "\N{PARTY POPPER}.jpg".encode(),
    b"new\nline.jpg",
    b"tab\tand\rreturn.jpg",
    b"a" * 251 + b".jpg",
    "\u202egnp.jpg".encode(),
    b"#?%20&.jpg",
    b"<img src=x onerror=alert(1)>.jpg",
    b"back\\slash.jpg",
    b"-rf .jpg",
    b"'quote\".jpg",
)


def plant_tree(root: Path) -> dict[str, str]:
    """A folder with one good image `a/real.jpg` and much else; what must be skipped with its reason."""
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "real.jpg").write_bytes(WHOLE["jpg"])
    for link, target in (("loop", "."), ("a/up", ".."), ("a/b/top", "../.."), ("again", "a"), ("me", "me")):
        (root / link).symlink_to(target)
    (root / "me.jpg").symlink_to("me.jpg")
    (root / "dangling.jpg").symlink_to("nothing.jpg")
    os.mkfifo(root / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket.jpg"))
    (root / ".hidden.jpg").write_bytes(WHOLE["jpg"])
    (root / ".git").mkdir()
    (root / ".git" / "x.jpg").write_bytes(WHOLE["jpg"])
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._real.jpg").write_bytes(b"\0\5\x16\7")
    (root / "a" / "._real.jpg").write_bytes(b"\0\5\x16\7")
    (root / "a" / "notes.txt").write_text("hello")
    return {
        "a/up/": "seen before",
        "a/b/top/": "seen before",
        "again/": "seen before",
        "loop/": "seen before",
        "me.jpg": "missing",
        "dangling.jpg": "missing",
        "pipe.jpg": "not a regular file",
        "socket.jpg": "not a regular file",
        ".hidden.jpg": "hidden",
        ".git/": "hidden",
        "__MACOSX/": "hidden",
        "a/._real.jpg": "hidden",
        "*.txt": "other suffix",
        "*": "other suffix",  # the link `me` to itself
    }
