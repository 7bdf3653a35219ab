"""Laws of replay: the same world repeats itself, another one is told at the first difference."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fakes import Guess

from turnwise.agents.episode_json import episode_from_json, episode_to_json
from turnwise.agents.policy import ScriptedPolicy, expert, noop, random_tool
from turnwise.agents.record import RecordWriter, read_records
from turnwise.agents.replay import ReplayDiverged, branch, execute, rescore, view
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.envs.registry import UnknownEnv, make
from turnwise.envs.tool_env import EpisodeView
from turnwise.envs.tools import reward
from turnwise.envs.types import Episode, Outcome, Stop, Turn
from turnwise.sandboxes.base import SandboxDied

ENV_ID = "fakes:Guess"


def played(act=expert, count: int = 6, env_id: str = ENV_ID, **settings) -> list[Episode]:
    env = make(env_id)
    jobs = jobs_for(env.tasks("train")[:count], run_seed=5, split="train")
    policy = ScriptedPolicy(act)
    return sorted(
        play(jobs, lambda: make(env_id), policy, Settings(**settings)), key=lambda e: e.env_seed
    )


def long_episode() -> Episode:
    return max(played(count=12), key=lambda episode: len(episode.turns))


@pytest.mark.parametrize("act", [expert, random_tool, noop])
@pytest.mark.parametrize("env_id", [ENV_ID, "fakes:Parrot"])
@pytest.mark.parametrize("max_turns", [None, 2])
def test_a_scripted_episode_never_diverges_even_through_its_record(
    tmp_path, act, env_id, max_turns
):
    count = len(make(env_id).tasks("train")[:6])
    episodes = played(act, count, env_id, max_turns=max_turns)
    with RecordWriter(tmp_path / "episodes.jsonl") as record:
        record.extend(episodes)
    recorded = [row.episode for row in read_records(tmp_path / "episodes.jsonl")]
    assert len(recorded) == count
    assert [execute(episode) for episode in [*episodes, *recorded]] == [None] * 2 * count
    assert not any(rescore(episode).changed for episode in recorded)


class OtherWords(Guess):
    """Says "higher!" from the third turn on."""

    def step(self, action):
        observation, *rest = super().step(action)
        return (observation.replace("higher", "higher!") if self.turn > 2 else observation), *rest


class OtherPrice(Guess):
    @reward(weight=0.5)
    def solved(self, episode: EpisodeView) -> float:
        return float(self.answer == self.secret)


class OtherState(Guess):
    def state_hash(self) -> str:
        return super().state_hash() if self.turn < 2 else "elsewhere"


class Impatient(Guess):
    max_turns = 2


class Broken(Guess):
    def step(self, action):
        if self.turn == 1:
            raise ZeroDivisionError("a bug")
        return super().step(action)


class OtherSecret(Guess):
    def setup(self, task, rng):
        opening = super().setup(task, rng)
        return opening.replace("0 to", "1 to")


def first_higher(episode: Episode) -> int:
    shown = [*[turn.observation for turn in episode.turns[1:]], episode.final_observation]
    return next(k for k, text in enumerate(shown) if k >= 2 and "higher" in text)


def test_a_changed_world_is_reported_at_its_first_divergent_turn():
    episode = next(e for e in played(count=30) if len(e.turns) > 3 and _late_higher(e))
    last = len(episode.turns) - 1
    cases = {
        OtherWords: (first_higher(episode), "observation"),
        OtherPrice: (last, "reward"),
        OtherState: (1, "state_after"),
        Impatient: (1, "truncated"),
        Broken: (1, "exception"),
        OtherSecret: (-1, "observation"),
    }
    for world, (turn, field) in cases.items():
        divergence = execute(episode, world)
        assert divergence is not None, world
        assert (divergence.turn, divergence.field) == (turn, field), world
    price = execute(episode, OtherPrice)
    assert (price.recorded, price.got) == (1.0, 0.5)
    assert str(price) == f"turn {last}: reward was 1.0, is now 0.5"


def _late_higher(episode: Episode) -> bool:
    try:
        return first_higher(episode) < len(episode.turns) - 1
    except StopIteration:
        return False


@pytest.mark.parametrize(
    "field",
    ["observation", "action", "state_before", "state_after", "reward", "rewards", "calls"],
)
def test_every_field_of_every_turn_is_compared(field):
    episode = long_episode()
    others = {"reward": 0.125, "rewards": {"solved": 0.125}, "calls": ({"id": "c0"},)}
    other = others.get(field, "changed")
    for k in range(len(episode.turns)):
        turns = list(episode.turns)
        turns[k] = replace(turns[k], **{field: other})
        segments = (replace(episode.segments[0], turns=tuple(turns)),)
        divergence = execute(replace(episode, segments=segments))
        assert divergence is not None
        assert divergence.turn == (k - 1 if field in ("observation", "state_before") else k)


@pytest.mark.parametrize(
    "change",
    [
        {"success": False},
        {"outcome": Outcome.TRUNCATED},
        {"stop": Stop.TRUNCATED},
        {"stop": Stop.MAX_TURNS},
        {"final_observation": "bye"},
        {"env_seed": 1},
    ],
)
def test_a_forged_ending_diverges(change):
    assert execute(replace(long_episode(), **change)) is not None


def test_a_cut_episode_diverges_because_its_world_had_not_ended():
    episode = long_episode()
    segment = episode.segments[0]
    cut = replace(episode, segments=(replace(segment, turns=segment.turns[:-1]),))
    assert execute(cut).field == "terminated"


def test_a_task_that_the_environment_no_longer_makes_is_a_divergence_at_the_start():
    recorded = episode_from_json(json.loads(json.dumps(episode_to_json(long_episode()))))
    data = {**recorded.task.to_json(), "colour": "red"}
    forged = replace(recorded, task=replace(recorded.task, fields=data))
    divergence = execute(forged)
    assert (divergence.turn, divergence.field) == (-1, "task")


class Lost(Guess):
    def step(self, action):
        raise SandboxDied("the box is gone")


def test_a_dead_machine_is_no_divergence_and_a_missing_environment_says_so():
    with pytest.raises(SandboxDied):
        execute(long_episode(), Lost)
    with pytest.raises(UnknownEnv, match="no environment"):
        execute(replace(long_episode(), env_id="turnwise/Gone-v1"))


def test_a_spoilt_episode_replays_as_far_as_it_went():
    (spoilt,) = played(count=1)
    first = replace(spoilt.segments[0], turns=spoilt.turns[:1])
    spoilt = replace(
        spoilt,
        segments=(first,),
        outcome=Outcome.INFRA_ERROR,
        stop=Stop.ERROR,
        success=False,
        final_observation=spoilt.turns[1].observation,
    )
    assert execute(spoilt) is None
    assert execute(replace(spoilt, segments=(), env_id="")) is None


def test_every_environment_that_replay_made_is_closed():
    closed = []

    class Watched(Guess):
        def close(self):
            closed.append(True)

    episode = long_episode()
    execute(episode, Watched)
    rescore(episode, Watched)
    branch(episode, 1, Watched).close()
    assert len(closed) == 3
    with pytest.raises(ReplayDiverged):
        branch(episode, 2, type("Both", (Watched, OtherState), {}))
    assert len(closed) == 4


def test_rescore_puts_todays_rewards_beside_the_recorded_ones():
    episode = long_episode()
    result = rescore(episode, OtherPrice)
    assert (result.recorded, result.now, result.changed) == (1.0, 0.5, True)
    assert (result.recorded_success, result.success, result.complete) == (True, True, True)
    assert [row.now for row in result.turns] == [0.0] * (len(episode.turns) - 1) + [0.5]
    assert result.turns[-1].parts == {"solved": 0.5}
    short = rescore(episode, Impatient)
    assert not short.complete
    assert short.turns[-1].now is None


def test_a_branch_at_every_turn_goes_on_to_the_recorded_end():
    episode = long_episode()
    for until in range(len(episode.turns)):
        with branch(episode, until) as fork:
            assert (fork.turn, fork.observation) == (until, episode.turns[until].observation)
            assert fork.state == episode.turns[until].state_before
            said = [m["content"] for m in fork.messages if m["role"] == "assistant"]
            assert said == [turn.action for turn in episode.turns[:until]]
            assert fork.messages[-1]["content"] == fork.observation
            assert {tool["function"]["name"] for tool in fork.tools} == {"look", "submit"}
            for turn in episode.turns[until:]:
                observation, price, terminated, _, info = fork.env.step(turn.action)
        assert (observation, price, terminated) == (episode.final_observation, 1.0, True)
        assert info["state"] == episode.turns[-1].state_after


def test_a_branch_can_leave_the_record():
    episode = long_episode()
    with branch(episode, 1) as fork:
        observation, *_ = fork.env.step(fork.env.call_text("look", number=-1))
    assert observation.startswith("ToolError")


def test_a_branch_after_the_end_is_refused_with_the_range():
    episode = long_episode()
    count = len(episode.turns)
    with pytest.raises(ValueError, match=f"between 0 and {count}, got {count + 1}"):
        branch(episode, count + 1)
    with pytest.raises(ValueError, match=f"ended after turn {count - 1}"):
        branch(episode, count)


def test_view_shows_every_turn_and_sends_no_control_character():
    episode = long_episode()
    evil = Turn(observation="\x1b[2J\x9b31mred\x07\u202e", action="go\r\x00", reward=-0.5)
    segments = (replace(episode.segments[0], turns=(*episode.turns, evil)),)
    text = view(replace(episode, segments=segments), width=400)
    said = [line for turn in episode.turns for line in turn.action.split("\n")]
    assert all(line in text for line in said)
    assert f"turn {len(episode.turns)}  reward -0.5" in text
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    assert r"\x1b[2J\x9b31mred\x07\u202e" in text
    coloured = view(replace(episode, segments=segments), width=80, color=True)
    assert "\x1b[32m" in coloured
    assert "\x1b[2J" not in coloured


def test_view_needs_no_environment(tmp_path):
    with RecordWriter(tmp_path / "e.jsonl") as record:
        record.append(replace(played(count=1)[0], env_id="gone/Env-v1"))
    (row,) = read_records(tmp_path / "e.jsonl")
    assert "gone/Env-v1" in view(row.episode, width=80)
