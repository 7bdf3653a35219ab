"""What a comparison of methods rests on: equal starts, equal budgets, paired differences.

    d_s      = score of a method - score of its rival, both at seed s          one number per seed
    interval = mean(d) +- t(n - 1) sd(d) / sqrt(n)                             95 %, over seeds
    AUC      = area under success over the share of the budget that is used    0 to 1

Pure functions of numbers and of JSON values; `turnwise.trainers.contest_run` makes the numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from turnwise.agents.statistics import Interval, mean_t
from turnwise.envs.types import digest

Scores = Mapping[int, float]
"""Seed -> score."""


def key_of(settings: Mapping[str, Any]) -> str:
    """Return 16 hex digits that name a run: the same settings, the same key."""
    return digest(dict(settings))


def paired(method: Scores, rival: Scores, level: float = 0.95) -> Interval:
    """Return the mean difference over the seeds that both have, with Student's t interval."""
    seeds = sorted(method.keys() & rival.keys())
    return mean_t([method[seed] - rival[seed] for seed in seeds], level)


def verdict(difference: Interval) -> str:
    """Return `above`, `below`, or `level` where the interval holds 0 or does not exist."""
    if difference.n < 2 or difference.low <= 0 <= difference.high:
        return "level"
    return "above" if difference.low > 0 else "below"


def spread(values: Sequence[float]) -> float:
    """Return the sample standard deviation (n - 1); NaN for fewer than two."""
    return stdev(values) if len(values) > 1 else math.nan


def area(points: Sequence[tuple[float, float]], whole: float) -> float:
    """Return the mean height of a curve over 0..`whole`, by trapezoids.

    Args:
        points: (budget used, score), in order; the first height holds before the first point and
            the last one after the last.
        whole: the budget, above 0.

    Raises:
        ValueError: there is no point, or `whole` is not above 0.
    """
    if not points or whole <= 0:
        raise ValueError(f"an area needs a point and a budget, got {len(points)} and {whole}")
    cut = [(min(max(x, 0.0), whole), y) for x, y in points]
    cut = [(0.0, cut[0][1]), *cut, (whole, cut[-1][1])]
    parts = ((b - a) * (y + z) / 2 for (a, y), (b, z) in itertools.pairwise(cut))
    return math.fsum(parts) / whole


def crossing(low: float, high: float, target: float) -> float:
    """Return the share of the way from `low` to `high` at which a straight line meets `target`.

    It is kept within 0..1; 1 where the two ends are equal.
    """
    return min(max((target - low) / (high - low), 0.0), 1.0) if high != low else 1.0


def best_rate(scores: Mapping[float, Sequence[float]]) -> float:
    """Return the learning rate with the highest mean score; the lower one of two that tie.

    Raises:
        ValueError: there is no rate, or one of them has no score.
    """
    if not scores or not all(scores.values()):
        raise ValueError("every learning rate needs a score of a dev seed to be chosen by")
    return max(sorted(scores), key=lambda rate: fmean(scores[rate]))


def thirds(rows: Sequence[Mapping[str, Any]], wanted: Callable[[str], bool]) -> dict[str, Any]:
    """Return the mean of each metric in the first and in the last third of the steps.

    Steps that lack a metric do not count for it.
    """
    size = max(1, math.ceil(len(rows) / 3))
    names = sorted({name for row in rows for name in row if wanted(name)})
    found: dict[str, Any] = {}
    for part, some in (("first", rows[:size]), ("last", rows[-size:])):
        seen = {name: [row[name] for row in some if name in row] for name in names}
        found[part] = {name: round(fmean(v), 4) for name, v in seen.items() if v}
    return found
