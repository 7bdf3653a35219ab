"""The options of a recipe, read from its function: name, default, and what its `Args:` say."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from typing import Any

from turnwise.trainers.recipes import OPTIONS

FROM_PYTHON = "a function: given in Python, not by --recipe-options"


def options_of(make: Callable[..., Any], written: Callable[[Any], str]) -> dict[str, Any]:
    """Return of each option its default and its meaning.

    What the docstring does not say is what `turnwise.trainers.recipes.OPTIONS` says of its name.

    Args:
        make: the function that makes the recipe.
        written: how a default is shown that JSON does not have, as a function.
    """
    meanings = OPTIONS | _meanings(inspect.getdoc(make) or "")
    options = inspect.signature(make).parameters.values()
    return {
        option.name: {
            "default": _default(option.default, written),
            "meaning": meanings.get(option.name, FROM_PYTHON if callable(option.default) else ""),
        }
        for option in options
    }


def rows_of(options: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return a line per option; defaults are written as `--recipe-options` takes them."""
    return [(name, _as_json(said["default"]), said["meaning"]) for name, said in options.items()]


def _default(value: Any, written: Callable[[Any], str]) -> Any:
    if callable(value):
        return written(value)
    return "Infinity" if value == float("inf") else value


def _as_json(default: Any) -> str:
    return default if isinstance(default, str) else json.dumps(default)


def _meanings(doc: str) -> dict[str, str]:
    """Return what the section `Args:` of a docstring says of each argument."""
    section = re.search(r"^Args:\n((?:    .*(?:\n|$))+)", doc, re.MULTILINE)
    entries = re.split(r"^    (?=\w+: )", section[1], flags=re.MULTILINE) if section else []
    said = (entry.split(": ", 1) for entry in entries if entry.strip())
    return {name: " ".join(text.split()) for name, text in said}
