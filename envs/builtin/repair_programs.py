"""Small programs made by the dozen: a template, and the names, numbers and rules that vary.

A template is a function from randomness to a `Program`; `@template` gives it its name. Programs
take and return plain values, say in their docstrings what is right, and use neither clocks,
randomness nor files, so that what they return follows from what they are given.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import Template as Text
from typing import Any

Case = tuple[str, list[Any]]
"""A function's name and what it is given."""


@dataclass(frozen=True, slots=True)
class Program:
    """One module that is right as it stands."""

    name: str
    """Of the module; its file is `name.py`."""
    source: str
    case: Callable[[random.Random], Case]
    """Draws a test."""


Make = Callable[[random.Random], Program]
TEMPLATES: dict[str, Make] = {}
"""Every template by its name; filled when the modules that hold them are imported."""


def template(make: Make) -> Make:
    """Register a template under its function's name."""
    TEMPLATES[make.__name__] = make
    return make


def fill(text: str, values: Mapping[str, Any]) -> str:
    """Return the source with every `$name` replaced, without the empty first line."""
    return Text(text).substitute(values).lstrip("\n")


def pick(rng: random.Random, words: str) -> str:
    """Return one of the words."""
    return rng.choice(words.split())


def numbers(rng: random.Random, low: int, high: int, most: int, least: int = 0) -> list[int]:
    """Return `least` to `most` numbers from `low` to `high`, both included."""
    return [rng.randint(low, high) for _ in range(rng.randint(least, most))]


def word(rng: random.Random, letters: str, most: int, least: int = 0) -> str:
    """Return a text of `least` to `most` of the letters."""
    return "".join(rng.choice(letters) for _ in range(rng.randint(least, most)))
