"""Laws of curricula: depths grow as told, replayed turns teach nothing, all of it resumes."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import TINY, config_of, history, same_weights
from test_rollout import essences, llm, model_and_renderer, played
from toys import Fault, Faulty, Walks, crash

from turnwise.agents.jobs import answer_key
from turnwise.agents.policy import ScriptedPolicy, expert, noop
from turnwise.agents.prelude import ended_in_prelude
from turnwise.agents.record import read_records
from turnwise.agents.replay import execute
from turnwise.agents.rollout import Job, Settings, jobs_for
from turnwise.envs.types import Episode, Group, Outcome, Segment, Stop, Task, Turn
from turnwise.trainers.batch import rows_of
from turnwise.trainers.coach import Coach, own_attempts
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
from turnwise.trainers.loop import train
from turnwise.trainers.mixes import Progress
from turnwise.trainers.model import load_model, save_model, tiny_from_env
from turnwise.trainers.pipeline import measure
from turnwise.trainers.prompts import Prompts
from turnwise.trainers.recipes import recipe
from turnwise.trainers.watch import TooManyLost
from turnwise.trainers.ways import NoExpert, Ways

torch.set_num_threads(1)
LONG = partial(Walks, length=6)
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


# ------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    """Some other model with the same tokenizer."""
    model, tokenizer = fresh_long(seed=1)
    return save_model(model, tokenizer, tmp_path_factory.mktemp("master"))


def fresh_long(seed=0):
    return tiny_from_env(LONG, tasks=10, max_len=128, seed=seed, **TINY)


def go(out, method, teacher="", *, env=LONG, **more):
    """Train and return the rows and the episodes by step."""
    more = {"group_size": 2, "teacher": str(teacher), **more}
    rows = list(train(config_of(out, **more), model=fresh_long(), make_env=env, recipe=method))
    return rows


def episodes_by_step(out):
    found = {}
    for row in read_records(out / "episodes.jsonl"):
        step = int(row.episode.group.split("-")[0][1:])
        found.setdefault(step, []).append(row.episode)
    return found


def test_a_run_forward_to_backward_plays_its_depth_and_no_turn_more(tmp_path, master):
    method = recipe("tcod_f2b", every=2)
    rows = go(tmp_path / "run", method, master)
    depths = [1, 1, 2, 2, 3, 3]
    assert [row["depth"] for row in rows] == depths and {row["start"] for row in rows} == {0}
    for step, episodes in episodes_by_step(tmp_path / "run").items():
        assert {len(e.turns) for e in episodes} == {depths[step]}
        assert all(e.stop is Stop.MAX_TURNS and e.metrics["cut"] for e in episodes)
    assert all(row["cut"] == 1 and row["expert_share"] == 0 for row in rows)


def test_a_run_backward_to_forward_begins_ever_earlier_and_charges_the_replay(tmp_path, master):
    method = recipe("tcod_b2f", every=2)
    rows = go(tmp_path / "run", method, master)
    starts = [5, 5, 4, 4, 3, 3]
    assert [row["start"] for row in rows] == starts
    assert [row["depth"] for row in rows] == [2, 2, 3, 3, 4, 4]
    for step, episodes in episodes_by_step(tmp_path / "run").items():
        for episode in episodes:
            executors = [turn.executor for turn in episode.turns]
            assert executors == ["expert"] * starts[step] + ["student"] * (6 - starts[step])
    assert [row["expert_share"] for row in rows] == pytest.approx([s / 6 for s in starts])
    assert all(row["way_turns"] == 18 for row in rows)  # three new tasks of six turns each


@pytest.mark.parametrize("name", ["tcod_f2b", "tcod_b2f"])
def test_what_is_measured_is_the_whole_task_whatever_the_curriculum(tmp_path, master, name):
    go(tmp_path / "run", recipe(name), master, steps=1)
    made = load_model(str(tmp_path / "run" / "model"))
    tests = LONG().tasks("test")[:5]
    measure(*made, LONG, tests, tmp_path / "test.jsonl", max_tokens=96, max_new_tokens=3)
    for row in read_records(tmp_path / "test.jsonl"):
        assert len(row.episode.turns) == 6
        assert {turn.executor for turn in row.episode.turns} == {"student"}
        assert not {"prelude", "cut"} & row.episode.metrics.keys()


def test_a_step_whose_attempts_are_all_over_before_they_begin_changes_nothing(tmp_path, master):
    method = replace(recipe("tcod_b2f"), curriculum=partial(_whole_way, turns=6))
    before = copy.deepcopy(fresh_long()[0])
    rows = go(tmp_path / "run", method, master, steps=2)
    assert all(row["prelude_ended"] == 1 and row["kept_groups"] == 0 for row in rows)
    after, _ = load_model(str(tmp_path / "run" / "model"))
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def _whole_way(progress, task, turns) -> Depth:
    return Depth(left=0)


GATED = {
    "f2b": lambda: recipe("tcod_f2b", every=1),
    "b2f": lambda: recipe("tcod_b2f", every=1),
    "drift": lambda: recipe("tcod_f2b", drift=100.0, window=1),
    "success": lambda: recipe("tcod_b2f", success=0.0, window=2),
}


@pytest.mark.parametrize("name", GATED)
def test_a_run_that_is_stopped_and_resumed_goes_as_deep_as_if_it_never_was(tmp_path, master, name):
    whole = go(tmp_path / "whole", GATED[name](), master, steps=5)
    moved = [(row["start"], row["depth"]) for row in whole]
    assert len(set(moved)) > 1  # or there would be nothing to lose
    go(tmp_path / "parts", GATED[name](), master, steps=3)
    go(tmp_path / "parts", GATED[name](), master, steps=5, resume=True)
    assert same_weights(tmp_path / "parts", tmp_path / "whole")
    assert without_ways(tmp_path / "parts") == without_ways(tmp_path / "whole")


HEARD = {"always": lambda n: True, "never": lambda n: False, "odd": lambda n: n % 2}


class Spoken(Walks):
    """Hears a wanted letter always, never, or in answers of an odd number of letters."""

    def __init__(self, hears: str) -> None:
        super().__init__(length=2)
        self.hears = HEARD[hears]

    def respond(self, action):
        return super().respond("a" if self.hears(len(action)) else "z")


@pytest.mark.parametrize("hears", HEARD)
def test_a_run_by_success_goes_deeper_where_tasks_are_solved_and_nowhere_else(
    tmp_path, master, hears
):
    method = recipe("tcod_f2b", success=0.25, window=2, start=2)
    rows = go(tmp_path, method, master, env=partial(Spoken, hears), steps=6, learning_rate=1e-6)
    depths, success = ([row[name] for row in rows] for name in ("depth", "success"))
    assert depths == [2 + climbed(success[:n], lambda mean: mean >= 0.25, 2) for n in range(6)]
    if hears != "odd":
        assert depths == {"always": [2, 2, 3, 3, 4, 4], "never": [2] * 6}[hears]


@pytest.mark.parametrize("name", ["tcod_f2b", "tcod_b2f"])
def test_two_gates_are_refused(name):
    with pytest.raises(ValueError, match=r"drift=0.5 or success=0.2, and not both"):
        recipe(name, drift=0.5, success=0.2)


def without_ways(out):
    """The history of a run; a resumed one finds ways again, which is all that may differ."""
    rows = [json.loads(line) for line in history(out)]
    return [{k: v for k, v in row.items() if k != "way_turns"} for row in rows]


@pytest.mark.parametrize("expert", [property(), None])
def test_a_curriculum_that_follows_an_expert_is_refused_where_there_is_none(
    tmp_path, master, expert
):
    Alone = type("Alone", (Walks,), {"expert": expert})

    with pytest.raises(NoExpert, match=r"Alone has no expert\(\).*tcod_f2b"):
        go(tmp_path / "run", recipe("tcod_b2f"), master, env=partial(Alone, length=6))
    assert not (tmp_path / "run").exists()


def test_deeper_attempts_set_off_no_alarm_for_their_turns_and_rewards(tmp_path, master):
    method = recipe("tcod_b2f", every=3)
    rows = go(tmp_path / "run", method, master, steps=18, learning_rate=1e-6, checkpoint_every=0)
    earned = [row["reward"] for row in rows]
    assert np.mean(earned[-5:]) < 0.5 * np.mean(earned[:10])  # what the alarm would compare
    assert not [alarm for row in rows for alarm in row.get("alarms", ()) if "reward" in alarm]


# ------------------------------------------------------------ prompt replay


def half(task, wins, attempts=4):
    turns = Segment(turns=(Turn(action_ids=(1,), logprobs=(0.0,)),))
    tried = [
        Episode(id=str(i), env_id="", task=task, segments=(turns,), success=i < wins)
        for i in range(attempts)
    ]
    return Group(task=task, episodes=tuple(tried))


def test_only_what_was_lately_half_solved_comes_again():
    prompts = Prompts(range(100), seed=0, replay=1.0)
    assert prompts.choose(0, 3) == [0, 1, 2]
    prompts.note([0, 1, 2], [half(TASK, wins) for wins in (0, 2, 4)])
    assert prompts.choose(3, 3) == [1, 4, 5]  # once in a batch
    prompts.note([1, 4, 5], [half(TASK, wins) for wins in (4, 1, 0)])
    assert prompts.choose(6, 2) == [4, 7]
    assert prompts.metrics() == {"replayed": 2 / 8}


def test_replay_draws_by_its_slot_and_delivers_its_share():
    def chosen(share):
        prompts = Prompts(range(10_000), seed=1, replay=share)
        prompts.half_solved = set(range(9000, 9100))
        return prompts.choose(0, 500)

    assert chosen(0.3) == chosen(0.3)
    assert chosen(0.0) == list(range(500))
    assert abs(sum(index >= 9000 for index in chosen(0.1)) / 500 - 0.1) < 0.04


class Coin(Walks):
    """About half of what an untrained model says is right; while it is `ill`, every other one dies.

    Args:
        ill: holds something while it is.
    """

    def __init__(self, ill=()) -> None:
        super().__init__(length=1)
        self.ill = ill

    def respond(self, action):
        if self.ill and len(action) % 4 < 2:
            crash()
        return super().respond("a" if len(action) % 2 else "z")


REPLAYED = {"steps": 6, "group_size": 4, "prompt_replay": 1.0, "learning_rate": 1e-5}


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """Runs that replay prompts and that nobody disturbed, by how far they play ahead."""
    folder = tmp_path_factory.mktemp("replayed")
    for depth in (0, 1):
        how = {**REPLAYED, "pipeline_depth": depth}
        rows = go(folder / str(depth), recipe("turn_rloo"), env=Coin, **how)
        assert rows[3]["replayed"] > 0  # or there would be nothing to lose
    return folder


def test_a_resumed_run_replays_the_same_tasks(tmp_path, replayed):
    go(tmp_path / "parts", recipe("turn_rloo"), env=Coin, **{**REPLAYED, "steps": 3})
    waiting = json.loads((tmp_path / "parts/checkpoints/step-000003/prompts.json").read_text())
    assert waiting
    go(tmp_path / "parts", recipe("turn_rloo"), env=Coin, **REPLAYED, resume=True)
    assert history(tmp_path / "parts") == history(replayed / "0")
    assert "replayed" not in go(tmp_path / "off", recipe("turn_rloo"), env=Coin, steps=1)[0]


@pytest.mark.parametrize("depth", [0, 1])
def test_a_step_that_was_lost_amid_leaves_no_mark_on_what_a_resumed_run_replays(
    tmp_path, replayed, depth
):
    out, ill, how = tmp_path / "run", [], {**REPLAYED, "pipeline_depth": depth, "retries": 0}
    config = config_of(out, **how, checkpoint_every=0, max_failed=0.0)
    rows = train(config, model=fresh_long(), make_env=lambda: Coin(ill), recipe=recipe("turn_rloo"))
    assert {next(rows)["step"] for _ in range(3 - depth)} == set(range(1, 4 - depth))
    ill.append("from now on")  # if batches are in flight, one of those is not
    with pytest.raises(TooManyLost):
        list(rows)
    ill.clear()
    go(out, recipe("turn_rloo"), env=Coin, **how, max_failed=0.0, checkpoint_every=0, resume=True)
    assert history(out) == history(replayed / str(depth))
