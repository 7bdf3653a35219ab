"""Laws of the statistics: intervals cover, estimators are unbiased."""

from __future__ import annotations

import itertools
import math
import random
from statistics import NormalDist, fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.agents.statistics import (
    EMPTY,
    bootstrap,
    mean_t,
    paired_difference,
    pass_at_k,
    pass_hat_k,
    rate_over_tasks,
    student_t_quantile,
    wilson,
)


def binomial(n: int, c: int, p: float) -> float:
    return math.comb(n, c) * p**c * (1 - p) ** (n - c)


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("n", [20, 100, 400])
def test_wilson_covers_the_true_rate_about_as_often_as_it_says(n, level):
    intervals = [wilson(c, n, level) for c in range(n + 1)]
    rates = [k / 50 for k in range(1, 50)]
    covers = [
        sum(binomial(n, c, p) for c, i in enumerate(intervals) if i.low <= p <= i.high)
        for p in rates
    ]
    assert fmean(covers) == pytest.approx(level, abs=0.012)  # exact coverage, averaged over rates
    assert min(covers) > level - 0.13


def test_wilson_solves_its_defining_equation_and_stays_between_0_and_1():
    z = NormalDist().inv_cdf(0.975)
    for n, c in [(10, 3), (400, 340), (7, 1)]:
        interval = wilson(c, n)
        for bound in (interval.low, interval.high):
            assert abs(c / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n))
    assert (wilson(0, 5).low, wilson(5, 5).high) == (0.0, 1.0)
    assert wilson(0, 5).high == pytest.approx(1 - wilson(5, 5).low)
    assert wilson(0, 0) is EMPTY


def test_with_one_attempt_per_task_the_rate_over_tasks_is_wilsons():
    for n, c in [(1, 0), (1, 1), (10, 3), (400, 340), (50, 50)]:
        assert rate_over_tasks([1.0] * c + [0.0] * (n - c), n) == wilson(c, n)


@pytest.mark.parametrize("spread", [0.3, 2.0, 50.0])
def test_the_rate_over_tasks_covers_whatever_attempts_share(spread):
    rng = random.Random(3)
    tasks, attempts, rate = 80, 8, 0.7

    def covered() -> bool:
        solved = [rng.betavariate(spread * rate, spread * (1 - rate)) for _ in range(tasks)]
        means = [sum(rng.random() < p for _ in range(attempts)) / attempts for p in solved]
        interval = rate_over_tasks(means, tasks * attempts)
        return interval.low <= rate <= interval.high

    assert fmean(covered() for _ in range(500)) == pytest.approx(0.95, abs=0.03)


def test_correlated_attempts_are_worth_as_much_as_their_tasks_and_equal_ones_never_more():
    alike = rate_over_tasks([0.0, 1.0] * 50, 800)
    assert (alike.low, alike.high) == pytest.approx((wilson(50, 100).low, wilson(50, 100).high))
    mixed = rate_over_tasks([0.5] * 100, 800)
    assert (mixed.low, mixed.high) == pytest.approx((wilson(400, 800).low, wilson(400, 800).high))
    assert rate_over_tasks([1.0] * 10, 80).low == wilson(10, 10).low
    assert rate_over_tasks([], 0) is EMPTY
    with pytest.raises(ValueError, match="between 0 and 1"):
        rate_over_tasks([0.5, 1.5], 2)


@settings(deadline=None)
@given(st.integers(1, 7).flatmap(lambda n: st.lists(st.booleans(), min_size=n, max_size=n)))
def test_pass_at_k_is_the_mean_over_all_choices_of_k_attempts(attempts):
    n, c = len(attempts), sum(attempts)
    for k in range(1, n + 1):
        chosen = list(itertools.combinations(attempts, k))
        assert pass_at_k(n, c, k) == pytest.approx(fmean(map(any, chosen)))
        assert pass_hat_k(n, c, k) == pytest.approx(fmean(map(all, chosen)))


def test_pass_at_k_is_unbiased_where_the_plug_in_estimate_is_not():
    n, k, p = 6, 3, 0.3
    expected = sum(binomial(n, c, p) * pass_at_k(n, c, k) for c in range(n + 1))
    plug_in = sum(binomial(n, c, p) * (1 - (1 - c / n) ** k) for c in range(n + 1))
    assert expected == pytest.approx(1 - (1 - p) ** k)
    assert plug_in < expected - 0.02
    hat = sum(binomial(n, c, p) * pass_hat_k(n, c, k) for c in range(n + 1))
    assert hat == pytest.approx(p**k)


def test_the_bootstrap_is_seeded_and_agrees_with_the_normal_interval():
    rng = random.Random(0)
    values = [rng.gauss(2.0, 1.0) for _ in range(400)]
    first, second = (bootstrap(values, seed=3) for _ in range(2))
    assert first == second
    assert bootstrap(values, seed=4) != first
    half = 1.96 / math.sqrt(400)
    assert first.value == pytest.approx(fmean(values))
    assert (first.low, first.high) == pytest.approx(
        (first.value - half, first.value + half), abs=0.02
    )
    assert bootstrap([], seed=0) is EMPTY


def test_pairing_removes_what_the_tasks_share():
    rng = random.Random(1)
    easy = [rng.gauss(0, 5) for _ in range(200)]
    better = [value + 0.5 + rng.gauss(0, 0.1) for value in easy]
    paired = paired_difference(easy, better, seed=0)
    assert paired.low > 0.45
    assert bootstrap(better, seed=0).low < bootstrap(easy, seed=0).high
    with pytest.raises(ValueError, match="same tasks twice, got 2 and 1"):
        paired_difference([1, 2], [1], seed=0)


@pytest.mark.parametrize(
    ("degrees", "level", "quantile"),
    [
        (1, 0.95, 12.706205),
        (2, 0.95, 4.302653),
        (4, 0.95, 2.776445),
        (5, 0.99, 4.032143),
        (9, 0.9, 1.833113),
        (30, 0.95, 2.042272),
        (1000, 0.95, 1.962339),
    ],
)
def test_student_t_agrees_with_the_published_table(degrees, level, quantile):
    assert student_t_quantile(level, degrees) == pytest.approx(quantile, abs=2e-6)


def test_the_t_interval_covers_the_mean_of_five_seeds():
    rng = random.Random(2)
    runs = [mean_t([rng.gauss(7, 3) for _ in range(5)]) for _ in range(2000)]
    assert fmean(run.low <= 7 <= run.high for run in runs) == pytest.approx(0.95, abs=0.015)
    alone = mean_t([0.5])
    assert (alone.value, alone.low, alone.high) == (0.5, -math.inf, math.inf)
    assert alone.to_json() == {"value": 0.5, "n": 1}


def test_bad_counts_are_refused_with_what_was_given():
    with pytest.raises(ValueError, match="between 0 and n = 3, got 4"):
        wilson(4, 3)
    for n, c, k in [(3, 4, 1), (3, 1, 4), (3, 1, 0)]:
        with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
            pass_at_k(n, c, k)
    with pytest.raises(ValueError, match=r"between 0 and 1, got 95"):
        wilson(1, 2, level=95)
