"""Arguments that set how hard an environment is: checked where it is made, named when refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

N = TypeVar("N", int, float)


def within(name: str, value: N, low: float, high: float) -> N:
    """Return `value`.

    Raises:
        ValueError: it is no number from `low` to `high`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} must lie in {low}..{high}, got {value!r}")
    return value


def count(name: str, value: int, low: int, high: float = math.inf) -> int:
    """Return `value`.

    Raises:
        ValueError: it is no whole number from `low` to `high`.
    """
    if type(value) is not int:
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if high == math.inf and value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    return within(name, value, low, high)


def span(name: str, value: int | Sequence[int], low: int, high: int) -> tuple[int, int]:
    """Return (least, most) of an argument that is one number or the two ends of a range.

    Raises:
        ValueError: they are no whole numbers from `low` to `high`, the least first.
    """
    ends = tuple(value) if isinstance(value, list | tuple) else (value, value)
    whole = len(ends) == 2 and all(type(end) is int for end in ends)
    if not whole or not low <= ends[0] <= ends[1] <= high:
        rule = f"must lie in {low}..{high}, least before most"
        raise ValueError(f"{name} {rule}, and be whole numbers, got {value!r}")
    return ends[0], ends[1]


def share(name: str, value: float) -> float:
    """Return a probability or a share as a float.

    Raises:
        ValueError: it is no number from 0 to 1.
    """
    return float(within(name, value, 0, 1))
