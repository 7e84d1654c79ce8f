"""Lists of classes: the meaning of the ids, or of the colours, in masks."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from nolabel.data.names import printable
from nolabel.errors import DataError, UsageError
from nolabel.evals.dense.iou import VOID
from nolabel.evals.dense.mask_folders import folders_above
from nolabel.evals.dense.mask_ids import VOID_ID
from nolabel.evals.shared.trees import Tree, read_text, shown

VOID_NAMES = ("void", "unlabelled", "unlabeled", "ignore", "ignored")
LISTS = (
    *("classes.json", "classes.yaml", "classes.yml", "classes.txt", "class_dict.csv", "classes.csv", "_classes.csv"),
    *("labelmap.txt", "label_map.txt", "label_colors.txt"),
)
"""Names of such lists, in the folder of the masks or above it; the first one that exists is used."""


class Classes(NamedTuple):
    """Meaning of the ids in masks. Ids that are neither a class nor void are an error."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    """The id of each class; with `colours` it is 65536 red + 256 green + blue."""
    void: tuple[int, ...]
    """Ids of pixels that count for nothing."""
    others_void: bool = False
    """Every other id is void, too (Cityscapes' labelIds)."""
    colours: bool = False
    """The ids are colours."""


def encode(mask: Tensor, classes: Classes, name: str) -> Tensor:
    """The class (H, W) int64 of each pixel, VOID where it counts for nothing. Raises DataError for unknown ids."""
    if classes.colours:  # few of the 16 million that a table would hold
        values, places = torch.unique(mask, return_inverse=True)
        known = dict.fromkeys(classes.void, VOID) | {i: number for number, i in enumerate(classes.ids)}
        numbers = torch.tensor([known.get(value, VOID - 1) for value in values.tolist()])[places]
    else:
        top = max(int(mask.max()), *classes.ids, *classes.void) + 1
        table = torch.full((top + 1,), VOID if classes.others_void else VOID - 1)
        table[list(classes.void)] = VOID
        table[list(classes.ids)] = torch.arange(len(classes.ids))
        numbers = table[mask.clamp_min(-1)]  # -1, Cityscapes' licence plates, is the last entry
    if (numbers < VOID).any():
        unknown = [describe_id(i, classes.colours) for i in torch.unique(mask[numbers < VOID]).tolist()]
        void = ", ".join(describe_id(i, classes.colours) for i in classes.void)
        raise DataError(
            f"The mask {printable(name)} holds the ids {shown(unknown, 8)}, which are no class.\n"
            f"Classes are {shown([describe_id(i, classes.colours) for i in classes.ids], 12)}; void: {void}.\n"
            "Name every id with --classes FILE (id: name), or with --void ID the one that counts for nothing."
        )
    return numbers


def describe_id(number: int, colour: bool) -> str:
    """An id for people; a colour as `#ff8000`."""
    return f"#{number:06x}" if colour else str(number)


def find_classes(tree: Tree, masks: Sequence[str]) -> Classes:
    """The classes in a file of LISTS, in the folder of the masks or above it; no classes where there is no list."""
    for folder in folders_above(masks):
        for name in LISTS:
            text = read_text(tree, f"{folder}{name}")
            if text is not None:
                return parse_classes(text, f"{folder}{name}")
    return Classes((), (), (VOID_ID,))


def load_classes(path: Path) -> Classes:
    """The classes in the file of --classes. Raises UsageError where it cannot be read, DataError as parsing does."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(f"--classes {path} cannot be read: {error}.") from None
    return parse_classes(text, str(path))


def parse_classes(text: str, source: str) -> Classes:
    """Classes from `id: name` in JSON or YAML (also below `classes` or `names`), one name per line, or with colours.

    Lines count from id 0. Raises DataError for text that is no list; `source` is the name of the file.
    """
    try:
        content: Any = _parse_lines(text) if source.endswith((".txt", ".csv")) else yaml.safe_load(text)
        for key in ("classes", "names", "labels"):
            if isinstance(content, Mapping) and key in content:
                content = content[key]
        if isinstance(content, Sequence) and content and all(isinstance(one, Mapping) for one in content):
            return _with_colours({_colour(one): str(one["name"]).strip() for one in content}, len(content))
        pairs = content.items() if isinstance(content, Mapping) else enumerate(content)
        ids = {int(key): str(name).strip() for key, name in pairs if str(name).strip()}
    except (yaml.YAMLError, ValueError, TypeError, KeyError, StopIteration):
        ids = {}
    if not ids or min(ids) < 0 or max(ids) > 65535 or len(set(ids.values())) < len(ids):
        raise DataError(
            f"{printable(source)} is no list of classes.\n"
            "Expected `id: name` lines (YAML or JSON), ids from 0 to 65535 and no name twice, or a .txt with one name\n"
            "per line; for masks in colours a list of objects with name and color (JSON, YAML), or a CSV of name,r,g,b."
        )
    void = tuple(i for i, name in ids.items() if name.lower() in VOID_NAMES)
    kept = {i: ids[i] for i in sorted(ids) if i not in void}
    return Classes(tuple(kept.values()), tuple(kept), void if VOID_ID in kept else (*void, VOID_ID))


def _parse_lines(text: str) -> Any:
    """Names, or objects with name and color: `sky,128,128,128`, also below a heading, or CVAT's `sky:128,128,128::`."""
    lines = [line.strip() for line in text.splitlines()]
    rows = [re.split(r"[,;:\t]\s*", line) for line in lines if line and not line.startswith("#")]
    numbers = [[part for part in row[1:] if part] for row in rows]
    start = 1 if rows and not any(part.isdigit() for part in rows[0]) and len(rows[0]) >= 4 else 0
    if len(rows) > start and all(len(some) >= 3 and all(n.isdigit() for n in some[:3]) for some in numbers[start:]):
        return [{"name": row[0], "color": some[:3]} for row, some in zip(rows[start:], numbers[start:], strict=True)]
    return text.splitlines()


def _colour(one: Mapping[str, Any]) -> int:
    value = next(one[key] for key in one if str(key).lower() in ("color", "colour", "rgb"))
    if isinstance(value, str):
        return int(re.fullmatch(r"#?([0-9a-fA-F]{6})", value.strip())[1], 16)  # type: ignore[index]
    red, green, blue = (int(part) for part in value)
    if not all(0 <= part < 256 for part in (red, green, blue)):
        raise ValueError(value)
    return (red << 16) + (green << 8) + blue


def _with_colours(named: Mapping[int, str], number: int) -> Classes:
    if len(named) < number or len(set(named.values())) < number:
        raise ValueError("two classes have one name or one colour")
    void = tuple(colour for colour, name in named.items() if name.lower() in VOID_NAMES)
    kept = {colour: name for colour, name in named.items() if colour not in void}
    return Classes(tuple(kept.values()), tuple(kept), void, colours=True)
