"""Report on files of more than 8 bits: what is lost on the way to 0..255, and the option that prevents it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from nolabel.data.bad_files import BadImage
from nolabel.data.decode import read_values
from nolabel.data.images import Images, read
from nolabel.data.levels import Range, Values

SAMPLE = 64
"""Images that are looked at before training, evenly over their order."""

FULL = 65535
"""Largest value of 16 bits."""


class Looked(NamedTuple):
    """Values of the files of more than 8 bits in a sample of files."""

    found: list[Values]
    """One record per such file."""
    number: int
    """Files in the sample, of any depth."""


def look_at_values(images: Images, number: int = SAMPLE) -> Looked:
    """The values of some images, evenly over their order. Images that cannot be read are passed over without a word."""
    total = len(images.names)
    found = []
    rows = sorted({i * total // min(number, total) for i in range(min(number, total))})
    for row in rows:
        try:
            values = read_values(read(images, row))
        except BadImage:
            continue
        if values is not None:
            found.append(values)
    return Looked(found, len(rows))


def describe_values(looked: Looked, limits: Range | None) -> list[str]:
    """Lines on what is lost, and how to state the range; none where nothing is lost."""
    deep = [values for values in looked.found if values.mode != "8-bit"]
    lines = _describe_stated(deep, looked.number, limits) if limits else _describe_unstated(deep, looked.number)
    holes = [values.nodata for values in deep if values.nodata]
    if holes:
        share = sum(holes) / len(deep)
        plain = not limits and any(values.nodata and values.mode == "16-bit" for values in deep)
        what = "read as values, black with --range" if plain else "black"
        lines.append(f"{len(holes)} of {looked.number} images have pixels without data ({share:.1%} of all): {what}")
    bands = sorted({values.bands for values in looked.found if values.bands})
    if bands:
        count = sum(values.bands in bands for values in looked.found)
        names = " or ".join(map(str, bands))
        lines.append(f"{count} of {looked.number} images have {names} bands, of which not all are used")
    return lines


def _describe_unstated(deep: Sequence[Values], number: int) -> list[str]:
    lines = []
    direct = [values for values in deep if values.mode == "16-bit"]
    if direct:
        low, high = min(v.low for v in direct), max(v.high for v in direct)
        if high - low < FULL / 2:
            levels = round(high / 257) - round(low / 257) + 1
            lines.append(
                f"{len(direct)} of {number} images have 16-bit values from {low:g} to {high:g} of {FULL}: they become "
                f"{levels} of 256 grey levels, {round(low / 257)} to {round(high / 257)}.{_advice(low, high)}"
            )
    scaled = [values for values in deep if values.mode == "scaled"]
    if scaled:
        low, high = min(v.low for v in scaled), max(v.high for v in scaled)
        lines.append(
            f"{len(scaled)} of {number} images are floats or 32-bit integers, each scaled by its own percentiles: "
            f"their brightness does not compare. State the values of black and white: {suggest(low, high)}"
        )
    return lines


def _describe_stated(deep: Sequence[Values], number: int, limits: Range) -> list[str]:
    low, high = limits
    eight = number - len(deep)
    rest = f"; {eight} have 8 bits and are read as they are" if eight else ""
    lines = [f"range {low:g} to {high:g} in {len(deep)} of {number} images{rest}"]
    below, above = min((v.low for v in deep), default=low), max((v.high for v in deep), default=high)
    if below < low or above > high:
        lines.append(f"values are from {below:g} to {above:g}: those outside of the range become black or white")
    return lines


def _advice(low: float, high: float) -> str:
    return f" State the values of black and white: {suggest(low, high)}" if low < high else ""


def suggest(low: float, high: float) -> str:
    """The option for values from `low` to `high`: whole bits for integers of 8 bits or more, else two digits."""
    if high >= 128 and float(low).is_integer() and float(high).is_integer() and low >= 0 and low < high / 2:
        return f"--range 0 {2 ** max(8, math.ceil(math.log2(high + 1))) - 1}"
    step = 10.0 ** (math.floor(math.log10(max(high - low, 1e-30))) - 1)
    return f"--range {math.floor(low / step) * step:g} {math.ceil(high / step) * step:g}"
