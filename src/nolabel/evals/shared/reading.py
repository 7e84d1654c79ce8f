"""Report on what was read, printed before a number is computed from it: splits, classes, unused files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nolabel import console
from nolabel.data.depths import describe_values, look_at_values
from nolabel.data.images import Images, LabelledImages, left_out, scan_labelled
from nolabel.data.names import printable
from nolabel.evals.shared.labelled import Roles, roles
from nolabel.evals.shared.leaks import leak_notes

LOOKED = 16
"""Number of images whose values are looked at."""


def read_roles(data: str | Path) -> Roles:
    """The roles of DATA, and a line on what was read. Raises DataError as `scan_labelled` and `roles` do."""
    splits = scan_labelled(data)
    parts = roles(splits)
    report_splits(splits, parts.names[2] or "every image against all others")
    return parts


def data_notes(parts: Roles) -> list[str]:
    """Notes for a result: images that are not used, and equal files in two splits."""
    images: dict[str, Images | None] = {
        name: part.images for name, part in zip(parts.names, parts[:3], strict=True) if part is not None
    }
    unused = parts.train.unused
    return [*([f"not used: {', '.join(unused)}"] if unused else []), *leak_notes(images)]


def report_splits(splits: Mapping[str, LabelledImages], reported: str = "") -> None:
    """Print the splits and classes of labelled data, unused files, and the split that is reported."""
    first = next(iter(splits.values()))
    counts = {name: (len(part.labels), part.place) for name, part in splits.items()}
    unused = first.unused if first.classes else left_out(first.images)
    report_reading(counts, first.classes, reported, unused)
    for part in splits.values():
        if report_values(part.images):
            break


def report_reading(
    counts: Mapping[str, tuple[int, str]], classes: Sequence[str] = (), reported: str = "", unused: Sequence[str] = ()
) -> None:
    """Print the splits, each with its number of images and its folder, and the classes, to stderr."""
    parts = [f"{name} {number:,}{_place(name, place)}".strip() for name, (number, place) in counts.items()]
    console.note(f"images: {', '.join(parts)}" + (f"; reported: {reported}" if reported else ""))
    more = f" and {len(classes) - 12} more" if len(classes) > 12 else ""
    if classes:
        console.note(f"classes: {len(classes)} ({printable(', '.join(classes[:12]))}{more})")
    if unused:
        console.note(f"not used: {printable(', '.join(unused))}")


def report_images(number: int, images: Images, what: str = "images") -> list[str]:
    """Print how many images are used, and what the scan left out. Returns what was left out, as notes for a result."""
    unused = left_out(images)
    report_reading({what: (number, "")}, unused=unused)
    report_values(images)
    return unused


def report_values(images: Images, names: Sequence[str] | None = None) -> bool:
    """Print what values of more than 8 bits become, from a few of the images, or of those with `names`.

    Returns whether there was something to print.
    """
    chosen = images if names is None else images._replace(names=names)
    lines = describe_values(look_at_values(chosen, LOOKED), images.limits)
    for line in lines:
        console.note(f"values: {line}")
    return bool(lines)


def _place(name: str, place: str) -> str:
    return f" in {printable(place)}" if place and place != f"{name}/" else ""
