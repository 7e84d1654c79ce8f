"""Lines of YOLO's text files: boxes, polygons, or boxes with keypoints. All lines together decide between these."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from nolabel.data.names import printable
from nolabel.errors import DataError
from nolabel.evals.detection.boxes import Annotated, make_objects
from nolabel.evals.shared.trees import shown

SLACK = 0.01
"""Share of the image by which a value may be outside, as from rounding."""


AROUND = 0.25
"""Share of its sides by which keypoints may be outside of their box, as where it was drawn tightly."""


class Line(NamedTuple):
    """A line of a text file."""

    where: str
    label: int
    values: tuple[float, ...]


class Form(NamedTuple):
    """Meaning of the lines with more than four values."""

    keypoints: bool
    note: str


def read_line(row: str, name: str, number: int, classes: Collection[int]) -> Line:
    """The class and the values of a line. DataError for a line that is wrong, with the reason."""
    where = f"{printable(name)}, line {number},"
    try:
        label, *values = (float(value) for value in row.split())
    except ValueError:
        text = printable(row.strip()[:60])
        why = " Its values are separated by commas: expected blanks." if "," in row else ""
        raise DataError(f"{where} is no list of numbers: {text}.{why}") from None
    if not label.is_integer():
        raise DataError(f"{where} begins with {label:g}: expected the number of a class, such as 0.")
    if label not in classes:
        names = shown([*map(str, classes)], 12)
        raise DataError(f"{where} has class {int(label)}, which has no name. Classes are {names}.")
    if not all(map(math.isfinite, values)):
        raise DataError(f"{where} has a value that is not finite.")
    return Line(where, int(label), tuple(values))


def find_form(lines: Sequence[Line], keypoints: tuple[int, int] | None, folder: str) -> Form:
    """The form of the lines. `keypoints` is kpt_shape of data.yaml; the folder polygons/ holds polygons.

    Raises DataError for a line that has none, and where all could be polygons as well as keypoints.
    """
    long = [line for line in lines if len(line.values) != 4]
    for line in long:
        _check_number(line)
    if not long:
        return Form(False, "")
    if keypoints is not None:
        return _stated(long, *keypoints)
    polygons = all(_is_polygon(line.values) for line in long)
    shapes = [] if folder == "polygons" else [size for size in (2, 3) if _are_keypoints(long, size)]
    if polygons and shapes:
        values, first = len(long[0].values), long[0]
        raise DataError(
            f"{first.where} has {values} values after the class, as all long lines. Two readings are possible:\n"
            f"a polygon of {values // 2} points, or a box with {(values - 4) // shapes[0]} keypoints inside of it.\n"
            f"Keypoints: write kpt_shape: [{(values - 4) // shapes[0]}, {shapes[0]}] into data.yaml. "
            "Polygons: name the folder polygons instead of labels."
        )
    if shapes:
        return Form(True, f"{len(long)} lines have keypoints behind the box, which are not used")
    for line in long:
        if not _is_polygon(line.values):
            raise _no_polygon(line)
    return Form(False, "")


def to_annotated(picture: str, lines: Sequence[Line], numbers: Mapping[int, int], form: Form) -> Annotated:
    """The objects of an image, in shares of it. DataError for a box that is outside, or given in pixels."""
    boxes, outlines = list[tuple[float, ...]](), list[Any]()
    for line in lines:
        values = line.values
        if len(values) == 4 or form.keypoints:
            x, y, w, h = values[:4]
            if max(values[:4]) > 1.5:
                raise _in_pixels(line)
            boxes.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        else:
            boxes.append((min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])))
            outlines.append([list(values)])
    masks = outlines if len(outlines) == len(boxes) else None
    where = lines[0].where.partition(", line")[0] if lines else printable(picture)
    labels = [numbers[line.label] for line in lines]
    return Annotated(picture, None, make_objects(boxes, labels, [False] * len(boxes), masks, (1, 1), where))


def _check_number(line: Line) -> None:
    """DataError for a number of values that no form has."""
    count = len(line.values)
    if count == 5:
        last = line.values[4]
        name = "a track id" if last > 1 else "a confidence" if 0 < last < 1 else "a confidence or a track id"
        raise DataError(
            f"{line.where} has 5 numbers after the class: the last, {last:g}, looks like {name}.\n"
            "Expected 4: ground truth has neither. Use the annotations, or cut the last column off."
        )
    if count < 6:
        raise DataError(f"{line.where} has {count} numbers after the class: expected 4, or pairs of a polygon.")


def _stated(long: Sequence[Line], number: int, size: int) -> Form:
    """The form where data.yaml states the keypoints."""
    for line in long:
        if len(line.values) != 4 + number * size:
            raise DataError(
                f"{line.where} has {len(line.values)} numbers after the class, and kpt_shape: [{number}, {size}]\n"
                f"expects {4 + number * size}: a box and {number} keypoints of {size}."
            )
    return Form(True, f"{len(long)} lines have keypoints behind the box (kpt_shape), which are not used")


def _is_polygon(values: Sequence[float]) -> bool:
    return len(values) % 2 == 0 and all(-SLACK <= value <= 1 + SLACK for value in values)


def _are_keypoints(long: Sequence[Line], size: int) -> bool:
    """Whether all lines may be a box with keypoints of `size` values: in it, or 0 0; the third is 0, 1 or 2."""
    return len({len(line.values) for line in long}) == 1 and all(_has_keypoints(line.values, size) for line in long)


def _has_keypoints(values: Sequence[float], size: int) -> bool:
    (x, y, w, h), rest = values[:4], values[4:]
    if len(rest) % size or w <= 0 or h <= 0:
        return False
    left, top, right, bottom = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    if min(left, top) < -SLACK or max(right, bottom) > 1 + SLACK:
        return False
    left, top, right, bottom = left - w * AROUND, top - h * AROUND, right + w * AROUND, bottom + h * AROUND
    points = [rest[i : i + size] for i in range(0, len(rest), size)]
    inside = all((left <= p[0] <= right and top <= p[1] <= bottom) or tuple(p[:2]) == (0, 0) for p in points)
    return inside and all(p[2] in (0, 1, 2) for p in points if size == 3)


def _no_polygon(line: Line) -> DataError:
    """The error for a long line that is neither a polygon nor a box with keypoints."""
    count = len(line.values)
    if max(line.values) > 1.5 and count % 2 == 0:
        return _in_pixels(line)
    if count % 2:
        return DataError(
            f"{line.where} has {count} numbers after the class: expected 4, or pairs of a polygon.\n"
            "For keypoints write kpt_shape: [number, 2 or 3] into data.yaml."
        )
    return DataError(f"{line.where} has an outline outside of the image: expected shares of the image, from 0 to 1.")


def _in_pixels(line: Line) -> DataError:
    values = shown([f"{value:g}" for value in line.values], 4)
    return DataError(
        f"{line.where} has values above 1: {values}. They look like pixels, as a box outside of the image.\n"
        "Expected shares of the image: divide x and width by the image's width, y and height by its height."
    )
