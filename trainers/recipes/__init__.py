"""Published methods, one file each, the formula and its source on top."""

from __future__ import annotations

import difflib
from importlib import import_module

from turnwise.trainers.recipe import Recipe

NAMES = (
    "turn_rloo",
    "grpo",
    "dr_grpo",
    "rloo",
    "reinforce_pp",
    "dapo",
    "gspo",
    "cispo",
    "gigpo",
    "hgpo",
)
"""Every method, the default first; `turnwise.trainers.recipes.<name>` is its file."""


class UnknownRecipe(ValueError):
    """Raised when no recipe has the name that was asked for."""


def recipe(name: str) -> Recipe:
    """Return the recipe called `name`, with its default options.

    Raises:
        UnknownRecipe: there is none; the message has the nearest name.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(NAMES)}"
        raise UnknownRecipe(f"no recipe {name!r}; {hint}")
    return import_module(f"{__name__}.{name}").RECIPE


def recipes() -> list[Recipe]:
    """Return every recipe, the default first."""
    return [recipe(name) for name in NAMES]
