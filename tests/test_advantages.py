"""Laws of credit: order, crashed attempts and other tasks do not matter; no peer means 0."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.envs.types import Episode, Group, Outcome, Segment, Task, Turn
from turnwise.trainers.advantages import (
    Level,
    TurnTable,
    batch_std,
    by_levels,
    group_by,
    leave_one_out,
    mad,
    mean,
    median,
    nonzero,
    std,
    summed,
    turn_table,
    whitened,
)
from turnwise.trainers.recipe import no_credit
from turnwise.trainers.recipes import recipes
from turnwise.trainers.turns import (
    anchor,
    batch,
    history,
    outcome,
    reward_to_go,
    shortened,
    trajectory,
    turn,
)


def episode(
    rewards, states=None, *, id="e", tokens=2, outcome=Outcome.OK, observations=None
) -> Episode:
    states = states if states is not None else [f"s{t}" for t in range(len(rewards))]
    observations = observations or [""] * len(rewards)
    turns = tuple(
        Turn(
            action_ids=(7,) * tokens,
            logprobs=(-0.5,) * tokens,
            reward=reward,
            state_before=state,
            observation=observation,
        )
        for reward, state, observation in zip(rewards, states, observations, strict=True)
    )
    segments = (Segment(turns=turns),)
    return Episode(id=id, env_id="toy", task=Task(), segments=segments, outcome=outcome)


def group(*episodes: Episode) -> Group:
    return Group(task=Task(), episodes=episodes)


def table_of(*groups, history: int = 2) -> TurnTable:
    return turn_table([group(*(episode(*e) for e in g)) for g in groups], history)


@st.composite
def tables(draw) -> TurnTable:
    """Up to three groups of up to four attempts with shared states and shaped rewards."""
    rewards = st.integers(-3, 3).map(float)
    attempt = st.lists(st.tuples(rewards, st.sampled_from("abc")), min_size=1, max_size=4)
    drawn = draw(st.lists(st.lists(attempt, min_size=1, max_size=4), min_size=1, max_size=3))
    return table_of(*[[tuple(zip(*a, strict=True)) for a in g] for g in drawn])


CREDITS = {found.name: found.credit for found in recipes() if found.credit is not no_credit}


def slow_credit(table: TurnTable) -> np.ndarray:
    """turn-RLOO, written as its definition says: three nested loops and no cleverness."""
    to_go = reward_to_go(1.0)(table)
    levels = [(table.group_N, outcome(table), 1, True), (table.anchor_N, to_go, 1, False)]
    levels += [(table.history_NK[:, k], to_go, k + 2, False) for k in range(2)]
    result = np.zeros(len(table))
    for i in range(len(table)):
        total = weight = 0.0
        for key, value, w, once in levels:
            others = [
                value[j]
                for j in range(len(table))
                if key[j] == key[i] >= 0
                and table.traj_N[j] != table.traj_N[i]
                and (table.turn_N[j] == 0 or not once)
            ]
            if others:
                total, weight = total + w * (value[i] - np.mean(others)), weight + w
        result[i] = total / weight if weight else 0.0
    return result


# The table


def test_rows_follow_groups_episodes_turns():
    table = table_of([([0.0, 1.0],), ([0.5],)], [([0.25, 0.0, 1.0],)])
    assert table.traj_N.tolist() == [0, 0, 1, 2, 2, 2]
    assert table.turn_N.tolist() == [0, 1, 0, 0, 1, 2]
    assert table.group_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert table.tokens_N.tolist() == [2] * 6
    assert table.reward_N.dtype == np.float64


def test_a_crashed_attempt_leaves_the_group_smaller_and_changes_nothing_else():
    whole = [episode([0.0, 1.0]), episode([0.5]), episode([0.25, 0.0])]
    crash = episode([9.0], outcome=Outcome.INFRA_ERROR)
    with_crash, without = turn_table([group(crash, *whole)]), turn_table([group(*whole)])
    for name, credit in CREDITS.items():
        np.testing.assert_array_equal(credit(with_crash), credit(without), err_msg=name)


def test_keys_do_not_cross_groups_even_for_the_same_state():
    table = table_of([([1.0], "a")], [([0.0], "a")])
    for keys in (trajectory, turn, anchor):
        assert len(set(keys(table).tolist())) == 2


def test_history_keys_need_the_same_past_and_exist_from_turn_k_on():
    table = table_of([([0.0] * 3, "abc"), ([0.0] * 3, "abc"), ([0.0] * 3, "bbc")])
    one, two = table.history_NK.reshape(3, 3, 2).transpose(2, 0, 1)
    assert (one[:, 0] == -1).all() and (two[:, :2] == -1).all()
    assert (one[:, 2] == one[0, 2]).all()
    assert two[0, 2] == two[1, 2] != two[2, 2]


def test_without_a_state_hash_the_observation_is_the_anchor_and_without_both_there_is_none():
    seen = episode([0.0, 1.0], ["", ""], observations=["room", ""])
    table = turn_table([group(seen, seen)])
    assert table.anchor_N[0] == table.anchor_N[2] >= 0
    assert table.anchor_N[1] == table.anchor_N[3] == -1
    advantages_N = by_levels(Level(returns=outcome, keys=anchor))(table)
    assert advantages_N[[1, 3]].tolist() == [0.0, 0.0]


def test_a_non_finite_reward_is_refused_and_the_episode_named():
    broken = episode([0.0, 0.5], id="babyai-17")
    object.__setattr__(broken.turns[1], "reward", math.nan)
    with pytest.raises(ValueError, match=r"'babyai-17' has reward nan at turn 1.*JUDGE_ERROR"):
        turn_table([group(broken)])


def test_a_history_that_the_table_lacks_is_refused_with_the_call_that_makes_it():
    with pytest.raises(ValueError, match=r"turn_table\(groups, history=3\)"):
        history(3)(table_of([([0.0],)]))


def test_an_empty_batch_gives_an_empty_answer():
    empty = turn_table([])
    for name, credit in CREDITS.items():
        assert credit(empty).shape == (0,), name


# Returns


def test_reward_to_go_discounts_within_an_episode_and_does_not_cross_it():
    table = table_of([([1.0, 0.0, 4.0],), ([8.0],)])
    assert reward_to_go(0.5)(table).tolist() == [2.0, 2.0, 4.0, 8.0]
    assert reward_to_go(1.0)(table).tolist() == [5.0, 4.0, 4.0, 8.0]
    assert outcome(table).tolist() == [5.0, 5.0, 5.0, 8.0]


def test_a_reward_reaches_back_over_turns_that_are_not_trained():
    """A running return that is reset where the mask is 0 loses the outcome (verl #7278)."""
    plain = episode([1.0, 2.0, 4.0])
    turns = list(plain.segments[0].turns)
    turns[1] = replace(turns[1], executor="teacher")
    mixed = replace(plain, segments=(Segment(turns=tuple(turns)),))
    table = turn_table([group(mixed)])
    assert turn(table).tolist() == [0, 1, 2]
    assert reward_to_go(0.5)(table).tolist() == [3.0, 4.0, 4.0]
    assert reward_to_go(1.0)(table).tolist() == [7.0, 6.0, 4.0]
    assert outcome(table).tolist() == [7.0] * 3


def test_turns_without_a_reward_are_still_turns():
    """RAGEN finds turns by their rewards, so a zero in the middle joins two of them (its bug)."""
    table = table_of([([0.0, 0.0, 1.0],), ([0.0, 1.0],)])
    assert turn(table).tolist() == [0, 1, 2, 0, 1]
    assert reward_to_go(0.5)(table).tolist() == [0.25, 0.5, 1.0, 0.5, 1.0]


def test_overlong_punishment_is_linear_in_the_buffer_and_ends_at_minus_one():
    lengths = [4, 6, 8, 10, 30]
    long = turn_table([group(*(episode([0.0], tokens=n) for n in lengths))])
    assert shortened(outcome, limit=10, buffer=4)(long).tolist() == [0.0, 0.0, -0.5, -1.0, -1.0]


# Baselines and scales


def test_rloo_is_the_centred_return_times_g_over_g_minus_one():
    rewards_G = np.array([0.0, 1.0, 0.25, 7.0, -2.0])
    table = table_of([([r],) for r in rewards_G])
    advantages_N = by_levels(Level(returns=outcome, once=True))(table)
    np.testing.assert_allclose(advantages_N, (rewards_G - rewards_G.mean()) * 5 / 4, rtol=1e-14)


def test_leave_one_out_excludes_every_visit_of_the_own_trajectory():
    table = table_of([([1.0, 2.0, 4.0], "aab"), ([10.0], "a")])
    credit = by_levels(Level(returns=reward_to_go(1.0), keys=anchor))
    # The two visits of the first trajectory are compared with 10 alone, not with each other.
    assert credit(table).tolist() == [7.0 - 10.0, 6.0 - 10.0, 0.0, 10.0 - 6.5]


def test_leave_one_out_keeps_small_differences_of_large_returns():
    table = table_of([([1e9 + 1.0],), ([1e9],), ([1e9 + 2.0],)])
    advantages_N = by_levels(Level(returns=outcome))(table)
    np.testing.assert_allclose(advantages_N, [0.0, -1.5, 1.5], atol=1e-6)


def test_once_weighs_long_episodes_like_short_ones():
    table = table_of([([0.0, 0.0, 3.0],), ([1.0],), ([2.0],)])
    per_episode = by_levels(Level(returns=outcome, baseline=mean, once=True))(table)
    per_turn = by_levels(Level(returns=outcome, baseline=mean))(table)
    np.testing.assert_allclose(per_episode, [1.0, 1.0, 1.0, -1.0, 0.0], atol=1e-15)
    np.testing.assert_allclose(per_turn, np.array([3, 3, 3, 1, 2]) - 12 / 5)


def test_std_states_its_ddof_eps_and_floor():
    rewards_G = np.array([0.0, 1.0, 1.0, 4.0])
    table = table_of([([r],) for r in rewards_G])
    g = group_by(table, trajectory(table), once=True)
    for ddof in (0, 1):
        got = std(ddof, 1e-6)(rewards_G, g)
        np.testing.assert_allclose(got, rewards_G.std(ddof=ddof) + 1e-6, rtol=1e-12)
    assert std(1, 0.0, floor=10.0)(rewards_G, g).tolist() == [10.0] * 4
    np.testing.assert_allclose(batch_std(1e-6)(rewards_G, g), rewards_G.std() + 1e-6)


@pytest.mark.parametrize(("rewards", "middle"), [((3, 1, 2), 2.0), ((4, 1, 2, 9), 3.0)])
def test_median_of_odd_and_even_groups(rewards, middle):
    table = table_of([([float(r)],) for r in rewards], [([100.0],)])
    g = group_by(table, trajectory(table))
    expected = [middle] * len(rewards) + [100.0]
    assert median(table.reward_N, g).tolist() == expected


def test_binary_rewards_in_an_odd_group_do_not_explode_under_mad():
    """MC-GRPO as published divides by its 1e-3 here and gives +-1000."""
    table = table_of([([r],) for r in (0.0, 0.0, 0.0, 1.0, 1.0)])
    credit = by_levels(Level(returns=outcome, baseline=median, scale=mad(), once=True))
    assert np.abs(credit(table)).max() < 2.0
    wide = table_of([([r],) for r in (0.0, 1.0, 2.0, 3.0, 10.0)])
    np.testing.assert_allclose(credit(wide), (np.array([0, 1, 2, 3, 10]) - 2) / 1.001)


# Levels together


def test_summed_counts_absent_levels_as_zero_and_renormalised_leaves_them_out():
    table = table_of([([1.0], "a"), ([3.0], "a"), ([5.0], "b")])
    levels = Level(returns=outcome), Level(returns=outcome, keys=anchor, weight=3.0)
    renorm, total = by_levels(*levels)(table), by_levels(*levels, combine=summed)(table)
    task, state = np.array([-3.0, 0.0, 3.0]), np.array([-2.0, 2.0, 0.0])
    np.testing.assert_allclose(total, task + 3 * state)
    np.testing.assert_allclose(renorm, [(-3 - 6) / 4, 6 / 4, 3.0])


def test_a_true_zero_is_evidence_and_hgpo_as_released_throws_it_away():
    table = table_of([([1.0], "a"), ([3.0], "a"), ([5.0], "b")])
    levels = Level(returns=outcome), Level(returns=outcome, keys=anchor)
    assert by_levels(*levels)(table)[1] == 1.0  # (0 + 2) / 2
    assert by_levels(*levels, combine=nonzero)(table)[1] == 2.0  # the 0 is dropped


@settings(max_examples=60, deadline=None)
@given(tables())
def test_turn_rloo_is_what_its_definition_says(table):
    np.testing.assert_allclose(CREDITS["turn_rloo"](table), slow_credit(table), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(table, random):
    rows = np.array(random.sample(range(len(table)), len(table)))
    for name, credit in CREDITS.items():
        np.testing.assert_allclose(
            credit(table.take(rows)), credit(table)[rows], atol=1e-9, err_msg=name
        )


@settings(max_examples=40, deadline=None)
@given(tables())
def test_another_task_in_the_batch_changes_nothing(table):
    """Groups of unequal size stand side by side; no method but REINFORCE++ looks across them."""
    first = table.take(table.group_N == 0)
    for name in set(CREDITS) - {"reinforce_pp"}:
        np.testing.assert_allclose(
            CREDITS[name](table)[: len(first)], CREDITS[name](first), atol=1e-12, err_msg=name
        )


@settings(max_examples=40, deadline=None)
@given(tables())
def test_means_and_scales_do_not_change_when_every_attempt_is_there_twice(table):
    twin = TurnTable(
        **{k: np.concatenate([v, v]) for k, v in vars(table).items() if k != "traj_N"},
        traj_N=np.concatenate([table.traj_N, table.traj_N + table.traj_N.max() + 1]),
    )
    level = Level(returns=reward_to_go(0.9), keys=turn, baseline=mean, scale=std(0, 1e-6))
    alone = np.bincount(turn(table), minlength=turn(table).max() + 1)[turn(table)] < 2
    got, want = by_levels(level)(twin)[: len(table)], by_levels(level)(table)
    np.testing.assert_allclose(got[~alone], want[~alone], atol=1e-9)


@pytest.mark.parametrize("name", CREDITS)
def test_a_group_of_one_gives_zero_and_never_its_raw_reward(name):
    table = table_of([([0.5, 1.0, 7.0], "aba")])
    assert CREDITS[name](table).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", sorted(set(CREDITS) - {"reinforce_pp"}))
def test_a_group_of_one_gives_zero_beside_other_groups(name):
    table = table_of([([5.0],)], [([1.0],), ([0.0],)])
    assert CREDITS[name](table)[0] == 0.0
    assert CREDITS[name](table)[1] > 0.0


@pytest.mark.parametrize("name", sorted(set(CREDITS) - {"reinforce_pp"}))
def test_attempts_that_tie_teach_nothing(name):
    table = table_of([([1 / 3, 0.1], "ab")] * 5)
    assert np.abs(CREDITS[name](table)).max() < 1e-9


def test_a_group_of_one_does_not_become_nan_where_nothing_protects_the_division():
    table = table_of([([5.0],)], [([1.0],), ([0.0],)])
    bare = Level(returns=outcome, scale=std(1, eps=0.0))
    assert by_levels(bare)(table)[0] == 0.0


def test_whitening_weighs_by_token_and_has_unit_variance():
    episodes = [episode([1.0], tokens=1), episode([0.0], tokens=5), episode([3.0], tokens=2)]
    table = turn_table([group(*episodes)])
    advantages_N = whitened(by_levels(Level(returns=outcome, keys=batch)))(table)
    w = table.tokens_N / table.tokens_N.sum()
    assert abs(w @ advantages_N) < 1e-12
    assert abs(w @ advantages_N**2 - 1) < 1e-6


def test_the_reduction_is_not_quadratic():
    """80 000 turns in 10 000 groups; a pairwise loop would take minutes."""
    rng = np.random.default_rng(0)
    traj_N = np.repeat(np.arange(20_000), 4)
    table = TurnTable(
        traj_N=traj_N,
        turn_N=np.tile(np.arange(4), 20_000),
        group_N=traj_N // 2,
        reward_N=rng.random(80_000),
        anchor_N=traj_N // 2 * 3 + rng.integers(0, 3, 80_000),
        history_NK=np.full((80_000, 2), -1),
        tokens_N=np.ones(80_000, np.int64),
    )
    assert np.isfinite(CREDITS["turn_rloo"](table)).all()


def test_leave_one_out_of_a_lone_member_is_finite():
    table = table_of([([2.0],)])
    assert leave_one_out(table.reward_N, group_by(table, trajectory(table))).tolist() == [2.0]
