"""Splits by content: what is asked in one split is asked in no other, whatever the seeds.

Seeds alone do not part splits. Where a knob leaves few different problems, many tasks of `test` are
tasks of `train` under another number, and what is called held out has been seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from turnwise.envs.seeds import derive

T = TypeVar("T")
SHARES = {"train": range(8), "dev": range(8, 9), "test": range(9, 10)}
"""Of ten classes of problems, by the hash of their content, those of a split."""
TRIES = 2000


def belongs(split: str, content: Any) -> bool:
    """Whether a problem of this content, JSON values, is one of the split's."""
    return derive("share", content) % 10 in SHARES[split]


def drawn_for(split: str, draw: Callable[[], T], content: Callable[[T], Any]) -> T:
    """Draw until a problem is one of the split's; ten times on average for `dev` and `test`.

    Raises:
        RuntimeError: none was, so that the split may have none at all.
    """
    for _ in range(TRIES):
        problem = draw()
        if belongs(split, content(problem)):
            return problem
    raise RuntimeError(
        f"none of {TRIES} problems belongs to split {split!r}: these arguments leave so few that"
        " another split has them all; allow more difficulties"
    )
