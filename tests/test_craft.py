"""Laws of Craft: an order follows from its task, can be filled, and pays each needed craft once."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise.envs.builtin.craft import MAX_DEPTH, Craft, Order, task_world
from turnwise.envs.builtin.craft_world import MADE, RAW


def solve(env):
    """Let the expert play on; return (turns, reward, last info)."""
    total, turns, done, info = 0.0, 0, False, {}
    while not done:
        _, reward, terminated, truncated, info = env.step(env.expert())
        total, turns, done = total + reward, turns + 1, terminated or truncated
    return turns, total, info


def begin(task, **kwargs):
    env = Craft(**kwargs)
    env.reset(seed=0, options={"task": task})
    return env


@pytest.mark.parametrize("split", Craft.splits)
@pytest.mark.parametrize("knobs", [{}, {"depth": (1, MAX_DEPTH), "inputs": 3, "amount": 2}])
def test_the_expert_fills_every_order_and_earns_exactly_one(split, knobs):
    env = Craft(**knobs)
    for task in env.tasks(split)[:200]:
        env.reset(seed=0, options={"task": task})
        turns, total, info = solve(env)
        assert info["success"] and math.isclose(total, 1.0), task
        assert turns == env.max_turns - env.slack, "the expert's turns are foretold"
        assert info["metrics"]["wasted"] == 0


@given(st.integers(0, 10_000), st.lists(st.integers(0, 10_000), max_size=8))
def test_the_expert_still_succeeds_after_any_wandering(index, draws):
    env = begin(Craft(depth=(1, 3), amount=2).tasks("dev")[index % 10_000], slack=40)
    tools, things = ("recipe", "gather", "craft"), [*env.world.recipes, *env.world.raw]
    total = 0.0
    for draw in draws:
        call = env.call_text(tools[draw % 3], thing=things[draw // 3 % len(things)])
        _, reward, ended, cut, _ = env.step(call)
        total += reward
        if ended or cut:
            return
    _, rest, info = solve(env)
    assert info["success"] and math.isclose(total + rest, 1.0)


def test_a_world_has_a_recipe_or_a_source_for_everything():
    for task in Craft(depth=(1, MAX_DEPTH), inputs=4, distractors=20).tasks("test")[:100]:
        world = task_world(task)
        for thing, recipe in world.recipes.items():
            assert thing in MADE and recipe
            assert all(part in world.recipes or part in world.raw for part in recipe)
        assert set(world.raw) <= set(RAW) and world.target in world.recipes


@given(st.integers(1, MAX_DEPTH), st.integers(0, 999))
def test_depth_is_the_longest_chain_of_recipes(depth, index):
    world = task_world(Order(depth=depth, index=index, inputs=3))

    def height(thing):
        parts = world.recipes.get(thing)
        return 0 if parts is None else 1 + max(map(height, parts))

    assert height(world.target) == depth


def test_crafting_takes_its_ingredients_and_nothing_without_them():
    env = begin(Craft(depth=1).tasks("train")[0])
    thing = env.world.target
    observation, reward, *_ = env.step(env.call_text("craft", thing=thing))
    assert observation.startswith("ToolError[tool_raised] missing") and reward == 0
    assert not env.held and not env.crafted
    for part, n in env.world.recipes[thing].items():
        for _ in range(n):
            env.step(env.call_text("gather", thing=part))
    env.step(env.call_text("craft", thing=thing))
    assert env.held == Counter({thing: 1})


def test_a_craft_that_is_repeated_pays_once():
    env = begin(next(t for t in Craft(depth=2).tasks("train") if t.depth == 2), slack=500)
    middle = next(thing for thing in env.world.needed if thing != env.world.target)
    rewards = []
    for _ in range(env.world.needed[middle] + 3):
        for part, n in env.world.recipes[middle].items():
            rewards += [env.step(env.call_text("gather", thing=part))[1] for _ in range(n)]
        rewards.append(env.step(env.call_text("craft", thing=middle))[1])
    assert math.isclose(sum(rewards), 0.5 * env.world.needed[middle] / env.world.crafts)


def test_told_recipes_need_not_be_looked_up():
    env = begin(Craft(told=True, depth=3).tasks("train")[0], told=True, depth=3)
    turns, total, _ = solve(env)
    assert total == pytest.approx(1.0)
    assert not any(action.startswith("recipe") for action in env.episode.actions)
    assert turns == len(env.episode.actions)


def test_equal_states_have_equal_hashes_whatever_led_there():
    task = Craft(depth=1, inputs=2).tasks("train")[0]
    one, other = begin(task), begin(task)
    first, second = one.world.raw[:2]
    for thing in (first, second):
        one.step(one.call_text("gather", thing=thing))
    for thing in (second, first):
        other.step(other.call_text("gather", thing=thing))
    assert one.state_hash() == other.state_hash()
    one.step(one.call_text("gather", thing=first))
    assert one.state_hash() != other.state_hash()


@pytest.mark.parametrize(
    "knobs", [{"depth": 0}, {"depth": (3, 2)}, {"inputs": 5}, {"amount": 0}, {"distractors": 21}]
)
def test_a_knob_out_of_range_is_refused_by_name(knobs):
    with pytest.raises(ValueError, match=f"{next(iter(knobs))} must lie in"):
        Craft(**knobs)
