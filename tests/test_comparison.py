"""Laws of the numbers of a comparison: pairs, intervals, areas, rates, thirds and turns."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.agents.policy import ScriptedPolicy, expert
from turnwise.agents.rollout import jobs_for, play
from turnwise.envs.builtin.corridor import Corridor
from turnwise.trainers.comparison import area, best_rate, paired, thirds, verdict
from turnwise.trainers.watch import env_steps, shares_of_kinds

RELAXED = settings(deadline=None, max_examples=40)
scores = st.dictionaries(st.integers(0, 20), st.floats(0, 1), min_size=3, max_size=8)


# Numbers


@RELAXED
@given(scores, st.floats(-0.5, 0.5))
def test_a_constant_gap_is_found_exactly_and_has_no_width(rival, gap):
    found = paired({seed: score + gap for seed, score in rival.items()}, rival)
    assert found.value == pytest.approx(gap) and found.n == len(rival)
    assert found.high - found.low == pytest.approx(0, abs=1e-6)


@RELAXED
@given(scores, scores)
def test_a_difference_is_that_of_the_common_seeds_and_turns_its_sign_with_its_sides(one, other):
    there, back = paired(one, other), paired(other, one)
    assert there.n == len(one.keys() & other.keys())
    if there.n > 1:
        assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_pairing_takes_the_seeds_own_difficulty_out():
    seeds = {seed: seed / 10 for seed in range(8)}
    better = {seed: score + 0.05 + 0.01 * (seed % 2) for seed, score in seeds.items()}
    assert verdict(paired(better, seeds)) == "above"
    unpaired = dict(zip(better, reversed(better.values()), strict=True))
    assert verdict(paired(unpaired, seeds)) == "level"


def test_the_interval_is_students():
    found = paired({1: 0.1, 2: 0.2, 3: 0.6}, {1: 0.0, 2: 0.0, 3: 0.0})
    assert found.high - found.value == pytest.approx(4.302653 * 0.2645751 / math.sqrt(3), rel=1e-5)


@RELAXED
@given(st.floats(0, 1), st.lists(st.floats(0, 500), max_size=5))
def test_the_area_under_a_level_curve_is_its_height(height, at):
    assert area([(x, height) for x in sorted(at)] or [(0, height)], 400) == pytest.approx(height)


def test_an_area_counts_what_is_reached_early_more():
    early, late = [(0, 0), (100, 1), (400, 1)], [(0, 0), (300, 0), (400, 1)]
    assert area(early, 400) == pytest.approx(0.875) and area(late, 400) == pytest.approx(0.125)
    assert area([(0, 0), (800, 1)], 400) == area([(0, 0), (400, 1)], 400)


def test_a_rate_is_chosen_by_its_mean_and_a_tie_goes_to_the_lower_one():
    assert best_rate({1e-3: [0.2, 0.9], 3e-3: [0.5, 0.5]}) == 1e-3
    assert best_rate({3e-3: [0.5], 1e-3: [0.5]}) == 1e-3
    with pytest.raises(ValueError, match="needs a score"):
        best_rate({1e-3: []})


def test_thirds_are_the_means_of_the_steps_that_have_the_metric():
    rows = [{"a": 1.0}, {"a": 3.0, "b": 5.0}, {}, {}, {"b": 1.0}, {"a": 9.0}]
    found = thirds(rows, lambda name: True)
    assert found == {"first": {"a": 2.0, "b": 5.0}, "last": {"b": 1.0, "a": 9.0}}


def test_env_steps_are_the_turns_of_all_episodes():
    env = Corridor()

    jobs = jobs_for(env.tasks("dev")[:3], run_seed=0, split="dev")
    episodes = list(play(jobs, Corridor, ScriptedPolicy(expert)))
    assert env_steps(episodes) == 3 * 8
    assert shares_of_kinds(episodes[0].turns) == {"turns_on": 1.0}
