"""A recipe: a method with settings of its own."""

from typing import Any, NamedTuple


class Recipe(NamedTuple):
    """A method with settings that differ from the defaults of TrainConfig and of the method."""

    method: str
    summary: str
    settings: dict[str, Any]
