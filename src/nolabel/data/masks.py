"""Masks among photos, recognised by their names alone: training and class folders leave them out. No file is opened.

A folder whose name has a word for masks holds masks in three cases:

* a folder of pictures is beside it (`images` and `masks`, `leftImg8bit` and `gtFine`);
* its name is that of a split with such a word (`train_masks` beside `train`);
* most of its files have the names of photos beside it (`photos/1.jpg` and `labels/1.png`).

A file is a mask in two cases:

* its name is that of a photo in its folder with a word for masks (`x_mask.png`);
* it has the name of a JPEG in its folder, and so has every file of its format there (`x.png` beside `x.jpg`).
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nolabel.data.names import Names, ancestors
from nolabel.data.splits import PICTURE_WORDS, PLAIN_WORDS, split_of, words

MASK_WORDS = frozenset(
    words(
        "mask masks seg segs segm segmentation segmentations label labels labelmap labelmaps labelids gt gts "
        "truth groundtruth groundtruths annotation annotations annot annots ann anns anno annos trimap "
        "trimaps semantic panoptic instance instances instanceids matte mattes parts manual depth depths "
        "disparity stuffthingmaps pixelmap pixelmaps ground"
    )
)
"""Words for masks, label maps and depth maps in the names of folders and files."""
_BESIDE = frozenset(
    words(
        "fine coarse class classes object objects aug augmented raw color colors colored colour colours "
        "coloured id ids map maps gif gifs tif tiff bmp binary gray grey left right bit camera resized "
        "resolution full st nd machine human polygons trainids p px trainvaltest trainextra"
    )
)
"""Words that may be in the same name: `gtFine`, `SegmentationClass`, `leftImg8bit`, `1st_manual`."""
LOSSY = (".jpg", ".jpeg")
_LOSSLESS = (b".png", b".bmp", b".gif", b".tif", b"tiff")
_LEAST = 2  # pairs of photo and mask in a folder, from which on names are no chance

_WORDS = "|".join(sorted(MASK_WORDS, key=len, reverse=True))
_MORE = "|".join(sorted(_BESIDE | MASK_WORDS, key=len, reverse=True))
# stems of masks, `base` is that of the photo: x_mask_2 (after); x_fine_mask (later); mask_x, seg12 (before)
_GAP = r"(?:[-_. ]+|(?<=[a-z0-9])(?=[A-Z]))"
_AFTER = re.compile(rf"(?P<base>.+?){_GAP}(?i:{_WORDS})(?:{_GAP}?(?:(?i:{_MORE})|\d++))*+")
_LATER = re.compile(rf"(?P<base>.+?){_GAP}(?:(?i:{_MORE}){_GAP})+(?i:{_WORDS})(?:{_GAP}?(?:(?i:{_MORE})|\d++))*+")
_BEFORE = re.compile(rf"(?i:{_WORDS})(?:[-_. ]*(?i:{_MORE}))*+(?:[-_. ]+|(?=\d))(?P<base>.+)")
# cheap tests, before the patterns above: the words that contain no other one
_SHORTEST = sorted(word.encode() for word in MASK_WORDS if not any(o != word and o in word for o in MASK_WORDS))
_ANY = re.compile(b"|".join(_SHORTEST))
# words that mark a mask even with the suffix of a JPEG; others are in ordinary names (`mary_ann.jpg`)
_CERTAIN = re.compile(r"mask|label|seg|annot|trimap|matte|truth", re.IGNORECASE)
# stems of photos with a word for photos: x_leftImg8bit, img_x
_PICTURE = "|".join(sorted(PICTURE_WORDS | {"leftimg8bit", "im"}, key=len, reverse=True))
_PICTURE_AFTER = re.compile(rf"(?P<base>.+?)[-_. ]+(?i:{_PICTURE}|train(?:ing)?|test)")
_PICTURE_BEFORE = re.compile(rf"(?i:{_PICTURE})[-_. ]*(?P<base>.+)")


class MaskGroup(NamedTuple):
    """Masks of one kind."""

    name: str
    """Folder (`gtFine/`) or pattern (`*_mask.png`), for people."""
    rows: NDArray[np.int64]
    """Positions of the masks among the names."""
    certain: bool
    """False where the names are weak evidence: `x.png` beside `x.jpg`, `x_label.jpg`, `mask/x.png` and `face/x.jpg`."""


def find_masks(names: Names) -> list[MaskGroup]:
    """The masks among the names of images, by kind."""
    if not len(names):
        return []
    groups: dict[tuple[str, bool], list[NDArray[np.int64]]] = {}
    free = np.ones(len(names), bool)  # files outside of folders of masks
    if _has_word(names.folders.text):
        by_folder = _mask_folders(names)
        kinds = {kind: i for i, kind in enumerate(sorted(set(by_folder.values())))}
        kind_of_folder = np.full(len(names.folders.starts), -1)
        kind_of_folder[list(by_folder)] = [kinds[kind] for kind in by_folder.values()]
        kind = kind_of_folder[names.folder]
        free = kind < 0
        groups = {name: [np.flatnonzero(kind == i)] for name, i in kinds.items()}
    order = np.argsort(names.folder, kind="stable")
    order = order[free[order]]
    lower = names.files.text.lower()
    if _has_word(lower):
        for name, rows in _by_suffix(names, order):
            groups.setdefault((name, not name.endswith(LOSSY)), []).append(rows)
    if any(end in lower for end in _LOSSLESS) and any(end.encode() in lower for end in LOSSY):
        for name, rows in _twins(names, order):
            groups.setdefault((name, not name.endswith(LOSSY)), []).append(rows)
    return [MaskGroup(name, np.unique(np.concatenate(rows)), sure) for (name, sure), rows in groups.items()]


def is_masks(folder: str) -> bool:
    """Whether a folder is named after masks: masks, ann_dir, gtFine, SegmentationClass, label_images, ground-truth."""
    own = set(words(folder))
    return bool(own & (MASK_WORDS - {"ground"})) and _plain(own - MASK_WORDS - PICTURE_WORDS)


def is_pictures(folder: str) -> bool:
    """Whether a folder is named after pictures: images, Imgs, JPEGImages, img_dir, leftImg8bit, CXR_png, frames."""
    own = set(words(folder))
    return bool(own & PICTURE_WORDS) and not own & MASK_WORDS and _plain(own - PICTURE_WORDS)


def masks_of(folder: str, beside: Iterable[str]) -> str | None:
    """The folder of `beside` whose masks `folder` has by its name: train for `train_masks`, `trainannot`; else None."""
    low = folder.lower()
    for other in beside:
        if other != folder and other.lower() in low:
            rest = words(low.replace(other.lower(), "_", 1))
            if set(rest) & MASK_WORDS and _plain(set(rest) - MASK_WORDS):
                return other
    return None


def mask_bases(stem: str) -> list[str]:
    """Possible stems of the photo of a mask, by the stem of the mask: `x_mask_2`, `x_labelIds` -> x."""
    return [match["base"] for pattern in (_AFTER, _LATER, _BEFORE) if (match := pattern.fullmatch(stem))]


def photo_bases(stem: str) -> list[str]:
    """The stem of a photo, and the same without a word for photos: `x_leftImg8bit` -> `x_leftImg8bit`, x."""
    bases = [match["base"] for pattern in (_PICTURE_AFTER, _PICTURE_BEFORE) if (match := pattern.fullmatch(stem))]
    return [stem, *bases]


def _has_word(text: bytes) -> bool:
    text = text.lower()
    return any(word in text for word in _SHORTEST)


def _plain(rest: set[str]) -> bool:
    """Whether the other words of a name change nothing: numbers, words of `_BESIDE`, splits."""
    return all(word.isdigit() or word in _BESIDE or word in PLAIN_WORDS or split_of(word) for word in rest)


def _mask_folders(names: Names) -> dict[int, tuple[str, bool]]:
    """The positions of folders that hold masks: each with the folder named so, and whether the name is certain.

    It is `gtFine/` for gtFine/train/aachen/.
    """
    strings = names.folders.strings()
    folders = {i: strings[i] for i in np.unique(names.folder).tolist()}
    inside: dict[str, set[str]] = {}
    for folder in folders.values():
        for above, name in ancestors(folder):
            inside.setdefault(above, set()).add(name)
    tops: dict[str, tuple[str, bool]] = {}
    for above, kids in inside.items():
        named = [kid for kid in kids if _ANY.search(kid.lower().encode("utf-8", "surrogateescape"))]
        if named:
            sure, unsure, strange = _sort_out(kids, named)
            tops |= {f"{above}{kid}/": (f"{kid}/", True) for kid in sure}
            if not strange:  # `no_mask` beside `mask`: classes
                paths = tuple(f"{above}{kid}/" for kid in unsure)
                photos = {i: f for i, f in folders.items() if f.startswith(above) and not f.startswith(paths)}
                paired = [kid for kid in unsure if _is_paired(names, folders, photos, f"{above}{kid}/")]
                tops |= {f"{above}{kid}/": (f"{kid}/", False) for kid in paired}
    mask_folders = {}
    for i, folder in folders.items():
        top = next((tops[f"{above}{name}/"] for above, name in ancestors(folder) if f"{above}{name}/" in tops), None)
        if top is not None:
            mask_folders[i] = top
    return mask_folders


def _sort_out(kids: Collection[str], named: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Folders with a word for masks: surely masks; masks if their files fit; with strange names, such as `no_mask`."""
    own = {kid: masks_of(kid, kids) for kid in named}
    others = [kid for kid in kids if kid not in named and not is_pictures(kid) and not split_of(kid)]
    pictures = any(is_pictures(kid) for kid in kids) and not others  # `picture_frame`, `mask`, `wig` may be classes
    sure = [kid for kid in named if (pictures and is_masks(kid)) or split_of(own[kid] or "")]
    unsure = [kid for kid in named if kid not in sure and (is_masks(kid) or own[kid])]
    return sure, unsure, [kid for kid in named if kid not in sure and kid not in unsure]


def _is_paired(names: Names, folders: Mapping[int, str], beside: Collection[int], path: str) -> bool:
    """Whether most files below `path` have names of photos beside it, in another format or with a word for masks."""
    mine = [i for i, folder in folders.items() if folder.startswith(path)]
    photos = set[tuple[str, str]]()
    for _, stem, suffix in _stems(names, np.flatnonzero(np.isin(names.folder, list(beside)))):
        photos.update((base, suffix.lower()) for base in photo_bases(stem))
    stems = {stem for stem, _ in photos}
    rows = np.flatnonzero(np.isin(names.folder, mine))
    rows = rows[:: max(1, len(rows) // 1000)]  # about a thousand of them are enough
    paired = 0
    for _, stem, suffix in _stems(names, rows):
        alike = stem in stems and (stem, suffix.lower()) not in photos and suffix.lower() not in LOSSY
        paired += alike or any(base in stems for base in mask_bases(stem))
    return paired >= max(_LEAST, len(rows) / 2)


def _by_suffix(names: Names, order: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Files with the name of a photo in their folder and a word for masks, by pattern (`*_mask.png`)."""
    likely = np.zeros(len(names), bool)
    likely[_with_word(names)] = True
    for rows in _by_folder(names, order, names.folder[likely]):
        bases = {row: some for row, stem, _ in _stems(names, rows[likely[rows]]) if (some := mask_bases(stem))}
        if len(bases) < _LEAST:
            continue
        own = np.array(list(bases), np.int64)
        photos = {base for _, stem, _ in _stems(names, np.setdiff1d(rows, own)) for base in photo_bases(stem)}
        kinds: dict[str, list[int]] = {}
        for row, stem, suffix in _stems(names, own):
            base = next((base for base in bases[row] if base in photos), None)
            if base is None or (not stem.startswith(base) and suffix.lower() in LOSSY):
                continue
            after = stem.startswith(base)
            if suffix.lower() in LOSSY and not _CERTAIN.search(stem[len(base) :]):
                continue  # `golf_gt.jpg`, `mary_ann.jpg`
            word = re.sub(r"\d+", "", stem[len(base) :] if after else stem[: len(stem) - len(base)])
            kinds.setdefault(f"*{word}{suffix.lower()}" if after else f"{word}*{suffix.lower()}", []).append(row)
        paired = sum(map(len, kinds.values()))
        if paired >= max(_LEAST, (len(rows) - paired) / 10):
            yield from ((name, np.array(members, np.int64)) for name, members in kinds.items())


def _twins(names: Names, order: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Files beside a JPEG of the same name, where every file of their format in the folder has such a JPEG."""
    ends = _last_bytes(names)[order]
    lossy = np.isin(ends, [_code(b".jpg"), _code(b"jpeg")])
    lossless = np.isin(ends, [_code(end) for end in _LOSSLESS])
    both = np.intersect1d(names.folder[order[lossy]], names.folder[order[lossless]])
    of_folder = zip(_by_folder(names, order, both), _by_folder(names, order[lossless], both), strict=True)
    for rows, unsure in of_folder:
        if not all(_has_twin(names, row) for row in (unsure[0], unsure[-1], unsure[len(unsure) // 2])):
            continue  # three samples: cheap, and enough for nearly every folder of photos in two formats
        by_suffix: dict[str, dict[int, str]] = {}
        for row, stem, suffix in _stems(names, rows):
            by_suffix.setdefault(suffix.lower(), {})[row] = stem
        photos = {stem for suffix in LOSSY for stem in by_suffix.pop(suffix, {}).values()}
        for suffix, stems in by_suffix.items():
            if len(stems) >= _LEAST and photos.issuperset(stems.values()):
                yield f"*{suffix} beside *.jpg", np.array(list(stems), np.int64)


def _has_twin(names: Names, row: int) -> bool:
    stem = os.path.splitext(names[row])[0]
    return any(names.find(stem + end) is not None for end in (*LOSSY, *(end.upper() for end in LOSSY)))


def _by_folder(names: Names, order: NDArray[np.int64], numbers: NDArray[np.integer]) -> Iterator[NDArray[np.int64]]:
    """For each folder of `numbers` the positions of its files. `order` holds positions of files, sorted by folder."""
    sorted_folders = names.folder[order]
    for number in np.unique(numbers):
        first, last = np.searchsorted(sorted_folders, [number, number + 1])
        yield order[first:last]


def _with_word(names: Names) -> NDArray[np.int64]:
    """The positions of files with a word for masks somewhere in their names, by one search in the text of all names."""
    at = np.array([match.start() for match in _ANY.finditer(names.files.text.lower())], np.int64)
    order = np.argsort(names.files.starts, kind="stable")
    starts = names.files.starts[order]
    rows = order[np.maximum(np.searchsorted(starts, at, "right") - 1, 0)] if len(at) else at
    within = at < names.files.starts[rows] + names.files.lengths[rows]  # else the word is in a name that was taken out
    return np.unique(rows[within])


def _last_bytes(names: Names) -> NDArray[np.uint32]:
    """The last four bytes of each name in lower case, as a number."""
    text = np.frombuffer(names.files.text, np.uint8)
    ends = names.files.starts + names.files.lengths
    codes = np.zeros(len(names), np.uint32)
    for back in (4, 3, 2, 1):
        byte = text[np.maximum(ends - back, 0)].astype(np.uint32)
        codes = (codes << np.uint32(8)) | np.where((byte >= 65) & (byte <= 90), byte + 32, byte).astype(np.uint32)
    return codes


def _code(end: bytes) -> int:
    return int.from_bytes(end, "big")


def _stems(names: Names, rows: NDArray[np.integer]) -> Iterator[tuple[int, str, str]]:
    """Position, stem and suffix of each file."""
    text, starts, lengths = names.files
    for row, start, length in zip(rows.tolist(), starts[rows].tolist(), lengths[rows].tolist(), strict=True):
        stem, dot, suffix = text[start : start + length].decode("utf-8", "surrogateescape").rpartition(".")
        yield row, stem, dot + suffix
