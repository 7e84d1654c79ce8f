"""Recipes: named settings. Only data: `nolabel list` and wrong names are answered without importing torch.

The values of the paper recipes are those of the methods' pages in docs/, with the reason for each difference.
"""

from nolabel.errors import UsageError, nearest
from nolabel.recipes import densecl, dino, msn, simclr
from nolabel.recipes.recipe import Recipe

__all__ = ["RECIPES", "Recipe", "find"]

RECIPES: dict[str, Recipe] = dino.RECIPES | msn.RECIPES | simclr.RECIPES | densecl.RECIPES


def find(name: str) -> Recipe:
    """The recipe of that name; UsageError with the nearest names."""
    if name not in RECIPES:
        raise UsageError(
            f"There is no recipe {name!r}.{nearest(name, RECIPES)}\n`nolabel list recipes` shows them all."
        )
    return RECIPES[name]
