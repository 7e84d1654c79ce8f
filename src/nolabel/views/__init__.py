"""Views: how one image becomes the crops that a method looks at."""

from nolabel.views.cpu_torch import apply, reduced, reduction
from nolabel.views.device import Sources, render, table
from nolabel.views.draw import Drawn, draw
from nolabel.views.engine import Apply, applier, fastest
from nolabel.views.normalize import normalize
from nolabel.views.spec import IMAGENET_MEAN, IMAGENET_STD, View

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
