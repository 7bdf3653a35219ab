"""Laws of `from_gymnasium`: worlds of numbers read well as text, and pay what they should."""

from __future__ import annotations

import json
import math
import random

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from turnwise.agents.policy import ScriptedPolicy, random_tool
from turnwise.agents.record import RecordWriter, read_records
from turnwise.agents.replay import execute
from turnwise.agents.rollout import jobs_for, play
from turnwise.envs import UnknownEnv, from_gymnasium, make
from turnwise.envs.adapters.gymnasium import Ending, FromGymnasium, describe
from turnwise.envs.adapters.gymnasium_actions import Unreadable, action_text
from turnwise.envs.adapters.planning import shortest_plan, without_chance
from turnwise.envs.check import check_env
from turnwise.envs.probes import LAWS, name_of

TOYS = {
    "FrozenLake-v1": {},
    "Taxi-v4": {"max_turns": 30},
    "CliffWalking-v1": {"max_turns": 30},
    "Blackjack-v1": {},
}
SURE = [("FrozenLake-v1", {"is_slippery": False}), ("Taxi-v4", {}), ("CliffWalking-v1", {})]
POLE = {"reward_range": (0, 500), "actions": ["left", "right"]}


def in_words(observation, gym) -> str:
    """For the tests: a renderer that a record can name."""
    return "the pole leans " + ("left" if observation[2] < 0 else "right")


def patient(ending: Ending) -> bool:
    """For the tests: a success rule that a record can name."""
    return ending.total >= 5


class Walk(gymnasium.Env):
    """Three steps along a line with actions of any space; the way is paid step by step."""

    observation_space = spaces.Box(-9, 9, (2,), np.float32)

    def __init__(self, space=None, pays=(1.0, -2.0, 3.0), terminates=True):
        self.action_space = space or spaces.Discrete(2)
        self.pays, self.terminates, self.taken = pays, terminates, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.taken = []
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.taken.append(action)
        over = len(self.taken) == len(self.pays)
        pay = self.pays[len(self.taken) - 1]
        return (
            np.ones(2, np.float32),
            pay,
            over and self.terminates,
            over and not self.terminates,
            {},
        )


@pytest.fixture(autouse=True)
def walks():
    kept = dict(gymnasium.registry)
    gymnasium.register("Walk-v0", Walk)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(kept)


def episode(env, choose, seed=0):
    """Return (rewards, last info) of an episode."""
    env.reset(seed=seed)
    rewards, ended, info = [], False, {}
    while not ended:
        _, reward, terminated, truncated, info = env.step(choose(env))
        rewards.append(reward)
        ended = terminated or truncated
    return rewards, info


@pytest.mark.parametrize("id", TOYS)
def test_a_toy_world_keeps_the_contract(id):
    laws = [name for law in LAWS if (name := name_of(law)) != "nothing is left behind"]
    laws = laws if TOYS[id] else ()  # that one takes seconds where episodes are long
    report = check_env(f"gymnasium/{id}", laws=laws, seeds=range(4), concurrency=3, **TOYS[id])
    assert report.ok, str(report)


@pytest.mark.parametrize(
    "wrapper",
    [
        ["TimeLimit", {"turns": 9}],
        ["ActionSlips", {"p": 0.2}],
        ["ObservationBudget", {"chars": 60}],
    ],
)
def test_a_wrapped_toy_world_keeps_the_contract(wrapper):
    quick = ("nothing is left behind", "same in another process", "expert is accepted")
    laws = [name for law in LAWS if (name := name_of(law)) not in quick]
    report = check_env(
        "gymnasium/Taxi-v4", laws=laws, seeds=range(3), concurrency=3, wrappers=[wrapper]
    )
    assert report.ok, str(report)


def test_an_environment_with_numbers_alone_keeps_the_contract():
    report = check_env("gymnasium/CartPole-v1", seeds=range(3), concurrency=3, **POLE)
    assert report.ok, str(report)


CLASSIC = {
    **{"CartPole-v1": 500, "MountainCar-v0": 200, "MountainCarContinuous-v0": 999},
    **{"Acrobot-v1": 500, "Pendulum-v1": 200},
}


@pytest.mark.parametrize("id", CLASSIC)
def test_classic_control_needs_no_argument_and_keeps_the_contract(id):
    env = make(f"gymnasium/{id}")
    assert env.max_turns == CLASSIC[id] and env.low < env.high and env.known.rules(env.gym)
    quick = ("gymnasium accepts", "info is complete", "rewards stay in range")
    laws = (*quick, "seeds are honoured", "no reward without trying")
    report = check_env(f"gymnasium/{id}", laws=laws, seeds=range(2), concurrency=2, law_s=0.5)
    assert report.ok, str(report)


@pytest.mark.parametrize("id", CLASSIC)
def test_what_classic_control_earns_lies_within_what_is_known_of_it(id):
    env = make(f"gymnasium/{id}")
    rng = random.Random(0)
    _, info = episode(env, lambda env: env.random_action(rng))
    assert env.low <= info["metrics"]["return"] <= env.high and not info["success"]


def test_a_balanced_pole_is_a_success():
    def balance(env):
        return "right" if env.seen[2] + env.seen[3] > 0 else "left"

    rewards, info = episode(make("gymnasium/CartPole-v1"), balance)
    assert info["success"] and sum(rewards) == pytest.approx(1) and len(rewards) == 500


def test_a_pendulum_that_is_swung_up_is_a_success_and_one_that_hangs_is_none():
    def swing(env):
        cosine, sine, speed = map(float, env.seen)
        angle = math.atan2(sine, cosine)
        lift = 15 * (1 - cosine) - speed**2 / 2  # energy that is missing
        push = -10 * angle - 2 * speed if cosine > 0.8 else math.copysign(2, speed * lift)
        return str(min(max(push, -2.0), 2.0))

    pendulum = make("gymnasium/Pendulum-v1")
    ends = [episode(pendulum, swing, seed)[1] for seed in range(10)]
    assert all(info["success"] for info in ends), [info["metrics"] for info in ends]


@pytest.mark.parametrize(("id", "arguments"), SURE)
def test_the_expert_of_a_world_without_chance_succeeds_on_200_tasks_of_every_split(id, arguments):
    env = from_gymnasium(id, **arguments)
    for split in env.splits:
        for task in env.tasks(split)[:200]:
            env.reset(seed=0, options={"task": task})
            ended = False
            while not ended:
                _, _, terminated, truncated, info = env.step(env.expert())
                ended = terminated or truncated
            assert info["success"], task


def test_the_expert_finds_back_from_wherever_the_agent_went():
    env = from_gymnasium("Taxi-v4", max_turns=60)
    for seed in range(30):
        rng = random.Random(seed)
        env.reset(seed=seed)
        for _ in range(20):
            *_, ended, _, info = env.step(env.random_action(rng))
            if ended:
                break
        while not ended:
            *_, ended, truncated, info = env.step(env.expert())
            assert not truncated
        assert info["success"]


def test_where_chance_rules_no_expert_is_offered():
    assert not hasattr(from_gymnasium("FrozenLake-v1"), "expert")
    assert not hasattr(from_gymnasium("Blackjack-v1"), "expert")
    assert not hasattr(from_gymnasium("CartPole-v1", **POLE), "expert")


def test_a_plan_is_the_shortest_way_to_success_and_chance_is_seen():
    table = {
        0: {0: [(1.0, 1, 0, False)], 1: [(1.0, 3, 0, True)]},
        1: {0: [(1.0, 0, 0, False)], 1: [(0.5, 2, 0, False), (0.5, 2, 0, False)]},
        2: {0: [(1.0, 2, 0, False)], 1: [(1.0, 3, 1, True)]},
        3: {0: [(1.0, 3, 0, True)], 1: [(1.0, 3, 0, True)]},
    }
    assert shortest_plan(table, lambda reward: reward > 0) == {2: 1, 1: 1, 0: 0}
    assert without_chance(table)
    table[1][1] = [(0.5, 2, 0, False), (0.5, 0, 0, False)]
    assert not without_chance(table)


@pytest.mark.parametrize(
    ("id", "says"),
    [
        (
            "FrozenLake-v1",
            "A F F F\nF H F H\nF F F H\nH F F G\nyou are at row 0, column 0: the start",
        ),
        ("CliffWalking-v1", "row 3, column 0"),
        ("Blackjack-v1", "your cards make "),
        ("Taxi-v4", "taxi at row "),
    ],
)
def test_a_toy_world_is_described_in_words_and_its_rules_name_the_actions(id, says):
    observation, info = from_gymnasium(id).reset(seed=0)
    system, user = (message["content"] for message in info["messages"])
    assert observation == user and observation.startswith(says)
    names = from_gymnasium(id).says.names
    assert system.endswith(f"Answer with one of: {', '.join(names)}.")


def test_a_taxi_tells_where_everybody_is():
    env = from_gymnasium("Taxi-v4")
    env.reset(seed=0)
    state = env.gym.unwrapped.encode(2, 3, 4, 1)
    assert env.show(state, env.gym) == (
        "taxi at row 2, column 3; passenger in the taxi; destination G (row 0, column 4)"
    )


def test_an_action_is_a_name_or_a_number_and_anything_else_is_answered_without_a_step():
    for word in ("right", " RIGHT\n", "2"):
        env = from_gymnasium("FrozenLake-v1", is_slippery=False)
        env.reset(seed=0)
        assert "row 0, column 1" in env.step(word)[0]
    observation, reward, _, _, info = env.step("rihgt")
    assert observation.startswith("ToolError[bad_command] no action 'rihgt'; write one of: left")
    assert reward == 0 and info["error"] == "bad_command" and len(env.steps) == 1


def test_three_unreadable_actions_in_a_row_end_the_episode_as_the_agents_mistake():
    env = from_gymnasium("FrozenLake-v1")
    env.reset(seed=0)
    for action in ("", "x", "left", "", "x", "x"):
        *_, truncated, info = env.step(action)
    assert truncated and info["outcome"] == "agent_error" and info["success"] is False


def test_rewards_add_up_to_the_return_within_the_declared_range():
    for range_, wanted in [((-2, 4), 4 / 6), ((0, 2), 1.0), ((3, 5), 0.0), ((-3, 1), 1.0)]:
        rewards, info = episode(from_gymnasium("Walk-v0", reward_range=range_), lambda env: "0")
        assert math.isclose(sum(rewards), wanted, abs_tol=1e-9)
        assert info["metrics"]["return"] == 2.0
        assert rewards[0] == 1 / (range_[1] - range_[0])


def test_who_does_not_play_on_earns_nothing_for_what_was_not_lost():
    quiet = {"pays": (-1.0,) * 10, "reward_range": (-10, 0), "max_turns": 4}
    assert sum(episode(from_gymnasium("Walk-v0", **quiet), lambda env: "0")[0]) == 0
    assert sum(episode(from_gymnasium("Walk-v0", **quiet), lambda env: "what")[0]) == 0
    kept = {"pays": (1.0,) * 10, "reward_range": (0, 10), "max_turns": 4}
    assert sum(episode(from_gymnasium("Walk-v0", **kept), lambda env: "0")[0]) == pytest.approx(0.4)
    wandering = from_gymnasium("CliffWalking-v1", max_turns=20)
    assert sum(episode(wandering, lambda env: "up")[0]) == pytest.approx(0)


def test_an_end_by_the_worlds_own_limit_stays_truncated_and_can_be_a_success():
    options = {"pays": (1.0,) * 6, "terminates": False, "reward_range": (0, 6)}
    rewards, info = episode(from_gymnasium("Walk-v0", success=patient, **options), lambda env: "1")
    assert sum(rewards) == pytest.approx(1) and info["success"] and info["outcome"] == "ok"
    _, info = episode(from_gymnasium("Walk-v0", **options), lambda env: "1")
    assert not info["success"] and info["outcome"] == "truncated"


def test_success_is_the_threshold_where_there_is_one_and_else_a_happy_end():
    with_threshold = gymnasium.spec("Walk-v0")
    with_threshold.reward_threshold = 2.0
    assert episode(from_gymnasium("Walk-v0", reward_range=(-2, 4)), lambda env: "0")[1]["success"]
    with_threshold.reward_threshold = 2.5
    env = from_gymnasium("Walk-v0", reward_range=(-2, 4))
    assert not episode(env, lambda env: "0")[1]["success"]
    with_threshold.reward_threshold = None
    env = from_gymnasium("Walk-v0", reward_range=(-2, 4))
    assert episode(env, lambda env: "0")[1]["success"]
    env = from_gymnasium("Walk-v0", reward_range=(-2, 4), pays=(3.0, -1.0))
    assert not episode(env, lambda env: "0")[1]["success"]


def test_a_reward_that_is_no_number_spoils_the_episode_and_is_no_zero():
    env = from_gymnasium("Walk-v0", reward_range=(0, 1), pays=(1.0, math.nan, 0.0))
    assert episode(env, lambda env: "0")[1]["outcome"] == "judge_error"


SPACES = {
    "several": (spaces.MultiDiscrete([2, 3, 4]), "1 2, 3", [1, 2, 3], ["1 2", "1 2 4", "1 2 x"]),
    "shifted": (spaces.MultiDiscrete([2, 2], start=[5, -1]), "6 -1", [6, -1], ["0 0", "6 1"]),
    "box": (
        spaces.Box(-1, 1, (2, 1), np.float32),
        "-.5 1e-1",
        [[-0.5], [0.1]],
        ["nan 0", "inf 0", "2 0", "0", "0 0 0", "٣ 0"],
    ),
    "point": (spaces.Box(0, 5, (), np.float64), "2.5", 2.5, ["", "6"]),
    "endless": (
        spaces.Box(-np.inf, np.inf, (1,), np.float32),
        "1e3",
        [1000.0],
        ["1e999", "1e300", "-"],
    ),
    "start": (spaces.Discrete(3, start=7), "9", 9, ["2", "10", "x", "٨"]),
    "text": (spaces.Text(4, charset="ab"), "abba", "abba", ["abc", "ababa", ""]),
}


@pytest.mark.parametrize("name", SPACES)
def test_actions_of_every_space_are_read_drawn_and_asked_for(name):
    space, good, value, wrong = SPACES[name]
    says = action_text(space)
    assert np.allclose(says.read(good), value) if name != "text" else says.read(good) == value
    for text in [*wrong, "", "left " * 9000]:
        with pytest.raises(Unreadable, match="write ") as caught:
            says.read(text)
        assert len(str(caught.value)) < 400
    rng = random.Random(0)
    drawn = {says.draw(rng) for _ in range(30)}
    assert len(drawn) > 1 and all(space.contains(says.read(text)) for text in drawn)
    env = from_gymnasium("Walk-v0", space=space, reward_range=(-2, 4))
    assert episode(env, lambda env: good)[1]["metrics"]["return"] == 2.0


@pytest.mark.parametrize(
    ("space", "names", "error", "message"),
    [
        (spaces.Dict(), (), TypeError, "no text for actions of Dict"),
        (spaces.Box(0, 1, (17,)), (), TypeError, "at most 16 numbers"),
        (spaces.Discrete(3), ("a", "b"), ValueError, "needs 3 different names"),
        (spaces.Discrete(2), ("a", "A"), ValueError, "needs 2 different names"),
        (spaces.MultiDiscrete([2]), ("a", "b"), TypeError, "names those of a Discrete space"),
    ],
)
def test_actions_that_nobody_could_write_are_refused(space, names, error, message):
    with pytest.raises(error, match=message):
        action_text(space, names)


@pytest.mark.parametrize(
    ("observation", "text"),
    [
        (np.int64(3), "3"),
        (2.5, "2.5"),
        (np.array([0.123456, -1.0], np.float32), "0.1235 -1"),
        (np.array([[1, 0], [0, 1]]), "1 0\n0 1"),
        (np.array([True, False]), "1 0"),
        (np.array([]), ""),
        ((14, 10, 0), "14, 10, 0"),
        ({"x": np.zeros(2), "door": "open"}, "x: 0 0\ndoor: open"),
        (np.full((210, 160, 3), 7, np.uint8), "210 x 160 x 3 numbers from 7 to 7, mean 7"),
        ("naïve", "naïve"),
    ],
)
def test_an_observation_of_any_space_is_described_shortly(observation, text):
    assert describe(observation) == text


@pytest.mark.parametrize(
    ("id", "options"),
    [
        ("FrozenLake-v1", {"is_slippery": False}),
        ("Blackjack-v1", {}),
        ("CartPole-v1", {**POLE, "render": in_words, "success": patient}),
    ],
)
def test_a_record_makes_the_environment_again_and_replays(tmp_path, id, options):
    env = from_gymnasium(id, **options)
    assert env.env_id == f"gymnasium/{id}"
    kwargs = json.loads(json.dumps(env.env_kwargs))
    jobs = jobs_for(env.tasks("test")[:5], 2, run_seed=3, split="test")
    episodes = list(play(jobs, lambda: make(env.env_id, **kwargs), ScriptedPolicy(random_tool)))
    with RecordWriter(tmp_path / "episodes.jsonl") as record:
        record.extend(episodes)
    rows = [row.episode for row in read_records(tmp_path / "episodes.jsonl")]
    assert len(rows) == 10 and [execute(row) for row in rows] == [None] * 10
    if "render" in options:
        assert all(row.turns[0].observation.startswith("the pole leans") for row in rows)
        assert any(row.success for row in rows)


def test_a_function_that_no_record_could_name_is_taken_and_leaves_no_id():
    env = from_gymnasium("CartPole-v1", render=lambda observation, gym: "it stands", **POLE)
    assert env.env_id == "" and env.reset(seed=0)[0] == "it stands"


def test_what_makes_it_again_may_be_written_as_a_class_too():
    env = make("turnwise.envs.adapters.gymnasium:FromGymnasium", env="FrozenLake-v1")
    assert env.env_kwargs == {"env": "FrozenLake-v1"} and isinstance(env, FromGymnasium)


def test_splits_share_no_seed_and_a_seed_decides_all_luck():
    env = from_gymnasium("FrozenLake-v1")
    seeds = [{task.seed for task in env.tasks(split)} for split in env.splits]
    assert not seeds[0] & seeds[1] | seeds[1] & seeds[2] | seeds[0] & seeds[2]
    walks = []
    for seed in (1, 2):
        walks.append([])
        for task in env.tasks("train")[:10]:
            env.reset(seed=seed, options={"task": task})
            walks[-1] += [env.step("left")[0] for _ in range(2)]
    assert walks[0] == walks[1] and len(set(walks[0])) == 3


@pytest.mark.parametrize(
    ("id", "options", "error", "message"),
    [
        ("FrozenLak-v1", {}, UnknownEnv, "no gymnasium environment 'FrozenLak-v1'"),
        ("Walk-v0", {}, ValueError, r"give the least and the most .* reward_range=\(0, 500\)"),
        ("CartPole-v1", {"reward_range": (1, 1)}, ValueError, "two finite numbers, least first"),
        ("CartPole-v1", {"reward_range": (0, math.inf)}, ValueError, "two finite numbers"),
        ("FrozenLake-v1", {"slippery": False}, TypeError, "slippery"),
        ("FrozenLake-v1", {"success": "nowhere:rule"}, ValueError, "write module:function"),
        ("FrozenLake-v1", {"render": "describe"}, ValueError, "write module:function"),
    ],
)
def test_a_mistake_is_answered_with_what_would_be_right(id, options, error, message):
    with pytest.raises(error, match=message):
        from_gymnasium(id, **options)
