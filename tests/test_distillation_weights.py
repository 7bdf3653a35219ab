"""Laws of the weights of turns and tokens: what each may depend on, and what a missing score is."""

import itertools
import math

import numpy as np
import pytest
import torch
from enumerated import (
    NOW,
    V,
    expected_gradient,
    kl_gradient,
    reordered,
    replace_column,
    some_table,
    table_of,
    two_policies,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.trainers import routes, signals, weights
from turnwise.trainers.distillation import Distillation, teach

# ------------------------------------------------------------ weights


def product_form(drifts, eps, delta):
    """SOD eq. 7 as published: a running product, capped on output."""
    found, running = [1.0], 1.0
    for before, here in itertools.pairwise(drifts):
        running *= (before + eps) / (here + eps)
        found.append(min(running, 1 + delta))
    return found


@given(st.lists(st.floats(0.001, 5), min_size=1, max_size=6), st.floats(0, 1))
@settings(deadline=None)
def test_the_closed_form_of_sod_is_the_published_product(drifts, delta):
    steps = np.arange(len(drifts))
    table = table_of(
        np.zeros(len(drifts)), -np.array(drifts), step_M=steps, traj_M=np.zeros(len(drifts), int)
    )
    mine = weights.sod(eps=1e-6, delta=delta, floor=0)(table)
    np.testing.assert_allclose(mine, product_form(drifts, 1e-6, delta), rtol=1e-6)


@pytest.mark.parametrize("weight", [weights.sod(), weights.sod(floor=0), weights.batch_sod()])
@given(st.floats(0, 50), st.lists(st.floats(0.1, 50), min_size=2, max_size=5))
@settings(max_examples=20, deadline=None)
def test_an_episode_of_one_turn_weighs_one_whatever_its_drift(weight, alone, others):
    """Nor does the floor, which comes from the others, change it."""
    drift = np.array([alone, *others])
    columns = {"step_M": np.arange(len(drift)) - 1, "traj_M": np.array([0] + [1] * len(others))}
    columns["step_M"][0] = 0
    assert weight(table_of(np.zeros(len(drift)), -drift, **columns))[0] == 1.0


TURN_WEIGHTS = [weights.sod(), weights.batch_sod(), weights.first_turns(2),
                weights.permuted(weights.sod()), weights.uniform_like(weights.sod())]  # fmt: skip


@pytest.mark.parametrize("weight", TURN_WEIGHTS)
@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_a_step_weight_is_constant_inside_a_turn(weight, seed):
    table = some_table(seed, missing=0.2)
    found = weight(table)
    for turn in np.unique(table.turn_M):
        assert np.ptp(found[table.turn_M == turn]) < 1e-12
    assert (found >= 0).all()


def test_a_first_turn_that_agrees_by_chance_does_not_silence_the_rest():
    drift = np.array([0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    columns = {"step_M": np.array([0, 1, 0, 1, 0, 1]), "traj_M": np.array([0, 0, 1, 1, 2, 2])}
    table = table_of(np.zeros(6), -drift, **columns)
    assert weights.sod(floor=0)(table)[1] < 1e-5
    assert weights.sod(floor=0.25)(table)[1] == pytest.approx(0.25, rel=1e-4)
    np.testing.assert_allclose(weights.sod(floor=0.25)(table)[2:], 1.0, rtol=1e-5)


def test_a_batch_level_reference_tells_a_bad_trajectory_from_a_good_one():
    drift = np.array([0.1, 0.1, 2.0, 2.0])
    columns = {"step_M": np.array([0, 1, 0, 1]), "traj_M": np.array([0, 0, 1, 1])}
    table = table_of(np.zeros(4), -drift, **columns)
    np.testing.assert_allclose(weights.sod(floor=0)(table), 1.0, rtol=1e-4)
    assert weights.batch_sod()(table)[3] < 0.6 < weights.batch_sod()(table)[1]


@pytest.mark.parametrize("control", [weights.permuted, weights.uniform_like])
def test_the_controls_keep_the_mean_weight_of_a_turn_or_token(control):
    table = some_table(3, trajs=40)
    plain, dealt = weights.sod()(table), control(weights.sod())(table)
    if control is weights.uniform_like:
        assert dealt.mean() == pytest.approx(plain.mean()) and np.ptp(dealt) == 0
        return
    first = np.unique(table.turn_M, return_index=True)[1]
    np.testing.assert_allclose(np.sort(dealt[first]), np.sort(plain[first]))
    assert not np.allclose(dealt, plain)


def test_weights_by_place_rise_or_fall_along_a_trajectory():
    table = some_table(7, trajs=12)
    for weight, sign in ((weights.from_the_front(), -1), (weights.towards_the_end(), 1),
                         (weights.pruned(), -1)):  # fmt: skip
        found = weight(table)
        for traj in np.unique(table.traj_M):
            along = sign * np.diff(found[table.traj_M == traj])
            assert (along >= -1e-12).all()
        assert found.std() > 1e-3, "flat weights neither rise nor fall"


def test_nothing_is_pruned_where_no_overlap_is_asked_for():
    table = some_table(2)
    np.testing.assert_allclose(weights.pruned(threshold=0.0, base=0.0)(table), 1.0)
    assert weights.pruned(threshold=2.0, drop=1.0, base=0.0)(table).max() == 0


@given(st.integers(0, 10_000), st.integers(0, V - 1))
@settings(max_examples=20, deadline=None)
def test_pruning_at_a_threshold_of_zero_gives_the_gradient_of_distillation(seed, never):
    """Also where student and teacher share none of their likeliest tokens: 0 is not below 0."""
    student, teacher = two_policies(seed)
    overlap = np.random.default_rng(seed).random(V)
    overlap[never] = 0.0
    old = student.detach().log_softmax(-1).numpy()
    one = np.zeros(V, int)
    table = table_of(old, teacher.numpy(), overlap_M=overlap, traj_M=one)
    for threshold, same in ((0.0, True), (0.9, False)):
        weight = weights.pruned(threshold=threshold, drop=0.3, base=0.0)
        how = Distillation(signal=signals.reverse_kl, weight=weight)
        mine = torch.from_numpy(teach(table, np.zeros(V), how, NOW).advantage_M)
        close = torch.allclose(expected_gradient(student, mine), kl_gradient(student, teacher))
        assert close == same


def test_the_informative_tokens_are_a_share_of_each_trajectory_and_the_highest():
    table = some_table(4, trajs=30)
    kept = weights.informative(0.5)(table)
    entropy = np.minimum(table.entropy_M, np.quantile(table.entropy_M[table.valid_M], 0.98))
    h, d = (between(x, table.valid_M) for x in (entropy, table.drift_M))
    score = np.where(table.valid_M, h + d - h * d, -np.inf)
    for traj in np.unique(table.traj_M):
        here = table.traj_M == traj
        assert kept[here].sum() == math.ceil(0.5 * (here & table.valid_M).sum())
        assert score[here & (kept == 1)].min() >= score[here & (kept == 0)].max()


def between(values, here):
    """Scaled so that those that count lie in 0..1."""
    low, high = values[here].min(), values[here].max()
    return (values - low) / (high - low)


ALL_WEIGHTS = [*TURN_WEIGHTS, weights.ones, weights.from_the_front(), weights.towards_the_end(),
               weights.pruned(), weights.informative()]  # fmt: skip


@pytest.mark.parametrize("piece", [w for w in ALL_WEIGHTS if w is not TURN_WEIGHTS[3]])
@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_a_weight_does_not_depend_on_the_order_of_trajectories(piece, seed):
    table = some_table(seed)
    shift = (table.traj_M + 2) % (table.traj_M.max() + 1)
    order = np.argsort(shift, kind="stable")
    np.testing.assert_allclose(piece(reordered(table, order)), piece(table)[order])


def without(table, traj):
    """The table without one trajectory, and which tokens those are that stay."""
    stay = table.traj_M != traj
    left = reordered(table, np.flatnonzero(stay))
    return replace_column(left, traj_M=np.unique(left.traj_M, return_inverse=True)[1]), stay


def unscored(table, gone):
    """The table where the tokens `gone` have no score; what else the teacher said is nonsense."""
    nonsense = {name: np.where(gone, 1e6, getattr(table, name)) for name in OF_TEACHER}
    return replace_column(table, teacher_M=np.where(gone, np.nan, table.teacher_M), **nonsense)


OF_TEACHER = ("reverse_kl_M", "entropy_M", "overlap_M", "against_M")
# Whether a group holds a success does not hang on the teacher: `where_all_failed` is not here.
ALL_ROUTES = [routes.everywhere, routes.on_failure, routes.on_success, routes.margin(0.4),
              routes.failures_by_perplexity(), routes.successes_by_perplexity()]  # fmt: skip


@pytest.mark.parametrize("piece", [*ALL_WEIGHTS, *ALL_ROUTES])
@given(seed=st.integers(0, 1000), missing=st.sampled_from([0.0, 0.5]))
@settings(max_examples=15, deadline=None)
def test_a_trajectory_without_scores_is_to_the_others_as_if_it_were_not_there(piece, seed, missing):
    table = some_table(seed, trajs=6, missing=missing)
    fewer, stay = without(table, 2)
    masked, plain = piece(unscored(table, ~stay)), piece(fewer)
    pairs = zip(masked, plain, strict=True) if isinstance(plain, tuple) else [(masked, plain)]
    for mine, expected in pairs:
        assert np.isfinite(mine).all()
        np.testing.assert_allclose(mine[stay], expected)


def test_the_drift_of_later_turns_is_held_against_the_first_turn_that_has_a_score():
    drift = np.array([np.nan, 1.0, 4.0, np.nan, np.nan, 2.0, 0.5])
    columns = {"step_M": np.array([0, 1, 2, 3, 0, 1, 2]), "traj_M": np.array([0] * 4 + [1] * 3)}
    table = table_of(np.zeros(7), -drift, **columns)
    found = weights.sod(floor=0, delta=0.2)(table)
    np.testing.assert_allclose(found, [1, 1, 0.25, 1, 1, 1, 1.2], rtol=1e-5)
    found = weights.batch_sod(delta=0.2)(table)
    np.testing.assert_allclose(found, [1, 1, 1.5 / 4, 1, 1, 1, 1.2], rtol=1e-5)


@pytest.mark.parametrize("weight", [weights.sod(floor=0), weights.batch_sod()])
def test_where_an_attempt_begins_in_the_middle_its_first_own_turn_counts_in_full(weight):
    """A backward curriculum replays turns 0 to 2: turn 3 is the first that is trained."""
    drift = np.array([1.0, 2.0, 1.0, 4.0])
    columns = {"step_M": np.array([3, 4, 0, 1]), "traj_M": np.array([0, 0, 1, 1])}
    found = weight(table_of(np.zeros(4), -drift, **columns))
    np.testing.assert_allclose(found, [1, 0.5, 1, 0.25], rtol=1e-5)


def test_the_floor_is_a_share_of_the_middle_first_drift_and_not_of_the_largest():
    drift = np.array([0.0, 1.0, 1.0, 1.0, 8.0, 8.0])
    columns = {"step_M": np.array([0, 1] * 3), "traj_M": np.array([0, 0, 1, 1, 2, 2])}
    table = table_of(np.zeros(6), -drift, **columns)
    found = weights.sod(floor=0.25)(table)
    np.testing.assert_allclose(found, [1, 0.25, 1, 1, 1, 1], rtol=1e-5)


@pytest.mark.parametrize(("weight", "share"), [(weights.ones, 1.0), (lambda t: one_hot(t), 1 / 9)])
def test_the_effective_share_of_tokens_is_one_for_equal_weights_and_one_token_for_one(
    weight, share
):
    table = table_of(np.zeros(9), -np.ones(9))
    how = Distillation(signal=signals.reverse_kl, weight=weight)
    said = teach(table, np.zeros(9), how, NOW).metrics
    assert said["teacher_ess"] == pytest.approx(share)


def one_hot(table):
    return (np.arange(len(table)) == 4).astype(float)
