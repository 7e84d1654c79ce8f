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
    """Change on resume: safe may change, allow needs --allow-change, refused may not: the saved state does not fit."""
    everyday: bool = False
    """Whether the setting is one of the few that most runs set; these come first under their heading."""


CHANGEABLE = Mark("training", "allow")
"""Mark of a setting of a loss or of a schedule. It may change on resume, with --allow-change."""
FIXED = Mark("training", "refused")
"""Mark of a setting that shapes networks, views or saved state: a resumed run keeps it. It is the default."""
