"""Cost of the list of images, from a thousand files to ten million: one row per size, each in a fresh process.

    python benchmarks/index.py FOLDER [--files 1000 10000 100000 1000000 10000000] [--batch-size 64]

FOLDER gets a tree of N empty files, 1,000 a folder, and keeps it for the next time; the files of the first batch are
small JPEGs. Above `--on-disk` files the names are made in memory, and only the memory is measured. "tuple" is what the
same names take as a tuple of str. Times are CPU time of one thread; the file system's cache is warm.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from make_photos import jpeg, photo

from nolabel.data.images import Images, fingerprint, scan
from nolabel.data.loader import Stream, batches
from nolabel.data.names import Names, folder_of, merge
from nolabel.data.order import images_at
from nolabel.views import View

PER_FOLDER = 1000


class Row(NamedTuple):
    files: int
    name: float
    """Bytes of the last part of a name, mean."""
    index: float
    """Bytes a file beside it."""
    resident: float
    """Bytes a file by which the process has grown."""
    peak: float
    """At most, while scanning."""
    in_a_tuple: float
    scan_us: float | None
    """Microseconds a file."""
    first_batch: float | None
    """Seconds from the start of the scan to the first batch."""
    fingerprint_us: float | None


def plant(folder: Path, number: int) -> Path:
    """A tree of `number` files."""
    root = folder / str(number)
    for i in range(0, number, PER_FOLDER):
        below = root / f"n{i // PER_FOLDER:08d}"
        if not below.exists():
            below.mkdir(parents=True)
            for name in names_in(i // PER_FOLDER):
                (below / name).touch()
    return root


def names_in(folder: int) -> list[str]:
    """As ImageNet has them."""
    return [f"n{folder:08d}_{j:05d}.JPEG" for j in range(PER_FOLDER)]


def resident(field: str = "VmRSS") -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def measure(root: Path | None, number: int, batch_size: int, done: Connection) -> None:
    """Measure a tree, or names in memory, and send the row."""
    before, started = resident(), time.process_time()
    if root is not None:
        images = scan(root)
        names = images.names
    else:
        folders = (folder_of(f"n{i:08d}", names_in(i)) for i in range(number // PER_FOLDER))
        names = merge(list(folders))
        images = Images("nowhere", "folder", names, ())
    scanned = time.process_time() - started
    grown, peak = resident() - before, resident("VmHWM") - before
    scan_us = first = prints = None
    if root is not None:
        next(batches(Stream(images, (View(32, (0.5, 1.0)),), 0, batch_size), range(1), workers=0))
        first = time.process_time() - started
        started = time.process_time()
        fingerprint(images)
        scan_us, prints = 1e6 * scanned / number, 1e6 * (time.process_time() - started) / number
    assert isinstance(names, Names)
    text = len(names.files.text)
    parts = (*names.files[1:], names.folder, *names.folders)
    index = sum(len(part) if isinstance(part, bytes) else part.nbytes for part in parts)
    in_a_tuple = sum(8 + sys.getsizeof(name) for name in names)
    sizes = (part / number for part in (text, index, grown, peak, in_a_tuple))
    done.send(Row(number, *sizes, scan_us, first, prints))


def fill_first_batch(root: Path, number: int, batch_size: int) -> None:
    data = jpeg(photo(48, 64, 0), 2000)
    for i in images_at(range(batch_size), number, 0, 0):
        (root / f"n{i // PER_FOLDER:08d}" / names_in(i // PER_FOLDER)[i % PER_FOLDER]).write_bytes(data)


def in_a_process(root: Path | None, number: int, batch_size: int) -> Row:
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=measure, args=(root, number, batch_size, theirs))
    process.start()
    row: Row = mine.recv()
    process.join()
    return row


def show(rows: Sequence[Row]) -> None:
    print("| files | name, B | index, B beside it | process, B | at most, B | tuple, B | scan, us a file |", end="")
    print(" first batch, s | fingerprint, us a file |\n|" + "---|" * 9)
    for row in rows:
        rest = ["–" if value is None else f"{value:.2f}" for value in row[6:]]
        print(f"| {row.files:,} | " + " | ".join([f"{value:.1f}" for value in row[1:6]] + rest) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, nargs="+", default=[10**i for i in range(3, 8)])
    parser.add_argument("--on-disk", type=int, default=10**6)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    rows = []
    for number in options.files:
        root = plant(options.folder, number) if number <= options.on_disk else None
        if root is not None:
            fill_first_batch(root, number, options.batch_size)
        rows.append(in_a_process(root, number, options.batch_size))
    show(rows)
    print(f"{os.cpu_count()} cores")


if __name__ == "__main__":
    main()
