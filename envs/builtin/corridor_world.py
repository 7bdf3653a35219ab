"""The stages of a corridor, and what opens each: from a seed alone.

A stage shows a verb and a symbol x. It opens to the same verb with (a x + b c) mod K, where c is
the clue that was shown last and (a, b) belong to the verb.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

VERBS = ("push", "pull", "turn")
"""What opens a stage."""
BACK, LOST, FAILED, OPEN = "back", "lost", "error", "open"
SYMBOLS = ("ash", "elm", "oak", "fir", "yew")
"""What x is written as; the largest K is their number."""
CLUES = ("red", "tan", "blue", "grey", "pink")
"""What c is written as."""
ARITHMETIC = {"push": (1, 1), "pull": (1, -1), "turn": (-1, 1)}
"""(a, b) of each verb in a corridor of phases; elsewhere all verbs add, as `push` does."""
ADDS = (1, 1)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage."""

    verb: str
    symbol: int
    clue: int
    """c, which holds here."""
    shows_clue: bool
    answer: int
    """What opens it, with its verb."""

    @property
    def text(self) -> str:
        """What the agent reads."""
        said = f"{self.verb} {SYMBOLS[self.symbol]}"
        return f"{said} {CLUES[self.clue]}" if self.shows_clue else said

    @property
    def action(self) -> str:
        """The one action that opens it."""
        return f"{self.verb} {self.answer}"


def make_stages(
    rng: random.Random, stages: int, *, symbols: int, recall: int, phased: bool
) -> Sequence[Stage]:
    """Return the stages of one corridor.

    Args:
        rng: Decides everything; the same state gives the same corridor.
        stages: L, how many.
        symbols: K.
        recall: A clue is shown at every stage whose index it divides, and holds until the next.
        phased: Whether each third has its own verb, with arithmetic of its own.
    """
    made, clue = [], 0
    for index in range(stages):
        verb = VERBS[3 * index // stages] if phased else rng.choice(VERBS)
        shows_clue, symbol = index % recall == 0, rng.randrange(symbols)
        clue = rng.randrange(symbols) if shows_clue else clue
        a, b = ARITHMETIC[verb] if phased else ADDS
        made.append(Stage(verb, symbol, clue, shows_clue, (a * symbol + b * clue) % symbols))
    return tuple(made)
