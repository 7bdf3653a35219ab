"""Published methods, one file each, the formula and its source on top."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from importlib import import_module
from numbers import Integral, Real
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

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


WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list",
    Callable: "a function",
    type(None): "null",
}
"""How a kind of option is called, as JSON has it."""


OPTIONS = {
    "low": "the ratio counts from 1 - low.",
    "high": "the ratio counts up to 1 + high.",
    "clip": "the ratio counts from 1 - clip to 1 + clip.",
    "floor": "the least that a group's standard deviation counts; 0 is as published.",
    "eps": "added to what is divided by.",
    "kl_coefficient": "weight of the KL to the student before the run; 0 keeps no copy of it.",
    "gamma": "discount of rewards per turn.",
    "history_turns": "levels of turns that share as many of the last states.",
    "alpha": "a level of k past states weighs (k + 1)^alpha.",
    "limit": "holds the log-ratio of one odd token, nats.",
    "window": "steps of the mean that a gate looks at.",
}
"""What an option means in every recipe whose function does not say it itself."""


class UnknownRecipe(ValueError):
    """Raised when no recipe has the name that was asked for."""


def recipe(name: str, **options: Any) -> Recipe:
    """Return the recipe called `name`.

    Args:
        options: of the function in the recipe's file, as `gamma=0.5` for turn_rloo.

    Raises:
        UnknownRecipe: there is none, or it has no such option; the message has the nearest name.
        ValueError: an option is of another kind, as a text for a number, or out of its range.
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
    _require_kinds(name, options, get_type_hints(make))
    try:
        return make(**options)
    except ValueError as error:
        raise ValueError(f"recipe {name!r} with {options}: {error}") from error


def _require_kinds(name: str, options: dict[str, Any], kinds: dict[str, Any]) -> None:
    """Refuse a text where a number belongs, before some piece fails to count with it."""
    for option, value in options.items():
        allowed = _kinds_of(kinds[option])
        if not any(_is_a(value, kind) for kind in allowed):
            said = " or ".join(WORDS.get(kind, kind.__name__) for kind in allowed)
            raise ValueError(f"option {option!r} of recipe {name!r} takes {said}, got {value!r}")


def _kinds_of(hint: Any) -> list[Any]:
    """Return the classes that a type hint is made of, without what they hold."""
    each = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return [get_origin(kind) or kind for kind in each]


def _is_a(value: object, kind: Any) -> bool:
    if kind is tuple:
        return isinstance(value, (tuple, list))  # as JSON has it
    if kind not in (int, float):
        return isinstance(value, kind)
    number = isinstance(value, Integral if kind is int else Real)
    return number and not isinstance(value, bool)


def recipes() -> list[Recipe]:
    """Return every recipe, the default first."""
    return [recipe(name) for name in NAMES]
