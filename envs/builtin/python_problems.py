"""Problems that a few lines of Python solve and a head does not.

Each is a question and a function; the function is the reference on the host, and its source is what
the expert runs in the sandbox.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, code that prints the answer, and the answer."""

    kind: str
    text: str
    code: str
    answer: int


Draw = Callable[[random.Random], tuple[str, tuple[object, ...]]]
"""From randomness to what is asked for, and the arguments of the function that knows."""


def multiples(n: int, a: int, b: int) -> int:
    return sum(k for k in range(1, n) if k % a == 0 or k % b == 0)


def digit_sum(a: int, b: int) -> int:
    return sum(int(digit) for digit in str(a**b))


def primes_below(n: int) -> int:
    return sum(all(k % d for d in range(2, int(k**0.5) + 1)) for k in range(2, n))


def collatz_steps(n: int) -> int:
    steps = 0
    while n > 1:
        n, steps = (n // 2 if n % 2 == 0 else 3 * n + 1), steps + 1
    return steps


def ways_to_pay(total: int, coins: Sequence[int]) -> int:
    ways = [1] + [0] * total
    for coin in coins:
        for amount in range(coin, total + 1):
            ways[amount] += ways[amount - coin]
    return ways[total]


def palindromes(low: int, high: int) -> int:
    return sum(str(k) == str(k)[::-1] for k in range(low, high + 1))


def last_digits(a: int, b: int, m: int) -> int:
    return pow(a, b, m)


def grid_paths(width: int, height: int, blocked: Sequence[Sequence[int]]) -> int:
    shut = {(x, y) for x, y in blocked}
    paths = {(0, 0): 1}
    for y in range(height):
        for x in range(width):
            if (x, y) in shut:
                paths[x, y] = 0
            elif x or y:
                paths[x, y] = paths.get((x - 1, y), 0) + paths.get((x, y - 1), 0)
    return paths[width - 1, height - 1]


def _multiples(rng: random.Random) -> tuple[str, tuple[object, ...]]:
    n, (a, b) = rng.randint(200, 3000), rng.sample(range(3, 14), 2)
    return f"the sum of the positive integers below {n} that {a} or {b} divides", (n, a, b)


def _digit_sum(rng: random.Random) -> tuple[str, tuple[object, ...]]:
    a, b = rng.randint(2, 19), rng.randint(20, 90)
    return f"the sum of the decimal digits of {a} to the power of {b}", (a, b)


def _primes_below(rng: random.Random) -> tuple[str, tuple[object, ...]]:
    n = rng.randint(100, 2000)
    return f"the number of primes below {n}", (n,)


def _collatz_steps(rng: random.Random) -> tuple[str, tuple[object, ...]]:
    n = rng.randint(30, 9999)
    rule = "halve it if it is even, else triple it and add one"
    return f"the number of steps from {n} to 1 if each step is: {rule}", (n,)


def _ways_to_pay(rng: random.Random) -> tuple[str, tuple[object, ...]]:
    coins = sorted(rng.sample([1, 2, 5, 10, 20, 25, 50], 4))
    total = 10 * rng.randint(6, 30) + (rng.randint(0, 9) if coins[0] == 1 else 0)
    listed = ", ".join(map(str, coins))
    return f"the number of ways to pay {total} with any number of coins of {listed}", (total, coins)


def _palindromes(rng: random.Random) -> tuple[str, tuple[object, ...]]:
    low = rng.randint(1, 500)
    high = low + rng.randint(300, 5000)
    return f"the number of palindromes from {low} to {high}, both included", (low, high)


def _last_digits(rng: random.Random) -> tuple[str, tuple[object, ...]]:
    a, b, m = rng.randint(11, 99), rng.randint(100, 999), rng.randint(101, 997)
    return f"the remainder of {a} to the power of {b} divided by {m}", (a, b, m)


def _grid_paths(rng: random.Random) -> tuple[str, tuple[object, ...]]:
    width, height = rng.randint(4, 8), rng.randint(4, 8)
    inner = [(x, y) for x in range(1, width - 1) for y in range(1, height - 1)]
    blocked = sorted(rng.sample(inner, 3))
    shut = ", ".join(f"({x}, {y})" for x, y in blocked)
    text = (
        f"the number of paths from (0, 0) to ({width - 1}, {height - 1}) whose steps add one to "
        f"either coordinate and that avoid {shut}"
    )
    return text, (width, height, [list(cell) for cell in blocked])


KINDS: dict[str, tuple[Callable[..., int], Draw]] = {
    "multiples": (multiples, _multiples),
    "digit_sum": (digit_sum, _digit_sum),
    "primes_below": (primes_below, _primes_below),
    "collatz_steps": (collatz_steps, _collatz_steps),
    "ways_to_pay": (ways_to_pay, _ways_to_pay),
    "palindromes": (palindromes, _palindromes),
    "last_digits": (last_digits, _last_digits),
    "grid_paths": (grid_paths, _grid_paths),
}
"""Name to (the reference, what draws a question and its arguments)."""


def make_problem(rng: random.Random, kinds: Sequence[str]) -> Problem:
    """Return one question of each of `kinds`, whose answers are to be added.

    Each exceeds 5, so that a guess is worth little.
    """
    asked = [_one(rng, kind) for kind in kinds]
    texts, sources, calls, answers = zip(*asked, strict=True)
    text = texts[0]
    if len(asked) > 1:
        text = "the sum of " + "; ".join(f"({n}) {text}" for n, text in enumerate(texts, 1))
    code = "\n".join(dict.fromkeys(sources)) + f"\nprint({' + '.join(calls)})"
    return Problem("+".join(kinds), f"What is {text}?", code, sum(answers))


def _one(rng: random.Random, kind: str) -> tuple[str, str, str, int]:
    """Return what is asked for, the source of a function, its call and the answer."""
    solve, draw = KINDS[kind]
    while True:
        text, args = draw(rng)
        if (answer := solve(*args)) > 5:
            break
    source = inspect.getsource(solve).replace("Sequence[Sequence[int]]", "list")
    source = source.replace("Sequence[int]", "list")
    return text, source, f"{solve.__name__}({', '.join(map(repr, args))})", answer
