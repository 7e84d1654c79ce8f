"""Marks of what nolabel has made: the mark of a run, the mark of a folder of pictures, and the names in a run.

nolabel removes only files with names that it gives, in folders that it has made. No link is followed.
"""

import contextlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nolabel import files
from nolabel.catalog import PROTOCOLS
from nolabel.errors import UsageError
from nolabel.files import read_yaml

MARK = ".nolabel-run"
"""The file that marks a run. It is the first that is written, and stays when a run is replaced."""


PICTURES = ".nolabel-pictures"
"""The file that marks a folder that was made for pictures."""


MARKS = {MARK: "a run", PICTURES: "pictures"}
"""The marks, each with the contents of its folder in words."""


_STATE = r"((manifest|state)\.json|(model|optim)\.safetensors)?"


RUN_NAMES = re.compile(
    rf"""
      {re.escape(MARK)} | \.lock
    | config\.yaml | status\.json | (metrics|events|bad_files(\.\d+)?)\.jsonl | report\.html
    | \.(config\.yaml|status\.json|metrics\.jsonl|report\.html)\.[^/]+\.tmp
    | \.alive/ (\.?\d+(\.tmp)?)?
    | (checkpoints|capture)/ ((step-\d+(\.old)?(\.corrupt)?|kept-\d+)/ {_STATE} | \.tmp-.*)?
    | weights/ (model\.safetensors|config\.json)? | \.weights\.[^/]+\.tmp/ .*
    | eval/ (\.?({"|".join([*PROTOCOLS, "cache"])})([-./].*)?)?
    | tensorboard/ (events\.out\.tfevents\..*)?
    | pictures/ (pca\.png|attention-\w+\.png)?
    """,
    re.VERBOSE | re.DOTALL,
)
"""Names of files in a run, relative to it; a folder ends in `/`. Below `eval/` they begin with a protocol."""


TEMPORARY = re.compile(
    r"""\.
      (config\.yaml|status\.json|(metrics|events|bad_files(\.\d+)?)\.jsonl|report\.html|weights)
      \.(\d+|[0-9a-f]{16})\.tmp
    """,
    re.VERBOSE,
)
"""Names of files, and of the folder of weights, that a killed process has not finished."""


class Content(NamedTuple):
    """Content of a folder: names relative to it; folders end in `/`."""

    own: list[str]
    """Names that nolabel has written, a folder before its content."""
    strange: list[str]
    """All other names, links and inner runs included. Folders among them are not searched."""


def is_run(folder: str | Path) -> bool:
    """Whether nolabel has made the folder as a run: it is marked, or comes from a version without marks."""
    path = Path(folder)
    if os.path.isfile(path / MARK):
        return True
    if not (os.path.isfile(path / "config.yaml") and os.path.isfile(path / "status.json")):
        return False
    try:
        settings, status = read_yaml(path / "config.yaml"), json.loads((path / "status.json").read_bytes())
    except (UsageError, OSError, ValueError, RecursionError):
        return False
    complete = {"method_name", "method", "optim", "recipe", "data", "out", "backbone"} <= settings.keys()
    return complete and isinstance(status, dict) and {"state", "step", "pid", "heartbeat"} <= status.keys()


def made_by_nolabel(folder: str | Path) -> str:
    """Purpose for which nolabel has made the folder, in words; empty where nolabel has not made it."""
    if is_run(folder):
        return MARKS[MARK]
    return MARKS[PICTURES] if os.path.isfile(os.path.join(folder, PICTURES)) else ""


def put_mark(folder: str | Path, mark: str) -> None:
    """Mark a folder, where it isn't marked yet. Raises OSError."""
    with contextlib.suppress(FileExistsError), open(os.path.join(folder, mark), "x", encoding="ascii") as file:
        file.write("Made by nolabel.\n")


def make_picture_folder(folder: Path) -> None:
    """Make a folder for pictures and mark it, so that no picture is ever taken for data. Raises OSError.

    An existing folder that is not empty stays as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        put_mark(folder, PICTURES)


def content(root: str | Path, names: re.Pattern[str]) -> Content:
    """List everything below `root`, split into names that nolabel gives and others. Raises OSError."""
    listed, folders = Content([], []), [""]
    while folders:
        above = folders.pop()
        with os.scandir(os.path.join(root, above)) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
        for entry in inside:
            is_folder = entry.is_dir(follow_symlinks=False)
            name = above + entry.name + "/" * is_folder
            plain = not is_run(entry.path) if is_folder else entry.is_file(follow_symlinks=False)
            if plain and names.fullmatch(name):
                listed.own.append(name)
                folders += [name] * is_folder
            else:
                listed.strange.append(name)
    return listed


def remove(root: str | Path, names: Sequence[str]) -> None:
    """Remove the files and folders `names`, listed by `content`, in reverse order. Raises OSError."""
    for name in reversed(names):
        path = os.path.join(root, name)
        if name.endswith("/"):
            os.rmdir(path)
        else:
            os.unlink(path)


def remove_temporary(root: str | Path) -> None:
    """Remove what a killed process has left unfinished in a run, as far as that is possible."""
    with contextlib.suppress(OSError):
        for name in os.listdir(root):
            if TEMPORARY.fullmatch(name):
                files.remove(Path(root, name))


def check_strange(root: str | Path, content: Content) -> None:
    """Raise UsageError where a folder that would be replaced holds something that nolabel has not written."""
    if content.strange:
        shown = ", ".join(repr(name)[1:-1] for name in content.strange[:4])
        more = f" and {len(content.strange) - 4} more" if len(content.strange) > 4 else ""
        raise UsageError(
            f"{root} holds what nolabel has not written: {shown}{more}.\n"
            "Nothing was removed. Move that away first, or choose another --out."
        )
