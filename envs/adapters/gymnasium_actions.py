"""Actions of gymnasium's spaces as text: how one is read, drawn at random, and asked for."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

MAX_NUMBERS = 16
"""Of one action; nobody writes more of them by hand."""
_INTEGER = re.compile(r"-?\d{1,9}", re.ASCII)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d{1,3})?", re.ASCII | re.IGNORECASE)


class Unreadable(ValueError):
    """No action of the space is written so; the message says what would be one."""


@dataclass(frozen=True)
class ActionText:
    """How the actions of one space are written."""

    hint: str
    """What the agent is told: `one of: left, right`."""
    read: Callable[[str], Any]
    """Text to an action. Raises `Unreadable`."""
    draw: Callable[[random.Random], str]
    """A random action."""
    names: tuple[str, ...] = ()
    """Of a `Discrete` space, in the order of its numbers."""


def action_text(space: Any, names: Sequence[str] = ()) -> ActionText:
    """Return how actions of `space` are written.

    Args:
        space: `Discrete`, `MultiDiscrete`, a small `Box`, or `Text`.
        names: Of the actions of a `Discrete` space; without them they are numbers.

    Raises:
        TypeError: nobody could write such an action.
        ValueError: there are more or fewer names than actions, or one twice.
    """
    if isinstance(space, spaces.Discrete):
        return _discrete(space, tuple(names) or _numbers_of(space))
    if names:
        raise TypeError(f"actions names those of a Discrete space, and this one is {space}")
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.size <= MAX_NUMBERS:
        low = np.asarray(space.start)
        return _several(low, low + space.nvec - 1, space.dtype, _INTEGER)
    if isinstance(space, spaces.Box) and int(np.prod(space.shape)) <= MAX_NUMBERS:
        return _several(space.low, space.high, space.dtype, _NUMBER)
    if isinstance(space, spaces.Text):
        return _text(space)
    raise TypeError(
        f"no text for actions of {space}: it takes Discrete, MultiDiscrete, Text, and Box of at "
        f"most {MAX_NUMBERS} numbers; wrap the gymnasium environment so that it has one of these"
    )


def _numbers_of(space: spaces.Discrete) -> tuple[str, ...]:
    return tuple(str(int(space.start) + i) for i in range(int(space.n)))


def _discrete(space: spaces.Discrete, names: tuple[str, ...]) -> ActionText:
    numbers = _numbers_of(space)
    if len(set(map(str.casefold, names))) != len(numbers):
        raise ValueError(f"actions needs {len(numbers)} different names, got {list(names)}")
    found = dict(zip(numbers, range(len(numbers)), strict=True))
    found |= {name.casefold(): i for i, name in enumerate(names)}
    shown = ", ".join(names) if names != numbers else f"{numbers[0]} to {numbers[-1]}"
    hint = f"one of: {shown}"[:300]

    def read(text: str) -> Any:
        if (at := found.get(text.strip().casefold())) is None:
            raise Unreadable(f"no action {text[:40]!r}; write {hint}")
        return int(space.start) + at

    return ActionText(hint, read, lambda rng: rng.choice(names), names)


def _several(low: Any, high: Any, dtype: Any, form: re.Pattern[str]) -> ActionText:
    """Several numbers in a row, each within its own bounds."""
    bounds = list(zip(low.ravel().tolist(), high.ravel().tolist(), strict=True))
    kind = "whole numbers" if form is _INTEGER else "numbers"
    hint = f"{len(bounds)} {kind}: {', '.join(f'{a:g} to {b:g}' for a, b in bounds)}"[:300]

    def read(text: str) -> Any:
        words = text[:1000].replace(",", " ").split()
        if len(words) != len(bounds) or not all(map(form.fullmatch, words)):
            raise Unreadable(f"no action {text[:40]!r}; write {hint}")
        values = [float(word) for word in words]
        for value, (least, most) in zip(values, bounds, strict=True):
            if not least <= value <= most:
                raise Unreadable(f"{value:g} lies outside; write {hint}")
        with np.errstate(over="ignore"):
            action = np.array(values).astype(dtype).reshape(low.shape)
        if not np.isfinite(action).all():  # a bound may be infinite, an action must not
            raise Unreadable(f"{text[:40]!r} is too large; write {hint}")
        return action

    def draw(rng: random.Random) -> str:
        if form is _INTEGER:
            return " ".join(str(rng.randint(int(a), int(b))) for a, b in bounds)
        ends = [(max(a, -1e3), min(b, 1e3)) for a, b in bounds]  # a bound may be infinite
        return " ".join(f"{rng.uniform(a, b):.3g}" for a, b in ends)

    return ActionText(hint, read, draw)


def _text(space: spaces.Text) -> ActionText:
    hint = f"a text of {space.min_length} to {space.max_length} characters"
    letters = sorted(space.character_set)

    def read(text: str) -> Any:
        if not space.contains(text):
            raise Unreadable(f"no action {text[:40]!r}; write {hint} of {''.join(letters)[:80]!r}")
        return text

    def draw(rng: random.Random) -> str:
        return "".join(rng.choices(letters, k=rng.randint(space.min_length, space.max_length)))

    return ActionText(hint, read, draw)
