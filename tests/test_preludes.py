"""Laws of preludes: an expert's way is found once, its turns teach nothing, cuts are counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from long_walks import LONG
from test_rollout import essences, llm, model_and_renderer, played
from toys import Fault, Faulty, Walks, crash

from turnwise.agents.jobs import answer_key
from turnwise.agents.policy import ScriptedPolicy, expert, noop
from turnwise.agents.prelude import ended_in_prelude
from turnwise.agents.replay import execute
from turnwise.agents.rollout import Settings, jobs_for
from turnwise.envs.types import Group, Outcome, Stop
from turnwise.trainers.batch import rows_of
from turnwise.trainers.coach import Coach, own_attempts
from turnwise.trainers.curriculum import Depth, b2f, full_depth, steadily
from turnwise.trainers.ways import Ways

torch.set_num_threads(1)


# ------------------------------------------------------------ preludes and cuts


def jobs_of(tasks=4, replicas=2, env=LONG, **more):
    jobs = jobs_for(env().tasks("train")[:tasks], replicas, run_seed=0, split="train")
    return [replace(job, **more) for job in jobs]


def guided(start, env=LONG, slack=None, **how):
    """Jobs that begin at turn `start` of the expert's way."""
    coach = Coach(lambda *_: Depth(left=len_way(env) - start, slack=slack), 9, env)
    return coach.jobs(jobs_of(env=env, **how))


def len_way(env) -> int:
    return env().length


def test_replayed_turns_are_in_the_record_as_an_experts_and_teach_nothing():
    episodes = played(guided(3), LONG, llm())
    for episode in episodes.values():
        executors = [turn.executor for turn in episode.turns]
        assert executors == ["expert"] * 3 + ["student"] * 3
        assert [turn.action for turn in episode.turns[:3]] == ["a step"] * 3
        assert "mile 2" in episode.turns[2].observation and episode.metrics["prelude"] == 3
        (row,) = rows_of([episode])
        own = [i for turn in episode.turns[3:] for i in turn.action_ids]
        assert [row.rest[i] for i in row.trained] == own
        assert 0.0 not in row.old  # an expert's tokens have no log-probability
        assert execute(episode, LONG) is None


def test_the_agent_reads_the_same_tokens_as_if_it_had_acted_so_itself():
    _, renderer = model_and_renderer()
    whole = played(jobs_of(), LONG, ScriptedPolicy(expert, renderer=renderer))
    for name, episode in played(guided(4), LONG, llm()).items():
        other = whole[name].turns
        for mine, theirs in zip(episode.turns[:4], other, strict=False):
            assert (mine.context_ids, mine.action_ids) == (theirs.context_ids, theirs.action_ids)
        assert episode.turns[4].context_ids == other[4].context_ids


def test_a_policy_without_tokens_can_begin_later_too():
    for episode in played(guided(5), LONG, ScriptedPolicy(noop, executor="student")).values():
        assert [turn.executor for turn in episode.turns] == ["expert"] * 5 + ["student"]
        assert all(turn.action_ids == () for turn in episode.turns)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("concurrency", [1, 7])
def test_preludes_and_cuts_are_the_same_at_any_concurrency(fast, concurrency):
    jobs = [*guided(2, slack=1), *jobs_of(max_turns=2)]
    jobs = [replace(job, group=f"{i}-{job.group}") for i, job in enumerate(jobs)]
    usual = played(jobs, LONG, llm(), concurrency=64)
    env = partial(Faulty, fast=fast, pace_s=0.003, length=6)
    assert essences(played(jobs, env, llm(slots=3), concurrency=concurrency)) == essences(usual)


def test_an_attempt_that_is_cut_is_truncated_and_says_by_whom():
    def ends(jobs, **settings):
        found = played(jobs, partial(Walks, length=6), llm(), **settings).values()
        return {(len(e.turns), e.outcome, e.stop, e.metrics.get("cut")) for e in found}

    late = Outcome.TRUNCATED, Stop.MAX_TURNS
    assert ends(jobs_of(max_turns=4)) == {(4, *late, 1.0)}
    assert ends(jobs_of(max_turns=4), max_turns=3) == {(3, *late, None)}
    assert ends(jobs_of(max_turns=6)) == {(6, Outcome.OK, Stop.TERMINATED, None)}
    assert ends(guided(2, slack=-2)) == {(4, *late, 1.0)}
    for episode in played(jobs_of(max_turns=4), LONG, llm()).values():
        assert execute(episode, LONG) is None


def test_a_task_that_its_prelude_finishes_is_dropped_from_its_group_and_counted():
    coach = Coach(full_depth, 9, LONG)
    jobs = [
        replace(job, prelude=("a step",) * (6 if job.replica else 5))
        for job in coach.jobs(jobs_of())
    ]
    episodes = list(played(jobs, LONG, llm()).values())
    over = [e for e in episodes if ended_in_prelude(e)]
    assert {e.replica for e in over} == {1} and len(over) == 4
    assert all(e.success and e.outcome is Outcome.OK for e in over)
    assert all(execute(e, LONG) is None for e in over)
    group = own_attempts(Group(task=jobs[0].task, episodes=tuple(episodes)))
    assert {e.replica for e in group.episodes} == {0}
    said = coach.metrics(episodes)
    assert said["prelude_ended"] == 0.5 and said["prelude_diverged"] == 0


def test_a_prelude_that_does_not_fit_is_dropped_too():
    jobs = guided(5)
    opening = len(played(jobs_of(), LONG, llm())["0.0"].turns[0].context_ids)
    for episode in played(jobs, LONG, llm(), max_tokens=opening + 12).values():
        assert episode.stop is Stop.MAX_TOKENS and 0 < len(episode.turns) < 5
        assert ended_in_prelude(episode)


class Fickle(Walks):
    """Says at mile 2 how often it has been played: it does not follow from the task alone."""

    plays = 0

    def respond(self, action):
        answer = super().respond(action)
        Fickle.plays += 1
        if self.turn == 2 and self.task.index == 1:
            answer.observation += f" {Fickle.plays}"
        return answer


@pytest.mark.parametrize("fast", [True, False])
def test_a_prelude_that_is_answered_otherwise_than_recorded_is_masked_and_counted(fast):
    env = partial(Fickle, length=6)
    coach = Coach(lambda *_: Depth(left=3), 9, env)
    episodes = played(coach.jobs(jobs_of(env=env)), env, llm())
    bad = [episodes.pop("1.0"), episodes.pop("1.1")]
    for episode in bad:
        assert (episode.outcome, episode.attempts) == (Outcome.ENV_ERROR, 1)
        assert episode.error.startswith("PreludeDiverged: action 1 of 3 was answered otherwise")
        assert not episode.trainable and len(episode.turns) == 1
    assert all(e.trainable and len(e.turns) == 6 for e in episodes.values())
    said = coach.metrics([*bad, *episodes.values()])
    assert said["prelude_diverged"] == 2 / 8 and said["prelude_ended"] == 0


def test_an_environment_that_fails_in_a_prelude_is_retried_and_masked_like_any_other():
    faults = {0: Fault(2, crash, left=1), 2: Fault(3, crash)}
    episodes = played(guided(4), lambda: Faulty(faults, length=6), llm())
    assert episodes["0.0"].trainable and episodes["2.0"].outcome is Outcome.ENV_ERROR
    assert Counter(e.attempts for e in episodes.values()) == {1: 5, 2: 3}


# ------------------------------------------------------------ experts


def test_a_way_is_played_once_for_each_task():
    calls = Counter()

    class Counted(Walks):
        def expert(self):
            calls[self.task.index] += 1
            return "a step"

    ways = Ways(partial(Counted, length=6), Settings())
    jobs = jobs_of()
    first, again = ways.of(jobs), ways.of(jobs[:3])
    assert set(calls.values()) == {6} and ways.turns == 24
    assert all(len(way.actions) == len(way.answers) == 6 for way in first.values())
    assert again == {key: first[key] for key in again}


def test_a_way_holds_what_followed_each_action():
    (job,) = jobs_of(tasks=1, replicas=1)
    way = Ways(LONG, Settings()).of([job])[job.task.key]
    env = LONG()
    env.reset(seed=job.env_seed, options={"task": job.task})
    for action, key in zip(way.actions, way.answers, strict=True):
        observation, _, _, _, info = env.step(action)
        assert answer_key(observation, info["state"]) == key


@pytest.mark.parametrize("how", ["wrong", "raises"])
def test_a_task_whose_expert_fails_is_played_from_its_beginning_and_counted(how):
    class Lost(Walks):
        def expert(self):
            if self.task.index == 1 and how == "raises":
                raise KeyError("no way")
            return "zzz" if self.task.index == 1 else "a step"

    coach = Coach(b2f(steadily(1), slack=0), 9, partial(Lost, length=6))
    jobs = coach.jobs(jobs_of())
    starts = {(job.task.index, len(job.prelude), job.max_turns) for job in jobs}
    assert starts == {(0, 5, 1), (1, 0, None), (2, 5, 1), (3, 5, 1)}
    assert coach.metrics([])["no_way"] == 1 / 4


def test_a_lost_machine_is_asked_for_the_way_again():
    faults = {0: Fault(1, crash, left=2)}
    coach = Coach(b2f(steadily(1)), 9, lambda: Faulty(faults, length=6))
    first, again = coach.jobs(jobs_of()), coach.jobs(jobs_of())
    assert first[0].prelude == () and len(again[0].prelude) == 5
