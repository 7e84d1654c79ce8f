"""Images into shards. Equal input gives equal bytes: no time, no owner, no path of this machine is written."""

import hashlib
import json
import os
import shutil
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import simplejpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from nolabel.console import note
from nolabel.data.bad_files import BadFile, BadImage
from nolabel.data.decode import load, open_image, read_values
from nolabel.data.images import Images, fingerprint, left_out, read, scan
from nolabel.data.names import Names, compact, printable
from nolabel.data.sources.members import MAX_MEMBER_BYTES
from nolabel.data.sources.shards import ABOUT, BLOCK, INDEX, VERSION, header, index_bytes, unsafe
from nolabel.errors import DataError, StorageError, UsageError
from nolabel.files import temporary_name

CHUNK = 256  # images that are prepared before they are written, and between two reports of progress


class Packing(NamedTuple):
    """Settings of packing."""

    short_side: int | None = None
    """Pixels: larger images are made so small and written as JPEG. None: every file stays as it is."""
    quality: int = 95
    """Quality of the JPEGs of images made smaller, 1 to 100."""
    shard_mb: int = 256
    """Megabytes after which another shard begins."""
    threads: int | None = None
    """Threads that read, decode and encode. None: one per core, at most 8."""


class Packed(NamedTuple):
    """Outcome of packing."""

    path: Path
    num_images: int
    num_resized: int
    num_shards: int
    bytes: int
    fingerprint: str
    """As `fingerprint` gives for the shards; that of DATA, if nothing was resized or left out."""
    left_out: tuple[BadFile, ...]
    """Files that could not be read at all."""


def pack(
    data: str | Path,
    out: str | Path,
    packing: Packing,
    subfolder: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Write the images of DATA into the new folder `out`, which appears when it is complete.

    `progress(done, all)` is called now and then. Raises UsageError where `out` exists or a setting makes no sense,
    DataError as `scan` does and for names that lead out of the folder, StorageError.
    """
    out = Path(out)
    _check(out, packing)
    images = scan(data, subfolder)
    for line in left_out(images):
        note(f"{data}: {line}")
    outside = next((name for name in images.names if unsafe(name)), None)
    if outside is not None:
        raise DataError(
            f"{printable(outside)} is outside of the folder of {printable(str(data))}.\n"
            "Names in shards are relative and lead nowhere else: pack a folder that holds all images."
        )
    temporary = temporary_name(out)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:  # a folder of that name is somebody's: it stays
        raise StorageError(f"{out} cannot be written ({error.strerror}). Choose another --out.") from error
    try:
        packed = _write(images, temporary, packing, progress or (lambda done, total: None))
        temporary.rename(out)
    except OSError as error:
        raise StorageError(f"{out} cannot be written ({error.strerror}). Choose another --out.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return packed._replace(path=out, fingerprint=fingerprint(scan(out)))


def _check(out: Path, packing: Packing) -> None:
    if out.exists():
        raise UsageError(f"{out} exists: choose another --out, or remove it.")
    if packing.short_side is not None and packing.short_side < 16:
        raise UsageError(f"--short-side {packing.short_side}: expected at least 16 pixels.")
    if not (1 <= packing.quality <= 100 and packing.shard_mb >= 1):
        raise UsageError("--quality is 1 to 100, --shard-mb at least 1.")


class _Member(NamedTuple):
    """An image on its way into a shard."""

    shard: int
    start: int
    name: str
    data: bytes
    resized: bool


def _write(images: Images, folder: Path, packing: Packing, progress: Callable[[int, int], None]) -> Packed:
    names, left_out, shards = list[str](), list[BadFile](), list[dict[str, Any]]()
    rows = {"start": array("q"), "size": array("q"), "crc": array("q"), "shard": array("q")}
    contents = _contents(images, packing, progress)
    num_resized = 0
    for number, members in groupby(_placed(images, contents, packing, left_out), lambda one: one.shard):
        path, digest = folder / f"{number:05d}.tar", hashlib.sha256()
        with open(path, "wb") as file:
            for one in members:
                file.writelines(_update(digest, *_record(one.name, one.data)))
                facts = one.start, len(one.data), zlib.crc32(one.data), number
                for column, value in zip(rows.values(), facts, strict=True):
                    column.append(value)
                names.append(one.name)
                num_resized += one.resized
            file.writelines(_update(digest, _END))
        shards.append({"name": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()})
    if not names:
        raise DataError(
            f"None of the {len(images.names)} images can be read. `nolabel check DATA` reports the reasons."
        )
    index = _write_index(folder, compact(names), rows, shards, packing)
    total = index + sum(shard["bytes"] for shard in shards)
    return Packed(folder, len(names), num_resized, len(shards), total, "", tuple(left_out))


def _write_index(
    folder: Path, names: Names, rows: Mapping[str, Sequence[int]], shards: Sequence[dict[str, Any]], packing: Packing
) -> int:
    """The two files beside the shards; gives the bytes of the index."""
    index, lengths = index_bytes(names, rows)
    (folder / INDEX).write_bytes(index)
    about = {
        "version": VERSION,
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "lengths": lengths,
        "short_side": packing.short_side,
        "quality": packing.quality if packing.short_side else None,
        "shards": shards,
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
    return len(index)


def _update(digest: Any, *parts: bytes) -> tuple[bytes, ...]:
    """The same parts, after the digest has seen them."""
    for part in parts:
        digest.update(part)
    return parts


_END = bytes(2 * BLOCK)  # a tar ends with two empty blocks


def _record(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    """A member of a tar: its header, the content, the padding of the last block."""
    return header(name, len(data)), data, bytes(-len(data) % BLOCK)


def _placed(
    images: Images, contents: Iterable[tuple[bytes, bool] | BadFile], packing: Packing, left_out: list[BadFile]
) -> Iterator[_Member]:
    """Each image with its place; what cannot be read goes to `left_out`."""
    shard = at = 0
    for name, content in zip(images.names, contents, strict=True):
        if isinstance(content, BadFile):
            left_out.append(content)
            continue
        before, data, fill = _record(name, content[0])
        if at and at + len(before) + len(data) + len(fill) > packing.shard_mb * 10**6:
            shard, at = shard + 1, 0
        yield _Member(shard, at + len(before) - BLOCK, name, *content)
        at += len(before) + len(data) + len(fill)


def _contents(
    images: Images, packing: Packing, progress: Callable[[int, int], None]
) -> Iterator[tuple[bytes, bool] | BadFile]:
    """In the order of the images: the bytes to write and whether they are new ones, or why there are none."""
    prepare, number = partial(_prepared, images, packing), len(images.names)
    with ThreadPoolExecutor(packing.threads or min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, number, CHUNK):
            yield from pool.map(prepare, range(start, min(start + CHUNK, number)))
            progress(min(start + CHUNK, number), number)


def _prepared(images: Images, packing: Packing, index: int) -> tuple[bytes, bool] | BadFile:
    data = b""
    try:
        data = read(images, index)
        if len(data) > MAX_MEMBER_BYTES:
            raise BadImage("too large", f"{len(data):,} bytes, more than {MAX_MEMBER_BYTES:,} in an archive")
    except BadImage as error:
        return BadFile(images.names[index], error.reason, error.detail, len(data))
    small = None if packing.short_side is None else resized(data, packing.short_side, packing.quality)
    return (data, False) if small is None else (small, True)


def resized(data: bytes, side: int, quality: int) -> bytes | None:
    """A JPEG of the image whose shorter side is `side`; None where the image is no larger or cannot be decoded.

    What cannot be decoded is packed as it is: training meets it, and its place, as it would in the folder. So are files
    of more than 8 bits: a range that a run states could not be applied to a JPEG.
    """
    try:
        if (values := read_values(data)) and values.mode != "8-bit":
            return None
        opened = open_image(data)
        height, width = opened.facts.height, opened.facts.width
        shorter = min(height, width)
        if shorter <= side:
            return None
        factor = max(f for f in (1, 2, 4, 8) if f == 1 or shorter >= f * side)
        image = load(opened, factor)
    except BadImage:
        return None
    size = [max(1, round(length * side / shorter)) for length in (height, width)]
    image = F.resize(image, size, InterpolationMode.BICUBIC, antialias=True)
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    encoded: bytes = simplejpeg.encode_jpeg(pixels, quality, "RGB", "420")
    return encoded
