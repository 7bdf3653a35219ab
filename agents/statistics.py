"""How sure a score is: intervals and pass@k, as pure functions of numbers.

    Wilson       (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)    [Wilson 1927]
    over tasks   the same at the effective n of correlated attempts      [Dean and Pagano 2015]
    pass@k       1 - C(n-c, k) / C(n, k)      at least one of k solves it  [arXiv:2107.03374, eq. 1]
    pass^k       C(c, k) / C(n, k)            all k solve it               [arXiv:2406.12045]
    t interval   mean +- t(n-1) s / sqrt(n),  s the sample standard deviation (n - 1)

pass@k and pass^k are unbiased for k attempts drawn from the same policy; n attempts were made and
c of them succeeded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy as np


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate, the bounds around it, and how many observations it rests on."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float]:
        """Return the four numbers; a bound or value that does not exist is left out."""
        fields = {"value": self.value, "low": self.low, "high": self.high, "n": self.n}
        return {name: number for name, number in fields.items() if math.isfinite(number)}

    def __str__(self) -> str:
        """Return e.g. `0.850 [0.812, 0.881] n=400`."""
        if self.n == 0:
            return "none (n=0)"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.n}"


EMPTY = Interval(math.nan, math.nan, math.nan, 0)
"""What is known from no observation at all: nothing, which is not the same as zero."""


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Return the success rate with Wilson's score interval; it never leaves [0, 1].

    Raises:
        ValueError: `successes` is not between 0 and `n`, or `level` not between 0 and 1.
    """
    _check_level(level)
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n = {n}, got {successes}")
    return EMPTY if n == 0 else _score_interval(successes / n, n, n, level)


def rate_over_tasks(estimates: Sequence[float], attempts: int, level: float = 0.95) -> Interval:
    """Return the mean of one estimate in [0, 1] per task, with an interval over tasks.

    Attempts at one task are not independent, so `attempts` observations are worth fewer: Wilson's
    interval is taken at the effective number p(1-p) / Var(p), where Var comes from the spread
    between tasks [Dean and Pagano 2015], kept between the number of tasks and of attempts. With
    one attempt per task this is `wilson`.

    Args:
        estimates: For each task its success rate, pass@k, ...
        attempts: Episodes behind all estimates together.
        level: Of the interval.

    Raises:
        ValueError: an estimate is outside [0, 1], or `level` not between 0 and 1.
    """
    _check_level(level)
    if not estimates:
        return EMPTY
    if not all(0 <= estimate <= 1 for estimate in estimates):
        raise ValueError(f"rates lie between 0 and 1, got {min(estimates)} to {max(estimates)}")
    rate, tasks = fmean(estimates), len(estimates)
    variance = stdev(estimates) ** 2 / tasks if tasks > 1 else math.inf
    binomial = rate * (1 - rate)
    worth = math.inf if variance == 0 < binomial else binomial / variance if binomial else 0.0
    return _score_interval(rate, min(max(worth, tasks), max(attempts, tasks)), attempts, level)


def _score_interval(rate: float, worth: float, n: int, level: float) -> Interval:
    z = NormalDist().inv_cdf((1 + level) / 2)
    spread = z * z / worth
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / worth + spread / (4 * worth)) / (1 + spread)
    # At the ends the formula gives the rate itself, but for rounding.
    low = 0.0 if rate == 0 else centre - half
    high = 1.0 if rate == 1 else centre + half
    return Interval(rate, low, high, n)


def bootstrap(
    values: Sequence[float], *, seed: int, level: float = 0.95, resamples: int = 2000
) -> Interval:
    """Return the mean of `values` with its percentile bootstrap interval.

    Give one value per independent unit: for several attempts per task, the task's mean.
    """
    _check_level(level)
    if not values:
        return EMPTY
    sample = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    # One row at a time: 400 tasks by 10,000 resamples at once would be 30 MB for nothing.
    means = [sample[rng.integers(0, len(sample), len(sample))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sample.mean()), float(low), float(high), len(sample))


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """Return the mean of `after - before` over the same tasks, with a bootstrap interval.

    Raises:
        ValueError: the two differ in length, so that they are not scores of the same tasks.
    """
    if len(before) != len(after):
        raise ValueError(
            f"a paired difference needs the same tasks twice, got {len(before)} and {len(after)}"
        )
    differences = [new - old for old, new in zip(before, after, strict=True)]
    return bootstrap(differences, seed=seed, level=level, resamples=resamples)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the unbiased chance that at least one of `k` attempts succeeds.

    Raises:
        ValueError: not 1 <= k <= n, or not 0 <= c <= n.
    """
    _check_attempts(n, c, k)
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def pass_hat_k(n: int, c: int, k: int) -> float:
    """Return the unbiased chance that all of `k` attempts succeed (pass^k).

    Raises:
        ValueError: not 1 <= k <= n, or not 0 <= c <= n.
    """
    _check_attempts(n, c, k)
    return math.comb(c, k) / math.comb(n, k)


def mean_t(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean over runs (seeds) with Student's t interval; one run has no finite bounds."""
    _check_level(level)
    if not values:
        return EMPTY
    mean, n = fmean(values), len(values)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    half = student_t_quantile(level, n - 1) * stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def student_t_quantile(level: float, degrees: int) -> float:
    """Return t with P(|T| <= t) = `level` for whole `degrees` of freedom, by bisection.

    Raises:
        ValueError: `degrees` is less than 1, or `level` not between 0 and 1.
    """
    _check_level(level)
    if degrees < 1:
        raise ValueError(f"Student's t needs at least 1 degree of freedom, got {degrees}")
    low, high = 0.0, 1.0
    while _student_t_mass(high, degrees) < level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_t_mass(middle, degrees) < level else (low, middle)
    return high


def _student_t_mass(t: float, degrees: int) -> float:
    """Return P(|T| <= t): the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(degrees))
    cosine, first = math.cos(theta), degrees % 2
    term, total = (cosine if first else 1.0), 0.0
    for k in range(first + 2, degrees + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    if not first:
        return math.sin(theta) * total
    return 2 / math.pi * (theta + math.sin(theta) * total)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, got {level}")


def _check_attempts(n: int, c: int, k: int) -> None:
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= c <= n, got n={n}, c={c}, k={k}")
