"""Laws of the BabyAI adapter: minigrid's own rules and bot, seen through words."""

import random
import re

import numpy as np
import pytest

pytest.importorskip("minigrid", reason="needs pip install 'turnwise[babyai]'")

from turnwise.envs.builtin.babyai import BabyAI, BabyTask
from turnwise.envs.builtin.babyai_view import describe
from turnwise.envs.formats.strict_json import loads
from turnwise.envs.names import UnknownName
from turnwise.envs.registry import make

WALL, DOOR, KEY, BALL = 2, 4, 5, 6
RED, GREEN = 0, 1


def view(*cells):
    image = np.zeros((7, 7, 3), dtype=np.uint8)
    for ahead, right, *cell in cells:
        image[3 + right, 6 - ahead] = cell
    return image


class Carried:
    color, type = "green", "key"


def test_what_is_seen_is_told_nearest_first_with_its_place():
    image = view((3, -1, BALL, RED, 0), (0, 2, KEY, GREEN, 0), (4, 0, WALL, 5, 0))
    assert describe(image, None) == "r2 green key f3l1 red ball f4 wall"


def test_a_door_says_whether_it_is_open():
    states = [describe(view((2, 0, DOOR, RED, state)), None) for state in (0, 1, 2)]
    assert states == [f"f2 {word} red door" for word in ("open", "closed", "locked")]


def test_what_is_carried_is_told_and_nothing_is_nothing():
    assert describe(view((0, 0, KEY, GREEN, 0)), Carried()) == "carry green key"
    assert describe(view(), None) == "nothing"


def test_different_views_have_different_words():
    cells = [(a, r, *c) for a in range(1, 7) for r in (-3, 0, 3) for c in ((5, 0, 0), (6, 1, 0))]
    assert len({describe(view(cell), None) for cell in cells}) == len(cells)


def episode(env, seed, policy):
    env.reset(seed=seed)
    observations, advice, done, info = [], [], False, {}
    while not done:
        action = policy(env)
        observation, _, terminated, truncated, info = env.step(action)
        observations.append(observation)
        advice.append(action)
        done = terminated or truncated
    return observations, advice, info


def test_the_bot_solves_held_out_layouts():
    env = make("turnwise/BabyAI-GoToLocal-v1")
    for index in range(20):
        env.reset(seed=0, options={"task": env.tasks("test")[index]})
        while True:
            *_, terminated, truncated, info = env.step(env.expert())
            if terminated or truncated:
                break
        assert info["success"] and info["rewards"] == {"solved": 1.0}


def wandering(seed, share):
    rng = random.Random(seed)

    def policy(env):
        words = list(env.parts.tools)
        return rng.choice(words) if rng.random() < share else env.expert()

    return policy


@pytest.mark.parametrize("level", ["GoToLocal", "UnlockLocal", "PutNextLocal", "PickupLoc"])
def test_the_oracle_leads_back_from_wherever_the_agent_strayed(level):
    env = BabyAI(level=level, max_turns=200)
    wins = [episode(env, seed, wandering(seed, 0.4))[2]["success"] for seed in range(6)]
    assert sum(wins) >= 5


def test_advice_depends_on_the_actions_and_not_on_when_it_was_asked():
    asked_always, asked_once = BabyAI(), BabyAI()
    asked_always.reset(seed=4)
    asked_once.reset(seed=4)
    for action in ["left", "forward", "forward", "right", "pickup", "left", "drop", "forward"]:
        asked_always.expert()
        asked_always.step(action)
        asked_once.step(action)
    assert asked_always.expert() == asked_once.expert()


def test_asking_the_oracle_does_not_move_the_agent():
    one, other = BabyAI(), BabyAI()
    one.reset(seed=2)
    other.reset(seed=2)
    for _ in range(5):
        one.expert()
        assert one.step("forward")[0] == other.step("forward")[0]
    assert one.state_hash() == other.state_hash()


def faced_boxes(env, seeds):
    """Walk by the oracle and open each box that comes to stand right ahead."""
    opened = 0
    for seed in seeds:
        env.reset(seed=seed)
        for _ in range(12):
            observation, _, terminated, *_ = env.step(env.expert())
            if terminated:
                break
            if re.search(r"\bf1 \w+ box\b", observation):
                env.step("toggle")
                opened += 1
                assert env.expert() in env.parts.tools
    return opened


def test_the_oracle_goes_on_after_a_box_was_opened_for_good():
    assert faced_boxes(BabyAI(level="GoToLocal"), range(12)) > 0


def test_equal_states_have_equal_hashes_and_others_do_not():
    env = BabyAI()
    env.reset(seed=1)
    start = env.state_hash()
    hashes = []
    for action in ["left", "left", "left", "left"]:
        env.step(action)
        hashes.append(env.state_hash())
    assert hashes[-1] == start and len(set(hashes)) == 4


def test_the_layout_follows_from_the_task_alone():
    env = BabyAI()
    task = env.tasks("dev")[3]
    openings = {env.reset(seed=seed, options={"task": task})[0] for seed in range(3)}
    assert len(openings) == 1
    assert env.tasks("train")[0].seed != env.tasks("test")[0].seed


def test_a_malformed_action_costs_no_step_of_minigrid():
    env = BabyAI()
    env.reset(seed=0)
    before = env.state_hash()
    observation, *_ = env.step("fly away")
    assert observation.startswith("ToolError[unknown_tool]") and env.state_hash() == before


def test_every_observation_tells_the_mission_and_the_view():
    env = BabyAI()
    observation, _ = env.reset(seed=0)
    mission = observation.splitlines()[-1]
    assert mission.startswith("go to ")
    told, *_ = env.step("forward")
    assert told.splitlines()[1:] == [mission]
    assert env.step("fly away")[0].endswith(f"\n{told}")


def test_the_discounted_reward_is_minigrids():
    env = BabyAI(discounted=True)
    _, actions, info = episode(env, 0, lambda env: env.expert())
    expected = 1 - 0.9 * len(actions) / env.max_turns
    assert info["success"] and info["rewards"]["solved"] == pytest.approx(expected)


def test_the_turn_limit_is_the_levels_own_unless_it_is_given():
    env = BabyAI()
    env.reset(seed=0)
    assert env.max_turns == 64
    _, actions, info = episode(BabyAI(max_turns=3), 0, lambda env: "done")
    assert len(actions) == 3 and info["outcome"] == "truncated"


def test_a_wrong_level_or_task_is_refused():
    with pytest.raises(UnknownName, match="did you mean 'GoToLocal'"):
        BabyAI(level="GotoLocl")
    with pytest.raises(ValueError, match="the task is of 'GoTo'"):
        BabyAI().reset(seed=0, options={"task": BabyTask(level="GoTo", seed=0)})


def test_nothing_is_printed_while_layouts_are_rejected(capsys):
    env = BabyAI(level="PickupLoc")
    for seed in range(10):
        env.reset(seed=seed)
    assert capsys.readouterr().out == ""


def test_the_hermes_format_plays_the_same_game():
    one, other = BabyAI(), BabyAI(actions="hermes")
    one.reset(seed=0)
    other.reset(seed=0)
    assert one.step("right")[0] == other.step(other.call_text("right"))[0]
    assert loads(other.call_text("right")[11:-12])["arguments"] == {}
