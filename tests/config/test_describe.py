"""Settings described: sentence, type, mark and default of each field."""

import dataclasses
from typing import Annotated, Literal

import pytest
import tyro

from nolabel.config.describe import describe_settings, name_type, read_sentences
from nolabel.settings import CHANGEABLE, FIXED


@dataclasses.dataclass
class Group:
    """Settings of the group."""

    rate: Annotated[float, CHANGEABLE] = 0.5


@dataclasses.dataclass
class Example:
    """Settings for the tests below."""

    group: Group
    first: Annotated[int, tyro.conf.Suppress] = 1
    second: int = 2
    """A text
    on two lines."""


def test_sentences_are_those_after_their_field() -> None:
    assert read_sentences(Example) == {"second": "A text on two lines."}


def test_settings_come_in_order_with_marks_and_groups() -> None:
    rate, first, second = describe_settings(Example(Group(), second=3))
    assert (rate.name, rate.mark, rate.default) == ("group.rate", CHANGEABLE, 0.5)
    assert (first.name, first.mark, first.hidden) == ("first", FIXED, True)
    assert (second.default, second.hidden, second.about) == (3, False, "A text on two lines.")


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | Literal["auto"], "int or auto"),
        (tuple[float, float], "2 x float"),
        (tuple[str, ...], "list of text"),
        (bool, "true or false"),
        (str | None, "text or none"),
    ],
)
def test_types_in_words(hint: object, words: str) -> None:
    assert name_type(hint) == words
