"""The contract of a source of images: functions of a path, and what they give.

They are functions of modules, so they pickle into workers; a source keeps nothing open between two calls.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from nolabel.data.bad_files import BadFile

Tops = Sequence[str] | None
"""Folders to list the images of, "" for all. None: those of IMAGE_FOLDERS that are there, else all."""

MISSING = (FileNotFoundError, NotADirectoryError, KeyError)
"""Errors of `Source.read` for a name that is not there."""
UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""Its errors for all else, beside BadImage; those of `Source.list_images`, too."""


class Listing(NamedTuple):
    """Images of a source."""

    root: str
    """Absolute path for the other functions of the source."""
    names: Sequence[str]
    """Paths with `/` between the parts, sorted by their bytes; bytes that are not UTF-8 are lone surrogates."""
    skipped: tuple[BadFile, ...] = ()
    """Files that are left out, with reasons."""
    labels: Sequence[tuple[str, ...]] | None = None
    """A column of the source: for each name (class,), or (split, class) with train, val or test, or () for none.

    None: the source has no such column, and folders are the classes.
    """


def _has_none(_root: str, _name: str) -> bool:
    return False


def _none_below(_root: str, _folder: str) -> list[str]:
    return []


def _none_on_top(_root: str) -> list[str]:
    return []


class Source(NamedTuple):
    """One way to hold images. `path` is DATA as an absolute path, `root` that of its listing."""

    recognises: Callable[[str], bool]
    """(path): whether DATA is such a source. Opens one file at most. May raise OSError."""
    list_images: Callable[[str, Tops], Listing]
    """(path, tops): the images, without opening one. Raises UNREADABLE."""
    read: Callable[[str, str], bytes]
    """(root, name): the bytes of any file. Safe in threads and processes. Raises MISSING, BadImage, UNREADABLE."""
    facts: Callable[[str, Sequence[str]], Iterable[tuple[int, int] | None]]
    """(root, names): for each its size in bytes, and what changes with its content; None where it is missing."""
    has: Callable[[str, str], bool] = _has_none
    """(root, name): whether there is a file of this name, an image or not."""
    files_below: Callable[[str, str], list[str]] = _none_below
    """(root, folder/): the names of all files below a folder, images or not, in no order."""
    files_on_top: Callable[[str], list[str]] = _none_on_top
    """(root): the names of the files beside the folders of images, where a file about all of them is searched."""
    has_folders: bool = True
    """Whether names are paths in one tree, so that folders may be classes, and masks and boxes are beside images."""
    may_wrap: bool = False
    """Whether it may hold one folder instead of that folder's content: it is seen through."""
    unreadable: str = "{data} cannot be read: {error}."
    """The message to the user for an error of `list_images`."""
