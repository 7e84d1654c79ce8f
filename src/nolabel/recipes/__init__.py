"""Recipes: named settings. A module of this folder with a table RECIPES is enough: there is no list of them.

Only data: `nolabel list` and wrong names are answered without importing torch.

The values of the paper recipes are those of the methods' pages in docs/, with the reason for each difference.
"""

from importlib import import_module
from pkgutil import iter_modules

from nolabel.errors import UsageError, nearest
from nolabel.recipes.recipe import Recipe

__all__ = ["RECIPES", "Recipe", "find"]

RECIPES: dict[str, Recipe] = {}
for _module in iter_modules(__path__):
    RECIPES |= getattr(import_module(f"{__name__}.{_module.name}"), "RECIPES", {})


def find(name: str) -> Recipe:
    """The recipe of that name; UsageError with the nearest names."""
    if name not in RECIPES:
        raise UsageError(
            f"There is no recipe {name!r}.{nearest(name, RECIPES)}\n`nolabel list recipes` shows them all."
        )
    return RECIPES[name]
