"""Laws of Sokoban: levels take what they say, the rules hold, and a lost level can be restarted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.envs.builtin.sokoban import Puzzle, Sokoban, task_level
from turnwise.envs.builtin.sokoban_world import MOVES, Level, beside, opposite, solve, step, walks

HARDEST = {"size": 7, "boxes": 3, "pushes": (4, 9)}


def play(env, move):
    return env.step(env.call_text("move", direction=move))


def to_the_end(env):
    """Let the expert play on; return the last info."""
    done, info = False, {}
    while not done:
        _, _, terminated, truncated, info = env.step(env.expert())
        done = terminated or truncated
    return info


@pytest.mark.parametrize("split", Sokoban.splits)
@pytest.mark.parametrize("knobs, count", [({}, 200), ({"boxes": 2, "size": 7}, 60), (HARDEST, 20)])
def test_the_expert_solves_every_level(split, knobs, count):
    env = Sokoban(**knobs)
    for task in env.tasks(split)[:count]:
        env.reset(seed=0, options={"task": task})
        info = to_the_end(env)
        assert info["success"] and info["rewards"] == {"solved": 1.0}, task
        assert len(env.episode.actions) == (env.max_turns - env.slack) // 2


def pushes_of(level, moves):
    player, boxes, count = level.player, level.boxes, 0
    for move in moves:
        player, after = step(level, player, boxes, move)
        count, boxes = count + (after != boxes), after
    return count


@given(st.integers(0, 500), st.integers(1, 3), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_the_best_solution_of_a_level_takes_just_the_pushes_that_were_asked_for(i, boxes, pushes):
    level = task_level(Puzzle(index=i, size=7, boxes=boxes, pushes=pushes))
    moves = solve(level, level.player, level.boxes)
    assert moves is not None and pushes_of(level, moves) == pushes == level.pushes


def fewest_pushes(level):
    """Search over single steps, without the solver's short cuts."""
    frontier, seen = {(level.player, level.boxes)}, set()
    for pushes in range(8):
        open_, pushed = list(frontier), set()
        while open_:
            state = open_.pop()
            if state in seen:
                continue
            seen.add(state)
            if state[1] == level.goals:
                return pushes
            for move in MOVES:
                if (after := step(level, *state, move)) is not None:
                    (open_.append if after[1] == state[1] else pushed.add)(after)
        frontier = pushed
    return None


@given(st.integers(0, 200), st.integers(1, 2), st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_the_solver_agrees_with_a_plain_search_over_single_steps(index, boxes, pushes):
    level = task_level(Puzzle(index=index, size=5, boxes=boxes, pushes=pushes))
    assert fewest_pushes(level) == level.pushes


@given(st.integers(0, 300), st.lists(st.sampled_from(sorted(MOVES)), max_size=30))
@settings(deadline=None)
def test_no_move_makes_or_loses_a_box_or_enters_a_wall(index, moves):
    level = task_level(Puzzle(index=index, size=7, boxes=2, pushes=3))
    player, boxes = level.player, level.boxes
    for move in moves:
        after = step(level, player, boxes, move)
        if after is None:
            to = beside(player, MOVES[move])
            beyond = beside(to, MOVES[move])
            held = to in boxes and (beyond in boxes or beyond not in level.floor)
            assert to not in level.floor or held
            continue
        assert after[0] == beside(player, MOVES[move])
        assert len(after[1]) == 2 and after[1] <= level.floor and after[0] not in after[1]
        assert len(boxes - after[1]) <= 1
        player, boxes = after


def test_walks_lead_where_they_say_and_push_nothing():
    level = task_level(Puzzle(index=3, size=8, boxes=3, pushes=4))
    for cell, moves in walks(level.floor, level.boxes, level.player).items():
        player = level.player
        for move in moves:
            player, boxes = step(level, player, level.boxes, move)
            assert boxes == level.boxes
        assert player == cell


def cornered():
    """A level whose only box can be pushed into a corner: # @ $ . / goal below the box."""
    floor = frozenset((r, c) for r in (1, 2, 3) for c in (1, 2, 3))
    return Level(5, floor, frozenset({(3, 2)}), (1, 1), frozenset({(1, 2)}), 2)


def test_a_box_in_a_corner_has_no_solution_and_restart_mends_it():
    env = Sokoban(size=5)
    env.reset(seed=0, options={"task": env.tasks("train")[0]})
    env.level = cornered()
    env.player, env.placed, env.max_turns = env.level.player, env.level.boxes, 40
    start = env.state_hash()
    play(env, "right")
    assert solve(env.level, env.player, env.placed) is None
    assert env.expert() == "restart"
    env.step(env.expert())
    assert env.state_hash() == start
    env.player = (2, 1)
    assert solve(env.level, env.player, env.placed) is None, "no cell lies above the box"


def test_a_blocked_step_changes_nothing_and_is_answered():
    env = Sokoban()
    env.reset(seed=1)
    for move, way in MOVES.items():
        if beside(env.player, way) not in env.level.floor:
            before = env.state_hash()
            observation, *_ = play(env, move)
            assert observation == "ToolError[tool_raised] blocked" and env.state_hash() == before
            return
    raise AssertionError("choose a seed whose player stands beside a wall")


def test_the_picture_shows_the_state_and_nothing_else_does():
    env = Sokoban(boxes=2, size=7)
    opening, _ = env.reset(seed=5)
    marks = opening.split()
    assert len(marks) == 49
    assert sum(mark in "@+" for mark in marks) == 1
    assert sum(mark in "$*" for mark in marks) == 2 == sum(mark in "_*+" for mark in marks)
    assert opposite(opposite((0, 1))) == (0, 1)


@pytest.mark.parametrize(
    "knobs", [{"size": 4}, {"boxes": 4}, {"pushes": 0}, {"pushes": (3, 2)}, {"pushes": 13}]
)
def test_a_knob_out_of_range_is_refused_by_name(knobs):
    with pytest.raises(ValueError, match=f"{next(iter(knobs))} must lie in"):
        Sokoban(**knobs)
