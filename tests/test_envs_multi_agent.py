"""Laws of games: agents act in turn, each is paid its own, and a seat is an environment."""

from __future__ import annotations

import random

import pytest
from gymnasium.error import ResetNeeded

from turnwise.agents.policy import ScriptedPolicy, expert
from turnwise.agents.replay import execute
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.envs import UnknownName, as_single_agent, check_env, make
from turnwise.envs.builtin.nim import Nim, NimSeat, Piles, best, opponent
from turnwise.envs.multi_agent import MultiAgentEnv
from turnwise.envs.seat import IllegalPlay
from turnwise.envs.tools import ToolFailed, tool
from turnwise.envs.types import Outcome, Task

ID = "turnwise/Nim-v1"


def started(game=None, piles=(1, 2)):
    game = game or Nim()
    game.reset(seed=0, options={"task": Piles(piles=piles)})
    return game


def test_agents_act_in_turn_and_each_is_paid_its_own():
    game = started()
    seen = []
    for agent in game.agent_iter():
        observation, *_ = game.last()
        seen.append((agent, observation))
        game.step(game.move(*best(game.piles)))
    assert seen == [("first", "piles 1 2"), ("second", "piles 1 1"), ("first", "piles 0 1")]
    assert game.earned == {"first": 1.0, "second": 0.0} == game.rewards
    assert all(game.terminations.values()) and not any(game.truncations.values())
    assert game.succeeded("first") and not game.succeeded("second")
    with pytest.raises(ResetNeeded, match="game of Nim is over"):
        game.step("")
    with pytest.raises(ResetNeeded):
        Nim().step("")


class Toll(MultiAgentEnv):
    """Three agents; each pays the one before it, and may look as often as it likes."""

    agents = ("a", "b", "c")
    max_turns = 7

    def tasks(self, split):
        return [Task(hidden={"split": split, "i": i}) for i in range(3)]

    def setup(self, task, rng):
        self.chance = rng.random()

    def observe(self, agent):
        return f"{agent} after {self.turn}"

    @tool
    def toll(self) -> None:
        """Pay."""
        before = self.agents[self.agents.index(self.agent_selection) - 1]
        self.pay(before, 1.0)
        self.next_agent()

    @tool
    def look(self) -> str:
        """Look."""
        return f"it is {self.clock.now() > 0}"

    @tool
    def skip(self, agent: str) -> None:
        """Let somebody else act."""
        if agent not in self.agents:
            raise ToolFailed(f"no agent {agent}")
        self.next_agent(agent)

    @tool(final=True)
    def stop(self) -> None:
        """End it."""


def test_last_tells_the_reward_since_an_agents_own_last_action():
    game = Toll()
    game.reset(seed=0)
    told = []
    for _ in range(6):
        told.append(game.last()[:2])
        game.step(game.call_text("toll"))
    assert told == [(f"{'abc'[i % 3]} after {i}", float(i >= 2)) for i in range(6)]
    assert game.earned == {"a": 2.0, "b": 2.0, "c": 2.0}
    game.step(game.call_text("look"))
    assert game.truncations == {"a": True, "b": True, "c": True}


def test_nothing_of_an_action_is_run_after_the_turn_has_passed():
    game = Toll()
    game.reset(seed=0)
    game.step(game.call_text("toll") + game.call_text("toll"))
    assert (game.agent_selection, len(game.infos["a"]["calls"])) == ("b", 1)
    game.step(game.call_text("skip", agent="a"))
    assert game.agent_selection == "a"
    game.step(game.call_text("look") + game.call_text("stop"))
    assert all(game.terminations.values()) and game.infos["a"]["answers"] == ["it is True", "ok"]


def test_a_move_against_the_rules_is_answered_and_too_many_end_the_game():
    game = started()
    for action, words in (("take 3 1", "no pile 3"), ("take 2 9", "cannot take 9")):
        game.step(action)
        assert game.agent_selection == "first" and words in game.infos["first"]["answers"][0]
    game.step("hm")
    assert all(game.truncations.values())
    assert game.infos["first"]["outcome"] == "agent_error" and not game.succeeded("first")


def never(conversation, rng):
    raise AssertionError("it was not its turn")


def test_a_seat_sees_the_game_after_the_others_have_acted_and_is_paid_its_own():
    game = Toll()
    said = []

    def other(conversation, rng):
        said.append([message["content"] for message in conversation])
        return game.call_text("toll")

    env = as_single_agent(game, agent="b", others={"a": other, "c": other})
    observation, info = env.reset(seed=0)
    assert observation == "b after 1" and said == [["a after 0"]]
    assert [t["function"]["name"] for t in info["tools"]] == ["toll", "look", "skip", "stop"]
    observation, reward, terminated, truncated, info = env.step(env.call_text("look"))
    assert observation == "it is True\nb after 2" and reward == 0.0 and len(info["nondet"]) == 1
    observation, reward, *_ = env.step(env.call_text("toll"))
    assert (observation, reward) == ("b after 5", 1.0)
    assert said[-1] == ["a after 0", game.call_text("toll"), "a after 4"]
    *_, terminated, truncated, info = env.step(env.call_text("stop"))
    assert (terminated, truncated, info["success"]) == (True, False, False)


def test_an_agent_that_makes_no_legal_move_fails_and_an_opponent_that_makes_none_is_no_defeat():
    env = as_single_agent(Nim(), agent="first", others={"second": never})
    env.reset(seed=0)
    for _ in range(2):
        assert env.step("hm")[2:4] == (False, False)
    *_, terminated, truncated, info = env.step("take 1 99")
    assert (terminated, truncated, info["outcome"]) == (False, True, "agent_error")
    assert info["success"] is False

    def mad():
        return as_single_agent(Nim(), agent="first", others={"second": lambda *_: "hm"})

    env = mad()
    env.reset(seed=0)
    with pytest.raises(IllegalPlay, match="'second' made no legal move, last 'hm'"):
        env.step(env.expert())
    jobs = jobs_for(env.tasks("train")[:1], run_seed=0, split="train")
    (episode,) = play(jobs, mad, ScriptedPolicy(expert), Settings(retries=0))
    assert episode.outcome is Outcome.ENV_ERROR and not episode.trainable


def test_wrong_seats_are_refused_with_the_way_out():
    with pytest.raises(UnknownName, match="did you mean 'first'"):
        as_single_agent(Nim(), agent="frist", others={"second": never})
    with pytest.raises(TypeError, match="others lacks a policy for a, c"):
        as_single_agent(Toll(), agent="b", others={})
    with pytest.raises(TypeError, match="must name its agents"):
        MultiAgentEnv()
    with pytest.raises(UnknownName, match="did you mean 'second'"):
        NimSeat(seat="secnd")
    for wrong in ({"piles": 1}, {"piles": (4, 3)}, {"sticks": 2}, {"blunder": 1.5}):
        with pytest.raises(ValueError, match=r"must lie in|probability"):
            NimSeat(**wrong)
    with pytest.raises(ValueError, match="allow more piles or sticks"):
        NimSeat(seat="second", piles=2, sticks=3)


@pytest.mark.parametrize("seat", ["first", "second"])
@pytest.mark.parametrize("blunder", [0.0, 0.5])
def test_the_expert_wins_from_either_seat_on_every_split(seat, blunder):
    env = make(ID, seat=seat, blunder=blunder)
    for split in env.splits:
        jobs = jobs_for(env.tasks(split)[:200], run_seed=1, split=split)
        made = lambda: make(ID, seat=seat, blunder=blunder)  # noqa: E731
        episodes = list(play(jobs, made, ScriptedPolicy(expert)))
        assert len(episodes) == 200 and all(episode.success for episode in episodes)
        assert execute(episodes[7]) is None


def test_the_expert_wins_back_what_was_given_away_once_the_opponent_blunders():
    won = 0
    for seed in range(40):
        env = NimSeat(blunder=1.0)
        env.reset(seed=seed)
        rng, ended, wrong = random.Random(seed), False, 2
        while not ended:
            piles = [(i, n) for i, n in enumerate(env.game.piles) if n]
            index, size = rng.choice(piles)
            action = env.game.move(index, rng.randint(1, size)) if wrong > 0 else env.expert()
            wrong -= 1
            *_, terminated, truncated, info = env.step(action)
            ended = terminated or truncated
        won += info["success"]
    assert won >= 36


def test_no_split_has_a_position_of_another_one():
    env = make(ID)
    seen = {
        split: {tuple(sorted(task.piles)) for task in env.tasks(split)[:500]}
        for split in env.splits
    }
    assert not seen["train"] & seen["dev"] and not (seen["train"] | seen["dev"]) & seen["test"]
    assert all(len(positions) > 40 for positions in seen.values())


def test_a_game_is_saved_and_forked_with_its_seat():
    env = make(ID, blunder=0.7)
    env.reset(seed=4)
    env.step(env.expert())
    fork, saved = env.fork(), env.snapshot()
    rest = []
    for one in (env, fork):
        rest.append([one.step(one.expert())[:4] for _ in range(2)])
        assert one.game.tape is one.tape
    env.restore(saved)
    assert [env.step(env.expert())[:4] for _ in range(2)] == rest[0] == rest[1]
    assert fork.game is not env.game


def test_the_other_seat_keeps_the_contract_too():
    report = check_env(ID, seeds=range(2), seat="second", blunder=0.5, actions="hermes")
    assert report.ok, str(report)


def test_self_play_against_a_frozen_policy_is_one_more_function():
    game = Nim()
    env = as_single_agent(game, agent="second", others={"first": opponent(game, 0.0)})
    env.reset(seed=0, options={"task": Piles(piles=(1, 2))})
    assert env.game.piles == [1, 1]
    *_, terminated, _, info = env.step(env.expert())
    assert terminated and not info["success"]
