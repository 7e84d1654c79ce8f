"""Check of DATA: every image is read and decoded once, as training would, and nothing is written."""

import hashlib
import os
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from nolabel.data.bad_files import BadFile, BadImage, too_many_bad
from nolabel.data.decode import MAX_PIXELS, Facts, examine, read_values
from nolabel.data.depths import Looked, describe_values
from nolabel.data.images import Images, fingerprint, read, scan
from nolabel.data.levels import Range, Values, check_range
from nolabel.data.missing import describe_unused, is_incomplete
from nolabel.data.names import printable
from nolabel.data.selection import BESIDE, MASK

CHUNK = 1024  # images between two reports of progress


class Spread(NamedTuple):
    """Spread of the width or height of the good images, in pixels."""

    min: int
    median: float
    max: int


class CheckReport(NamedTuple):
    """The images of DATA, and what training will skip."""

    root: str
    kind: str
    fingerprint: str
    num_images: int
    """Files that the scan took for images; `bad` is a part of them, `skipped` is not."""
    formats: dict[str, int]
    """Good images by format, most frequent first."""
    modes: dict[str, int]
    """Good images by Pillow's mode."""
    width: Spread | None
    """None where no image is good."""
    height: Spread | None
    bad: tuple[BadFile, ...]
    """Images that cannot be used: training replaces each by the next good one."""
    skipped: tuple[BadFile, ...]
    """Files that the scan left out."""
    duplicates: tuple[tuple[str, ...], ...]
    """Groups of good images whose files are equal byte for byte."""
    too_many_bad: bool
    """Whether training would stop because more than 5 % are bad."""
    values: tuple[str, ...] = ()
    """Lines on values of more than 8 bits: what is lost, and how to state the range."""
    incomplete: bool = False
    """Whether training would not start because more than 5 % of the files are missing."""
    unused: str = ""
    """Report on files of other suffixes that are pictures, with what can be done."""


def check(
    data: str | Path,
    subfolder: str | None = None,
    max_pixels: int = MAX_PIXELS,
    min_size: int = 1,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    limits: Range | None = None,
) -> CheckReport:
    """Read and decode every image of DATA on several threads; `progress(done, all)` is called now and then.

    Raises DataError as `scan` does.
    """
    check_range(limits)
    images = scan(data, subfolder)._replace(limits=limits)
    look = partial(_look, images, max_pixels, min_size)
    seen: list[_Seen] = []
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(images.names), CHUNK):
            seen += pool.map(look, range(start, min(start + CHUNK, len(images.names))))
            if progress is not None:
                progress(len(seen), len(images.names))
    return _report(images, seen)


def as_dict(report: CheckReport) -> dict[str, object]:
    """The report in plain lists, dictionaries, numbers and strings, for JSON."""
    return report._asdict() | {
        "width": report.width and report.width._asdict(),
        "height": report.height and report.height._asdict(),
        "bad": [file._asdict() for file in report.bad],
        "skipped": [file._asdict() for file in report.skipped],
        "duplicates": [list(group) for group in report.duplicates],
    }


def format_check(report: CheckReport) -> str:
    """The report for people, at most 20 lines."""
    num_bad, num_images = len(report.bad), report.num_images
    lines = [
        f"{printable(report.root)}: {report.kind} of {num_images:,} images, fingerprint {report.fingerprint}",
        f"  formats   {_counts(report.formats)}",
        f"  modes     {_counts(report.modes)}",
    ]
    stretched = sum(report.modes.get(mode, 0) for mode in ("I", "F"))
    if stretched and not report.values:
        lines.append(f"            {stretched:,} of mode I or F: scaled by the declared range or by percentiles")
    lines += [row for line in report.values for row in _wrapped(line)]
    for name, spread in (("width", report.width), ("height", report.height)):
        if spread is not None:
            lines.append(f"  {name:8}  {spread.min} to {spread.max} pixels, median {spread.median:g}")
    lines.append(f"  skipped   {num_bad:,} of {num_images:,} images ({num_bad / num_images:.1%})")
    lines += _by_reason(report.bad, limit=4)
    for reason, head in ((MASK, "masks"), (BESIDE, "beside")):
        entries = [f"{bad.name} ({bad.detail})" for bad in report.skipped if bad.reason == reason]
        lines += [f"  {head:8}  left out: {_short(printable(', '.join(entries)), 200)}"] * bool(entries)
    others = [bad for bad in report.skipped if bad.reason not in (MASK, BESIDE)]
    lines.append(f"  ignored   {len(others):,} other entries" if others else "  ignored   nothing")
    lines += _by_reason(others, limit=3)
    lines += _wrapped(_short(report.unused, 330))
    copies = sum(len(group) - 1 for group in report.duplicates)
    lines.append(f"  equal     {copies:,} files are copies of another" + (":" if copies else ""))
    lines += [f"            {_short(', '.join(map(printable, group)))}" for group in report.duplicates[:1]]
    verdict = "no: more than 5 % of the images are bad" if report.too_many_bad else "yes"
    if report.incomplete:
        verdict = "no: more than 5 % of the files are missing, or of the folders cannot be listed"
    return "\n".join([*lines, f"  trainable {verdict}"])


class _Seen(NamedTuple):
    """One image after a look: `facts` and the SHA-256 of the file, or why it is bad."""

    facts: Facts | None
    digest: bytes
    bad: BadFile | None
    values: Values | None


def _look(images: Images, max_pixels: int, min_size: int, index: int) -> _Seen:
    data = b""
    try:
        data = read(images, index)
        facts = examine(data, max_pixels, min_size, limits=images.limits)[1]
        values = None if facts.format == "JPEG" else read_values(data)
    except BadImage as error:
        return _Seen(None, b"", BadFile(images.names[index], error.reason, error.detail, len(data)), None)
    return _Seen(facts, hashlib.sha256(data).digest(), None, values)


def _report(images: Images, seen: Sequence[_Seen]) -> CheckReport:
    facts = [one.facts for one in seen if one.facts]
    looked = Looked([one.values for one in seen if one.values], len(facts))
    bad = tuple(one.bad for one in seen if one.bad)
    equal: dict[bytes, list[str]] = {}
    for name, one in zip(images.names, seen, strict=True):
        if one.facts:
            equal.setdefault(one.digest, []).append(name)
    return CheckReport(
        root=images.root,
        kind=images.kind,
        fingerprint=fingerprint(images),
        num_images=len(images.names),
        formats=dict(Counter(fact.format for fact in facts).most_common()),
        modes=dict(Counter(fact.mode for fact in facts).most_common()),
        width=_spread([fact.width for fact in facts]),
        height=_spread([fact.height for fact in facts]),
        bad=bad,
        skipped=images.skipped,
        duplicates=tuple(tuple(group) for group in equal.values() if len(group) > 1),
        too_many_bad=too_many_bad(len(bad), len(seen), len(seen)),
        values=tuple(describe_values(looked, images.limits)),
        incomplete=is_incomplete(images.names, images.skipped),
        unused=describe_unused(images.source, images.root, images.skipped),
    )


def _spread(sizes: Sequence[int]) -> Spread | None:
    return Spread(min(sizes), median(sizes), max(sizes)) if sizes else None


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _by_reason(files: Iterable[BadFile], limit: int) -> list[str]:
    """A line per reason with its count and an example, most frequent first."""
    groups: dict[str, list[BadFile]] = {}
    for file in files:
        groups.setdefault(file.reason if file.reason != "other suffix" else file.name, []).append(file)
    ranked = sorted(groups.items(), key=lambda item: -len(item[1]))
    lines = []
    for reason, (first, *others) in ranked[:limit]:
        if first.reason == "other suffix":
            lines.append(f"            {reason}: {_short(printable(first.detail))}")
        else:
            about = _short(printable(first.name + (f" ({first.detail})" if first.detail else "")), 240)
            lines += _wrapped(f"{reason} {1 + len(others):,}: {about}")
    return lines + [f"            and {len(ranked) - limit} more reasons"] * (len(ranked) > limit)


def _wrapped(text: str) -> list[str]:
    """The text in lines below a heading; none for an empty one."""
    indent = " " * 12
    return textwrap.wrap(text, 128, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)


def _short(text: str, width: int = 100) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
