"""Marks on settings: where help and config.yaml list a setting, and whether a resumed run may change it."""

from typing import Literal, NamedTuple

Heading = Literal["data", "training", "watching", "speed", "exactness"]
Change = Literal["safe", "allow", "refused"]

HEADINGS: dict[Heading, str] = {
    "data": "the images, and where the run goes",
    "training": "what is learned, and for how long",
    "watching": "what is measured, kept and reported on the way",
    "speed": "how fast it goes; the run learns the same",
    "exactness": "what the bits of a run depend on besides",
}


class Mark(NamedTuple):
    """The mark of one setting: `lr: Annotated[float, Mark("training", "allow")]`."""

    heading: Heading
    change: Change
    """On resume: safe may change, allow needs --allow-change, refused never: the saved state does not fit it."""
    everyday: bool = False
    """One of the few that most runs set: first under its heading."""


CHANGEABLE = Mark("training", "allow")
"""A setting of a loss or of a schedule. It may change on resume, with --allow-change."""
FIXED = Mark("training", "refused")
"""A setting that shapes networks, views or what is remembered: a resumed run keeps it. Settings without a mark."""
