"""Published methods, one file each, the formula and its source on top."""

from __future__ import annotations

import difflib
import inspect
from importlib import import_module
from typing import Any

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
    "mt_grpo",
    "opd",
    "vopd",
    "gkd",
    "exopd",
    "sod",
    "tcod_f2b",
    "tcod_b2f",
    "opd_then_rl",
    "kdrl",
    "sft",
    "dagger",
    "guided_opd",
)
"""Every method, the default first; `turnwise.trainers.recipes.<name>` is its file."""


class UnknownRecipe(ValueError):
    """Raised when no recipe has the name that was asked for."""


def recipe(name: str, **options: Any) -> Recipe:
    """Return the recipe called `name`.

    Args:
        options: of the function in the recipe's file, as `gamma=0.5` for turn_rloo.

    Raises:
        UnknownRecipe: there is none, or it has no such option; the message has the nearest name.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(NAMES)}"
        raise UnknownRecipe(f"no recipe {name!r}; {hint}")
    module = import_module(f"{__name__}.{name}")
    if not options:
        return module.RECIPE
    make = getattr(module, name)
    known = inspect.signature(make).parameters
    for option in options.keys() - known.keys():
        raise UnknownRecipe(
            f"recipe {name!r} has no option {option!r}; there are: {', '.join(known)}"
        )
    return make(**options)


def recipes() -> list[Recipe]:
    """Return every recipe, the default first."""
    return [recipe(name) for name in NAMES]
