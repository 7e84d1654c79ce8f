"""Views: how one image becomes the crops that a method looks at."""

from nolabel.views.batch import Sources, render, table
from nolabel.views.draw import Drawn, draw
from nolabel.views.engine import Apply, applier, fastest
from nolabel.views.image import apply, normalize, reduced, reduction
from nolabel.views.specs import IMAGENET_MEAN, IMAGENET_STD, View

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Apply",
    "Drawn",
    "Sources",
    "View",
    "applier",
    "apply",
    "draw",
    "fastest",
    "normalize",
    "reduced",
    "reduction",
    "render",
    "table",
]
