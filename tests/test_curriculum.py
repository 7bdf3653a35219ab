"""Laws of schedules: depths grow as told and never go back, and what cannot be is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.agents.rollout import Job, jobs_for
from turnwise.envs.types import Task
from turnwise.trainers.curriculum import (
    Depth,
    b2f,
    climbed,
    constant_cut,
    drift_below,
    f2b,
    full_depth,
    steadily,
    success_above,
)
from turnwise.trainers.mixes import Progress
from turnwise.trainers.recipes import recipe

TASK = Task()


def at(step, **seen) -> Progress:
    return Progress(step, 100, **seen)


# ------------------------------------------------------------ schedules


def test_forward_to_backward_grows_by_a_turn_each_c_steps_up_to_its_most():
    rule = f2b(steadily(6), most=5)
    assert [rule(at(n), TASK).turns for n in (0, 5, 6, 11, 12, 24, 999)] == [1, 1, 2, 2, 3, 5, 5]
    assert [f2b(steadily(1), start=3)(at(n), TASK).turns for n in range(4)] == [3, 4, 5, 6]
    assert rule(at(0), TASK).start(9) == 0


def test_backward_to_forward_starts_at_the_last_turn_and_ends_at_the_first():
    rule = b2f(steadily(5), slack=2)
    depths = [rule(at(n), TASK) for n in (0, 4, 5, 10, 15, 999)]
    assert [d.start(4) for d in depths] == [3, 3, 2, 1, 0, 0]
    assert [d.limit(4) for d in depths] == [1 + 2, 3, 4, 5, 6, 6]
    published = b2f(steadily(5), slack=None)(at(0), TASK)
    assert (published.start(4), published.limit(4)) == (3, None)


def test_the_controls_do_not_move():
    for n in (0, 50, 99):
        assert full_depth(at(n), TASK) == Depth() and Depth().limit(9) is None
        assert constant_cut(4)(at(n), TASK) == Depth(turns=4)


def test_a_gate_opens_by_the_mean_of_a_window_that_each_stage_starts_anew():
    near, far = 0.1, 3.0
    seen = (far, near, near, near, near, near, far, near, near)
    depth = f2b(drift_below(0.5, window=2))
    turns = [depth(at(n, deepest=seen[:n]), TASK).turns for n in range(len(seen) + 1)]
    assert turns == [1, 1, 1, 2, 2, 3, 3, 3, 3, 4]
    won = b2f(success_above(0.5, window=1), slack=0)
    starts = [won(at(n, success=(0.9, 0.2, 0.6)[:n]), TASK).start(5) for n in range(4)]
    assert starts == [4, 3, 3, 2]
    assert success_above(0.5, window=1)(at(1, success=(0.5,))) == 1  # at least, so that 1 can be


def test_what_was_not_measured_opens_no_gate():
    assert climbed([math.nan, 0.1, 0.1], lambda mean: mean < 1, 2) == 1
    assert climbed([math.nan] * 9, lambda mean: mean < 1, 2) == 0


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(1e-3, 1), st.integers(1, 4))
@settings(deadline=None)
def test_no_schedule_ever_goes_back(seen, bound, window):
    gates = (drift_below(bound, window), success_above(bound, window), steadily(window))
    for pace in gates:
        told = [at(n, deepest=tuple(seen[:n]), success=tuple(seen[:n])) for n in range(len(seen))]
        turns = [f2b(pace, most=7)(progress, TASK).turns for progress in told]
        starts = [b2f(pace)(progress, TASK).start(9) for progress in told]
        assert turns == sorted(turns) and starts == sorted(starts, reverse=True)
        assert all(b - a <= 1 for a, b in pairwise(turns))


@pytest.mark.parametrize(
    "bad",
    [
        lambda: steadily(0),
        lambda: constant_cut(0),
        lambda: f2b(steadily(1), start=0),
        lambda: f2b(steadily(1), most=2, start=3),
        lambda: b2f(steadily(1), slack=-1),
        lambda: drift_below(1.0, window=0),
        lambda: success_above(1.0, window=0),
        lambda: replace(jobs_for([TASK], run_seed=0, split="train")[0], max_turns=0),
        lambda: Job(TASK, "0", 0, 0, 0, prelude=("a", "b"), prelude_answers=("x",)),
    ],
)
def test_an_impossible_depth_is_refused_by_its_number(bad):
    with pytest.raises(ValueError, match=r"at least|as many"):
        bad()


@pytest.mark.parametrize("name", ["tcod_f2b", "tcod_b2f"])
def test_two_gates_are_refused(name):
    with pytest.raises(ValueError, match=r"drift=0.5 or success=0.2, and not both"):
        recipe(name, drift=0.5, success=0.2)
