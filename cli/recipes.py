"""`turnwise recipes`: which training methods there are, and what each does."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Annotated, Any

from rich.text import Text
from tyro.conf import Positional, arg

from turnwise.cli.display import console, print_json, table, title
from turnwise.cli.recipe_options import options_of, rows_of


@dataclass(frozen=True)
class Options:
    """The methods that `turnwise train --recipe` knows; with a name, its formula, options
    and pieces.

    example:
      turnwise recipes turn_rloo
    """

    name: Annotated[Positional[str], arg(metavar="[NAME]")] = ""
    """A recipe; without it, all are listed."""
    json: bool = False
    """Print a JSON object."""
    markdown: bool = False
    """Print the page docs/papers.md."""


def run(options: Options) -> int:
    """Print one recipe or all, and return the exit code."""
    from turnwise.trainers.recipes import recipe, recipes

    if options.markdown:
        sys.stdout.write(page([_facts(entry) for entry in recipes()]))
        return 0
    if not options.name:
        return _list([_facts(entry) for entry in recipes()], options.json)
    facts = _facts(recipe(options.name))
    if options.json:
        print_json(facts)
        return 0
    out = console()
    out.print(title(facts["name"], facts["where"]))
    out.print(Text(facts["formula"]))
    out.print()
    out.print(table("", "", rows=[("source", facts["source"]), ("here", facts["status"])]))
    out.print()
    if facts["options"]:
        out.print(table("option", "default", "", rows=rows_of(facts["options"])))
        out.print()
    out.print(table("piece", "", rows=facts["pieces"].items()))
    return 0


def _list(rows: list[dict[str, Any]], as_json: bool) -> int:
    if as_json:
        print_json({"recipes": rows})
    else:
        cells = [(row["name"], row["short"], row["source"], row["status"]) for row in rows]
        console().print(table("recipe", "pieces", "source", "here", rows=cells))
    return 0


_DEFAULTS = {
    "credit": "no_credit",
    "surrogate": "no_policy_gradient",
    "distillation": "None",
    "history": "0",
    "ratio": "token_ratio",
    "importance": "uncorrected",
    "kl": "k3",
    "kl_coefficient": "0.0",
    "keep_group": "every_group",
    "imitation": "None",
    "curriculum": "None",
}


def _facts(recipe: Any) -> dict[str, Any]:
    module = sys.modules[f"turnwise.trainers.recipes.{recipe.name}"]
    named = ("name", "source", "status")
    return {
        "name": recipe.name,
        "where": module.__name__,
        "source": recipe.source,
        "status": recipe.status,
        "short": ", ".join(_named(recipe)),
        "formula": (inspect.getdoc(module) or "").strip(),
        "options": options_of(getattr(module, recipe.name), _piece),
        "pieces": {
            field.name: _piece(getattr(recipe, field.name))
            for field in fields(recipe)
            if field.name not in named
        },
    }


_SHOWN = ("credit", "surrogate", "ratio", "distillation", "imitation", "curriculum", "keep_group")


def _named(recipe: Any) -> list[str]:
    """Return the names of the pieces that tell a recipe from others, without their numbers."""
    pieces = [(name, getattr(recipe, name)) for name in _SHOWN]
    return [
        word for name, value in pieces if _piece(value) != _DEFAULTS[name] for word in _words(value)
    ]


def _words(value: Any) -> list[str]:
    if isinstance(value, partial):
        inner = value.keywords.get("signal")
        return _words(inner) if inner else [value.func.__name__.lstrip("_")]
    if is_dataclass(value):
        given = ((f, getattr(value, f.name)) for f in fields(value))
        return [
            word
            for f, each in given
            if each != f.default and callable(each)
            for word in _words(each)
        ]
    return [value.__name__]


_PAGE = """# Methods and where they come from

Each line is made from the recipe's own file (`turnwise recipes --markdown`), and a test holds this
page to it. `turnwise recipes NAME` shows the formula; a piece that a recipe leaves at its default
is not listed here. Pieces are functions: `dataclasses.replace(recipe("sod"), surrogate=...)`
exchanges one.

| method | pieces | source | here |
|---|---|---|---|
"""


def page(rows: list[dict[str, Any]]) -> str:
    """Return docs/papers.md."""
    lines = []
    for row in rows:
        pieces = "; ".join(f"{name} `{value}`" for name, value in _own(row).items())
        cells = (f"`{row['name']}`", pieces, row["source"], row["status"])
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return _PAGE + "\n".join(lines) + "\n"


def _own(row: dict[str, Any]) -> dict[str, str]:
    """Return the pieces that are not at their defaults."""
    return {n: v for n, v in row["pieces"].items() if v != _DEFAULTS.get(n)}


def _piece(value: Any) -> str:
    """Return how a piece is written: `ppo(low=0.2, high=0.28)`; defaults of a level left out."""
    if isinstance(value, partial):
        given = ", ".join(f"{name}={_piece(entry)}" for name, entry in value.keywords.items())
        return f"{_piece(value.func).lstrip('_')}({given})"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_piece, value))}]"
    if is_dataclass(value):
        changed = [f for f in fields(value) if getattr(value, f.name) != f.default]
        given = ", ".join(f"{f.name}={_piece(getattr(value, f.name))}" for f in changed)
        return f"{type(value).__name__}({given})"
    return value.__name__ if callable(value) else repr(value)
