"""Sources of images. Adding one: its file, a line here, and its words in `catalog.SOURCES`.

No other module asks which source it has: `source.py` is the contract.
"""

import os
from pathlib import Path

from nolabel.catalog import describe_sources
from nolabel.data.content import NUM_BYTES, describe_content, is_utf16
from nolabel.data.names import printable
from nolabel.data.sources import folder, shards, textlist, zip_file
from nolabel.data.sources.source import Source
from nolabel.errors import DataError, nearest

SOURCES: dict[str, Source] = {
    "shards": shards.SOURCE,
    "folder": folder.SOURCE,
    "zip": zip_file.SOURCE,
    "list": textlist.SOURCE,
}
"""The first that recognises DATA is taken: shards are a folder, too, and any text is a list."""


def find_source(data: str | Path) -> str:
    """The key in SOURCES of the source that recognises DATA. DataError where it is missing or none does."""
    path, shown = os.path.abspath(data), printable(str(data))
    try:
        for kind, source in SOURCES.items():
            if source.recognises(path):
                return kind
        problem = _describe_problem(path)
    except OSError as error:
        raise DataError(f"{shown} cannot be read: {printable(str(error))}.") from None
    raise DataError(f"{shown} {problem}\nExpected {describe_sources()}.")


def _describe_problem(path: str) -> str:
    """Why nothing recognises a path, with names like it."""
    if os.path.isfile(path):
        with open(path, "rb") as file:
            start = file.read(NUM_BYTES)
        if is_utf16(start):
            return "looks like text in UTF-16 without its mark (BOM): save it as UTF-8."
        kind = describe_content(start)
        return "is neither a zip nor a text file." + (f" It looks like {kind}." if kind else "")
    folder = os.path.dirname(path)
    beside = os.listdir(folder) if os.path.isdir(folder) else []
    problem = "is no regular file" if os.path.lexists(path) else "does not exist"
    return f"{problem}.{printable(nearest(os.path.basename(path), beside))}"
