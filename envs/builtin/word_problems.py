"""Word problems: a stock that comes and goes, told in one sentence a step, from a seed alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

PEOPLE = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gita", "Hugo", "Ines", "Jon", "Kim", "Lea")
GOODS = ("apples", "bricks", "candles", "cups", "eggs", "nails", "pens", "plates", "seeds", "tiles")
TOLD = (
    "The shop opened in {year}.",
    "There are {few} windows in the room.",
    "It is {few} miles to the market.",
    "The road is {few} years old.",
)
"""Sentences with a number that changes nothing."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A story, the arithmetic that solves it, and the answer."""

    text: str
    expression: str
    answer: int


@dataclass(slots=True)
class _Stock:
    """The running total, how it came about, and what was told."""

    rng: random.Random
    top: int
    """Largest number in a sentence."""
    total: int
    expression: str
    lines: list[str]

    def number(self, least: int = 2) -> int:
        return self.rng.randint(least, self.top)


def _arrive(stock: _Stock) -> None:
    crates, each = stock.number(), stock.number()
    stock.lines.append(f"Then {crates} boxes with {each} each arrive.")
    stock.expression = f"({stock.expression} + {crates} * {each})"
    stock.total += crates * each


def _sell(stock: _Stock) -> None:
    sold = stock.rng.randint(1, stock.total - 1)
    stock.lines.append(f"Then {sold} are sold.")
    stock.expression = f"({stock.expression} - {sold})"
    stock.total -= sold


def _grow(stock: _Stock) -> None:
    factor = stock.rng.randint(2, 9)
    stock.lines.append(f"Then the stock grows to {factor} times what it was.")
    stock.expression = f"({stock.expression} * {factor})"
    stock.total *= factor


def _share(stock: _Stock) -> None:
    parts = stock.rng.randint(2, 9)
    rest = stock.total % parts
    stock.lines.append(f"Then {rest} break, and {parts} people share the others; one keeps a part.")
    stock.expression = f"(({stock.expression} - {rest}) // {parts})"
    stock.total = (stock.total - rest) // parts


STEPS: tuple[Callable[[_Stock], None], ...] = (_arrive, _sell, _grow, _share)


def make_problem(rng: random.Random, steps: int, *, digits: int, asides: int) -> Problem:
    """Return a problem whose answer is a positive number that its text does not hold.

    Args:
        rng: Decides everything.
        steps: Sentences that change the stock.
        digits: Of the largest number in a sentence.
        asides: Sentences with a number that changes nothing.
    """
    while True:
        problem = _draw(rng, steps, digits, asides)
        said = problem.text.replace(".", " ").replace(",", " ").split()
        if problem.answer > 1 and str(problem.answer) not in said:
            return problem


def _draw(rng: random.Random, steps: int, digits: int, asides: int) -> Problem:
    person, goods = rng.choice(PEOPLE), rng.choice(GOODS)
    top = 10**digits - 1
    first = rng.randint(top // 2, top)
    stock = _Stock(rng, top, first, str(first), [f"{person} has {first} {goods}."])
    for _ in range(steps):
        able = [step for step in STEPS if stock.total > 20 or step in (_arrive, _grow)]
        rng.choice(able)(stock)
    for _ in range(asides):
        line = rng.choice(TOLD).format(year=rng.randint(1900, 2000), few=rng.randint(2, top))
        stock.lines.insert(rng.randint(1, len(stock.lines)), line)
    stock.lines.append(f"How many {goods} are left?")
    expression = stock.expression[1:-1]  # every step brackets what it makes
    return Problem(" ".join(stock.lines), expression, stock.total)
