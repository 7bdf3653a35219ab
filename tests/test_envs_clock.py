"""Laws of the tape: a replay reads what was read then, asks nobody, and notices anything else."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace

import pytest
from fakes import Guess

from turnwise.agents.episode_json import episode_from_json, episode_to_json
from turnwise.agents.policy import ScriptedPolicy
from turnwise.agents.record import RecordWriter, read_records
from turnwise.agents.replay import branch, execute, rescore
from turnwise.agents.rollout import jobs_for, play
from turnwise.envs.clock import TapeError
from turnwise.envs.registry import make
from turnwise.envs.tools import ToolFailed, tool
from turnwise.envs.types import Turn

NETWORK = random.Random()
ENV_ID = f"{__name__}:Office"


class Office(Guess):
    """Opens with the time; its tools ask the clock and a network that never says the same."""

    asked = 0

    def setup(self, task, rng):
        self.first = self.clock.now()
        return f"{super().setup(task, rng)} It is {self.first}."

    @tool
    def when(self) -> str:
        """Tell the time."""
        return f"{self.clock.now()!r}"

    @tool
    def fetch(self) -> str:
        """Ask the network."""
        type(self).asked += 1
        answer = self.taped("network", lambda: {"z": NETWORK.random(), "pair": (1, 2)})
        return json.dumps(answer)

    @tool
    def flaky(self) -> str:
        """Ask a network that is down."""

        def down():
            raise ToolFailed(f"no route, try after {NETWORK.random()}", "timeout")

        return self.taped("network", down)

    @tool(timeout_s=0.05)
    def slow(self, seconds: float) -> str:
        """Read the time, then wait."""
        self.clock.now()
        time.sleep(seconds)
        return f"{self.clock.now()!r}"


def script(*calls):
    env = Office()
    texts = [env.call_text(name, **args) for name, args in calls]
    return [*texts, env.call_text("submit", number=1)]


ACTIONS = script(
    ("when", {}), ("fetch", {}), ("flaky", {}), ("look", {"number": 3}), ("slow", {"seconds": 0})
)


def recorded(actions, tmp_path, env_id=ENV_ID):
    jobs = jobs_for(make(env_id).tasks("train")[:2], run_seed=5, split="train")
    policy = ScriptedPolicy(lambda seat: actions[seat.turn])
    with RecordWriter(tmp_path / "e.jsonl") as record:
        record.extend(play(jobs, lambda: make(env_id), policy))
    return [row.episode for row in read_records(tmp_path / "e.jsonl")]


def test_an_episode_that_shows_the_time_and_a_network_replays_exactly_from_its_record(tmp_path):
    for episode in recorded(ACTIONS, tmp_path):
        before = Office.asked
        assert [len(turn.nondet) for turn in episode.turns] == [1, 1, 1, 0, 2, 0]
        assert len(episode.nondet) == 1
        assert execute(episode) is None
        assert not rescore(episode).changed
        assert Office.asked == before + 2, "the tool runs, and the network is not asked"


def test_without_its_tape_the_same_episode_diverges_where_the_tape_is_missing(tmp_path):
    episode, _ = recorded(ACTIONS, tmp_path)
    divergence = execute(replace(episode, nondet=()))
    assert (divergence.turn, divergence.field) == (-1, "exception")
    assert "'clock' is read, and nothing more was" in divergence.got
    for k in (0, 1, 2, 4):
        assert execute(with_turn(episode, k, nondet=())).turn == k


def test_a_forged_tape_is_shown_to_the_agent_and_diverges(tmp_path):
    episode, _ = recorded(ACTIONS, tmp_path)
    forged = with_turn(episode, 0, nondet=({"name": "clock", "value": 7.0},))
    divergence = execute(forged)
    assert (divergence.turn, divergence.field) == (0, "observation")
    other = with_turn(episode, 0, nondet=({"name": "network", "value": 7.0},))
    assert "'clock' is read where 'network' was" in execute(other).got
    more = with_turn(episode, 3, nondet=({"name": "clock", "value": 7.0},))
    assert (execute(more).turn, execute(more).field) == (3, "nondet")


def with_turn(episode, k, **changes):
    turns = list(episode.turns)
    turns[k] = replace(turns[k], **changes)
    return replace(episode, segments=(replace(episode.segments[0], turns=tuple(turns)),))


def test_a_call_that_ran_out_of_time_does_so_again_and_is_not_waited_for(tmp_path):
    actions = script(("slow", {"seconds": 0.4}), ("when", {}))
    for episode in recorded(actions, tmp_path):
        assert "ToolError[timeout] slow took longer than 0.05 s" in episode.turns[1].observation
        assert episode.turns[0].nondet[-1] == {"name": "timeout slow", "value": 1}
        began = time.perf_counter()
        assert execute(episode) is None
        assert time.perf_counter() - began < 0.3
        in_time = with_turn(episode, 0, nondet=())
        assert execute(in_time) is not None


def test_a_branch_reads_the_tape_up_to_its_turn_and_then_the_world(tmp_path):
    episode, _ = recorded(ACTIONS, tmp_path)
    with branch(episode, 1) as fork:
        now = float(fork.env.step(ACTIONS[0])[0])
        assert now > float(episode.turns[1].observation)
        assert abs(now - time.time()) < 60


def test_reads_are_told_turn_by_turn_and_forgotten_at_the_next_reset():
    env = Office()
    _, info = env.reset(seed=0)
    assert info["nondet"] == [{"name": "clock", "value": env.first}]
    env.step(env.call_text("look", number=3))
    both = env.call_text("when") + env.call_text("when")
    *_, info = env.step(both)
    assert [read["name"] for read in info["nondet"]] == ["clock", "clock"]
    assert sorted(env.reads()) == [0, 2]
    *_, info = env.step(env.call_text("look", number=3))
    assert "nondet" not in info
    env.reset(seed=1)
    assert sorted(env.reads()) == [0]


def test_a_taped_value_is_what_json_gives_back_the_first_time_too():
    env = Guess()
    env.reset(seed=0)
    assert env.taped("pair", lambda: (1, {"a": (2,)})) == [1, {"a": [2]}]
    for value in (float("nan"), {1, 2}, "\ud800"):
        with pytest.raises(TapeError, match="what 'odd' gave cannot be taped"):
            env.taped("odd", lambda value=value: value)


def test_an_environment_that_reads_nothing_writes_nothing_about_it(tmp_path):
    (episode, _) = recorded(ACTIONS[3:4] + ACTIONS[-1:], tmp_path, "fakes:Guess")
    written = episode_to_json(episode)
    assert "nondet" not in written and "nondet" not in written["turns"][0]
    assert episode_from_json(written).turns == episode.turns
    assert Turn().nondet == ()
