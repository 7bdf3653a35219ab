"""Laws of routes, mixes and schedules, and of what all pieces of a distillation give together."""

import math

import numpy as np
import pytest
from enumerated import NOW, replace_column, some_table, table_of
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.trainers import divergences as div
from turnwise.trainers import mixes, routes, signals, weights
from turnwise.trainers.distillation import Distillation, teach
from turnwise.trainers.mixes import Progress

# ------------------------------------------------------------ routes


@pytest.mark.parametrize(
    "route, counts",
    [(routes.failures_by_perplexity(), False), (routes.successes_by_perplexity(), True)],
)
@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_scope_weights_sum_to_one_in_each_group_and_outcome(route, counts, seed):
    table = some_table(seed, trajs=8)
    factor, shift = route(table)
    first = np.unique(table.traj_M, return_index=True)[1]
    for group in np.unique(table.group_M):
        here = [i for i in first if table.group_M[i] == group]
        right = [i for i in here if table.success_M[i] == counts]
        assert sum(factor[i] for i in right) == pytest.approx(float(bool(right)))
        assert all(factor[i] == 0 for i in here if i not in right)
    assert not shift.any()


PPL = np.array([2.0, 8.0, 3.0, 12.0])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_scope_prefers_failures_that_the_teacher_finds_natural_and_rare_successes(temperature):
    """PPL_T^(-1/t) of failures, PPL_S^(1/t) of successes: each a share of its group's."""
    flags = {"success_M": np.array([False, False, True, True])}
    by_teacher = table_of([-5.0, -1, -5, -1], -np.log(PPL), **flags)
    by_student = table_of(-np.log(PPL), [-5.0, -1, -5, -1], **flags)
    lost, won = PPL[:2] ** (-1 / temperature), PPL[2:] ** (1 / temperature)
    found = routes.failures_by_perplexity(temperature)(by_teacher)[0]
    np.testing.assert_allclose(found, [*(lost / lost.sum()), 0, 0])
    found = routes.successes_by_perplexity(temperature)(by_student)[0]
    np.testing.assert_allclose(found, [0, 0, *(won / won.sum())])


@given(st.integers(0, 1000), st.floats(0, 3))
@settings(max_examples=25, deadline=None)
def test_after_the_margin_shift_the_gap_is_at_least_what_was_asked_for(seed, least):
    table = some_table(seed, trajs=8)
    factor, shift = routes.margin(least)(table)
    assert (factor == 1).all()
    signal = signals.reverse_kl(table)
    for group in np.unique(table.group_M):
        means = {True: [], False: []}
        shifts = []
        for traj in np.unique(table.traj_M[table.group_M == group]):
            here = table.traj_M == traj
            means[bool(table.success_M[here][0])].append((signal[here].mean(), shift[here][0]))
            shifts.append(shift[here][0])
        if not means[True] or not means[False]:
            assert not np.any(shifts)
            continue
        before = np.mean([m for m, _ in means[True]]) - np.mean([m for m, _ in means[False]])
        after = (
            before + np.mean([s for _, s in means[True]]) - np.mean([s for _, s in means[False]])
        )
        assert after == pytest.approx(max(before, least))
        assert np.any(shifts) == (before < least), "a gap that is wide enough is left alone"


def test_routes_by_outcome_take_what_they_say():
    table = some_table(5, trajs=9)
    assert (routes.on_failure(table)[0] == ~table.success_M).all()
    assert (routes.on_success(table)[0] == table.success_M).all()
    hopeless = table_of([0.0, 0, 0], [0.0, 0, 0], group_M=np.array([4, 4, 9]),
                        success_M=np.array([True, False, False]))  # fmt: skip
    assert routes.where_all_failed(hopeless)[0].tolist() == [0, 0, 1]


# ------------------------------------------------------------ mixes and schedules


def test_the_mixes_are_what_their_formulas_say_at_the_ends():
    rl, b = np.array([1.0, -2.0, 0.0]), np.array([0.3, 0.3, -0.3])
    assert (mixes.added(rl, b, 0) == rl).all() and (mixes.convex(rl, b, 0) == rl).all()
    assert (mixes.convex(rl, b, 1) == b).all() and (mixes.signal_alone(rl, b, 2) == 2 * b).all()
    assert (mixes.modulated()(rl, b, 0) == rl).all()


def test_modulation_strengthens_what_the_teacher_agrees_with_and_weakens_the_rest():
    rl, b = np.array([1.0, 1.0, -1.0, -1.0]), np.array([0.1, -0.1, 0.1, -0.1])
    expected = [math.exp(0.1), math.exp(-0.1), -math.exp(-0.1), -math.exp(0.1)]
    np.testing.assert_allclose(mixes.modulated()(rl, b, 1), expected)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-9, 9)), min_size=1), st.floats(0, 1))
@settings(deadline=None)
def test_modulation_never_flips_the_sign_of_the_reward(pairs, c):
    rl, b = np.array(pairs).T
    mixed = mixes.modulated()(rl, b, c)
    assert (np.sign(mixed) == np.sign(rl)).all()
    assert (np.abs(mixed) <= 1.2 * np.abs(rl) + 1e-12).all()


def test_schedules_start_end_and_switch_where_they_say():
    at = [Progress(step, 10) for step in range(12)]
    assert [mixes.linear(1, 0, 0.5)(p) for p in (at[0], at[5], at[11])] == [1, 0, 0]
    cos = [mixes.cosine(1, 0.1)(p) for p in at]
    assert cos[0] == 1 and cos[10] == pytest.approx(0.1) and all(np.diff(cos) <= 0)
    assert [mixes.until(3)(p) for p in (at[2], at[3])] == [1, 0]


def test_a_plateau_is_left_once_and_for_all():
    rising = tuple(i / 20 for i in range(20))
    flat = rising[:8] + (0.4,) * 6
    schedule = mixes.until_plateau(patience=3, gain=0.01)
    assert schedule(Progress(20, 40, rising)) == 1
    assert schedule(Progress(14, 40, flat)) == 0
    assert schedule(Progress(20, 40, (*flat, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0))) == 0, "never back"
    assert schedule(Progress(2, 40, (0.0, 0.0))) == 1


def test_a_plateau_is_measured_against_the_best_and_not_what_came_just_before():
    """Means of two: .5, .2, .6, .5. The last one is above the second, and no gain on the first."""
    seen, schedule = (0.8, 0.2, 0.2, 1.0, 0.0), mixes.until_plateau(patience=2, gain=0.01)
    assert [schedule(Progress(n, 40, seen[:n])) for n in (4, 5)] == [1, 0]


# ------------------------------------------------------------ all together


METHODS = {
    "opd": Distillation(signal=signals.reverse_kl),
    "vopd": Distillation(signal=signals.with_control_variate),
    "sod": Distillation(signal=signals.reverse_kl, weight=weights.sod(), mix=mixes.added),
    "prune": Distillation(signal=signals.reverse_kl, weight=weights.pruned()),
    "scope": Distillation(signal=signals.reverse_kl, route=routes.failures_by_perplexity()),
    "uni": Distillation(signal=signals.reverse_kl, route=routes.margin()),
    "direct": Distillation(direct=div.full(), weight=weights.sod()),
}


@pytest.mark.parametrize("how", METHODS.values(), ids=METHODS)
def test_a_missing_score_is_a_mask_and_never_a_zero(how):
    table = some_table(3, missing=0.4)
    rl = np.linspace(-1, 1, len(table))
    out = teach(table, rl, how, NOW)
    assert np.isfinite(out.advantage_M).all() and np.isfinite(out.direct_M).all()
    missing = ~table.valid_M
    assert missing.any() and not out.direct_M[missing].any()
    expected = rl if how.signal is None else how.mix(rl, np.zeros(len(table)), 1.0)
    np.testing.assert_allclose(out.advantage_M[missing], expected[missing])
    assert out.metrics["teacher_missing"] == pytest.approx(missing.mean())


def test_scores_that_are_all_missing_leave_the_reward_alone():
    table = some_table(3, missing=1.1)
    rl = np.linspace(-1, 1, len(table))
    out = teach(table, rl, METHODS["sod"], NOW)
    np.testing.assert_array_equal(out.advantage_M, rl)
    assert all(math.isfinite(value) for value in out.metrics.values())


@pytest.mark.parametrize("name", ["opd", "sod", "prune", "scope"])
def test_a_teacher_who_says_what_the_student_says_moves_nothing(name):
    table = some_table(6)
    same = replace_column(table, teacher_M=table.old_M)
    rl = np.zeros(len(table))
    np.testing.assert_allclose(teach(same, rl, METHODS[name], NOW).advantage_M, 0.0)
    assert teach(table, rl, METHODS[name], NOW).advantage_M.any()


def test_weights_multiply_and_are_not_normalised_away():
    table = some_table(6)
    half = Distillation(signal=signals.reverse_kl, weight=lambda t: np.full(len(t), 0.5))
    twice = Distillation(signal=signals.reverse_kl, weight=weights.times(half.weight, half.weight))
    whole = teach(table, np.zeros(len(table)), METHODS["opd"], NOW).advantage_M
    np.testing.assert_allclose(teach(table, 0 * whole, half, NOW).advantage_M, whole / 2)
    np.testing.assert_allclose(teach(table, 0 * whole, twice, NOW).advantage_M, whole / 4)


def test_a_piece_that_lacks_its_column_says_which_and_who():
    table = table_of([0.0], [0.0])
    with pytest.raises(ValueError, match="with_control_variate needs the column reverse_kl_M"):
        signals.with_control_variate(table)
    with pytest.raises(ValueError, match="column step_M has 2 tokens and old_M 1"):
        table_of([0.0], [0.0], step_M=np.zeros(2, int))
    with pytest.raises(ValueError, match="a signal, a direct loss or trust"):
        Distillation()


def test_an_empty_batch_is_no_error():
    empty = table_of([], [], **{k: np.zeros(0) for k in ("reverse_kl_M", "entropy_M", "overlap_M")})
    for how in METHODS.values():
        assert len(teach(empty, np.zeros(0), how, NOW).advantage_M) == 0
