"""Names of splits and of folders of pictures: the one place with all their spellings."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

SPLITS = ("train", "val", "test")
_WORD = re.compile(r"[^\W\d_]+|\d+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def words(name: str) -> list[str]:
    """The words and numbers of a name in lower case: `leftImg8bit` -> left, img, 8, bit; `Train_Set` -> train, set."""
    return [word.lower() for part in _WORD.findall(name) for word in _CAMEL.split(part)]


_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "tr", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "vali", "vld", "minival"), "val"),
    **dict.fromkeys(("dev", "devel", "development"), "val"),
    **dict.fromkeys(("test", "tests", "testing", "tst", "te", "eval", "evaluation", "evaluate", "holdout"), "test"),
}
PICTURE_WORDS = frozenset(
    words(
        "image images img imgs jpg jpgs jpeg jpegs png pngs photo photos picture pictures pic pics frame frames rgb "
        "original originals input inputs sat still stills"
    )
)
"""Words in the names of folders that hold pictures of any kind."""
PLAIN_WORDS = frozenset(words("set sets data dataset datasets split splits dir folder files file"))
"""Words that do not change the meaning of a name: `train_set`, `img_dir`."""

# a split and a plain word written as one: trainset, testdata
_AS_ONE = re.compile(rf"({'|'.join(_SPLIT_WORDS)})(?:{'|'.join(PLAIN_WORDS)})")


def split_of(folder: str) -> str | None:
    """`train`, `val` or `test` for a folder that is named so, in any common spelling; None for another name.

    `Training`, `valid`, `VALIDATION`, `test_set`, `trainset`, `train2017`, `val-images` are splits; `trainA` and
    `strain` are not.
    """
    return _split_of_words(words(folder))


def splits_of(folders: Iterable[str]) -> dict[str, str]:
    """The splits among the folders in one folder, by folder.

    Where no name is a split by itself, the words that all names begin or end with are ignored: `seg_` in `seg_train`,
    `seg_test`, `seg_pred`. Else names that differ in the word for the split alone are splits: `box_train`, `box_test`
    beside `query`.
    """
    folders = list(folders)
    direct = {folder: split for folder in folders if (split := split_of(folder))}
    if direct or len(folders) < 2:
        return direct
    every = [words(folder) for folder in folders]
    first = _count_shared(every)
    last = _count_shared([own[first:][::-1] for own in every])
    rest = {folder: own[first : len(own) - last] for folder, own in zip(folders, every, strict=True)}
    splits = {folder: split for folder, own in rest.items() if (split := _split_of_words(own))}
    return splits if len(set(splits.values())) > 1 else _splits_of_equals(dict(zip(folders, every, strict=True)))


def looks_like(name: str) -> str:
    """A key that is equal for names that look equal: accents composed or not, spaces at the ends."""
    return unicodedata.normalize("NFC", name).strip()


def _split_of_words(own: list[str]) -> str | None:
    if own[:2] == ["train", "val"] and all(word.isdigit() for word in own[2:]):
        return "train"
    known = [_SPLIT_WORDS.get(m[1] if (m := _AS_ONE.fullmatch(word)) else word) for word in own]
    others = [word for word, split in zip(own, known, strict=True) if not split]
    plain = all(word.isdigit() or word in PLAIN_WORDS or word in PICTURE_WORDS for word in others)
    splits = {split for split in known if split}
    return splits.pop() if plain and len(splits) == 1 else None


def _splits_of_equals(words_of: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The folders whose names are equal but for one word for a split, where two splits are among them."""
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for folder, own in words_of.items():
        at = [i for i, word in enumerate(own) if word in _SPLIT_WORDS]
        if len(at) == 1:
            rest = (*own[: at[0]], "", *own[at[0] + 1 :])
            groups.setdefault(rest, {})[folder] = _SPLIT_WORDS[own[at[0]]]
    return {folder: split for one in groups.values() if len(set(one.values())) > 1 for folder, split in one.items()}


def _count_shared(every: Sequence[Sequence[str]]) -> int:
    """The number of words that all begin with; at least one word of each is left."""
    count = 0
    while all(len(own) > count + 1 for own in every) and len({own[count] for own in every}) == 1:
        count += 1
    return count
