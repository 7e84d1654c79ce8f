"""Views: how one image becomes the crops that a method looks at."""

from nolabel.views.cpu_torch import apply, reduction, scaled_down
from nolabel.views.device import Sources, as_rows, render
from nolabel.views.draw import Drawn, draw
from nolabel.views.engine import Apply, fastest, view_function
from nolabel.views.normalize import normalize
from nolabel.views.spec import IMAGENET_MEAN, IMAGENET_STD, View

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Apply",
    "Drawn",
    "Sources",
    "View",
    "apply",
    "as_rows",
    "draw",
    "fastest",
    "normalize",
    "reduction",
    "render",
    "scaled_down",
    "view_function",
]
