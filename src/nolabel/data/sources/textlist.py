"""A text file of paths, one per line, absolute or relative to the folder of the text file."""

import os
from collections.abc import Iterator

from nolabel.data.selection import SUFFIXES, Entry, inside, is_junk, select
from nolabel.data.sources.folder import check_file, facts, has, read
from nolabel.data.sources.source import Listing, Source, Tops

START = 4096  # bytes that are looked at to know a text


def recognises(path: str) -> bool:
    """Whether the file is text, and not an image by its name. Raises OSError where it cannot be opened."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return b"\0" not in file.read(START) and not path.lower().endswith(SUFFIXES)


def list_images(path: str, tops: Tops) -> Listing:
    """The images that it names; a file that is missing is left out."""
    names, skipped = select(inside(list(_entries(path)), tops or ()))
    return Listing(os.path.dirname(path), names, skipped)


def _entries(path: str) -> Iterator[Entry]:
    with open(path, "rb") as file:
        lines = file.read().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    seen = set[str]()
    for name in (os.fsdecode(line.removesuffix(b"\r")) for line in lines if line.strip()):
        if name in seen:
            yield Entry(name, "listed twice")
        elif is_junk(os.path.basename(name)) or "__MACOSX" in name.split("/"):
            yield Entry(name, "hidden")
        else:
            yield check_file(name, os.path.join(os.path.dirname(path), name))
        seen.add(name)


SOURCE = Source(recognises, list_images, read, facts, has, has_folders=False)
