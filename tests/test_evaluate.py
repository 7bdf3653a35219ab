"""Laws of the evaluation: resumable, masked, with floors, and true to its record."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from fakes import Guess

from turnwise.agents.evaluate import FLOORS, evaluate
from turnwise.agents.policy import ScriptedPolicy, expert, noop
from turnwise.agents.record import RecordError, read_header, read_records, verify
from turnwise.agents.rollout import Settings
from turnwise.agents.score import summarise
from turnwise.agents.statistics import pass_at_k, pass_hat_k
from turnwise.envs.seeds import derive
from turnwise.envs.types import Outcome, canonical_json
from turnwise.sandboxes.base import SandboxDied

TASKS = Guess().tasks("test")[:12]
CALM = Settings(concurrency=4)


def wobbly(seat) -> str:
    """The expert, but one action in four is silence; by the seat's seed alone."""
    return "" if derive(seat.seed, seat.turn) % 4 == 0 else expert(seat)


def guessing(seat) -> str:
    """Submit at once: right half of the time."""
    number = seat.env.secret if derive(seat.seed, "right") % 2 else -1
    return seat.env.call_text("submit", number=number)


def run(path, act=wobbly, env=Guess, **more):
    settings = more.pop("settings", CALM)
    tasks = more.pop("tasks", TASKS)
    return evaluate(env, tasks, ScriptedPolicy(act), settings, record_path=path, **more)


def essence(report) -> str:
    """Everything but where the record is."""
    return canonical_json(replace(report, record="", end=None, floors={}).to_json())


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 5, 23])
def test_a_resumed_evaluation_equals_an_uninterrupted_one(tmp_path, stop_after):
    whole = run(tmp_path / "whole.jsonl", replicas=2, by=("limit",), floors={})
    path = tmp_path / "parts.jsonl"
    played = []

    def watch(episode):
        played.append(episode.id)
        if len(played) == stop_after:
            raise Stopped

    with pytest.raises(Stopped):
        run(path, replicas=2, by=("limit",), floors={}, watch=watch)
    with path.open("ab") as file:
        file.write(b'{"an unfinished line')
    resumed = run(path, replicas=2, by=("limit",), floors={}, watch=lambda e: played.append(e.id))
    assert essence(resumed) == essence(whole)
    assert sorted(played) == sorted(f"{i}.{r}" for i in range(12) for r in range(2))
    assert len(list(read_records(path))) == 24
    assert verify(path, resumed.end)


def test_the_order_in_which_episodes_end_changes_nothing(tmp_path):
    reports = [
        run(tmp_path / f"{n}.jsonl", replicas=2, settings=Settings(concurrency=n), floors={})
        for n in (1, 5, 64)
    ]
    assert len({essence(report) for report in reports}) == 1


def test_nothing_is_played_twice_and_more_replicas_extend_the_record(tmp_path):
    path = tmp_path / "e.jsonl"
    first = run(path, floors={})
    assert run(path, floors={}, watch=lambda e: pytest.fail(f"{e.id} was played again")) == first
    more = []
    run(path, replicas=3, floors={}, watch=lambda e: more.append(e.replica))
    assert sorted(more) == [1] * 12 + [2] * 12


def test_fewer_tasks_of_the_same_record_are_reported_alone(tmp_path):
    path = tmp_path / "e.jsonl"
    run(path, replicas=2, floors={})
    part = run(path, tasks=TASKS[:5], floors={})
    assert essence(part) == essence(run(tmp_path / "other.jsonl", tasks=TASKS[:5], floors={}))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"run_seed": 1}, "run_seed"),
        ({"split": "dev"}, "split"),
        ({"settings": Settings(max_turns=3)}, "max_turns"),
        ({"info": {"model": "b"}}, "model"),
    ],
)
def test_a_record_of_another_evaluation_is_refused_and_left_alone(tmp_path, change, name):
    path = tmp_path / "e.jsonl"
    run(path, floors={}, **{"info": {"model": "a", "shape": (1, 2)}})
    before = path.read_bytes()
    with pytest.raises(RecordError, match=f"another evaluation's: its {name} was"):
        run(path, floors={}, **{"info": {"model": "a", "shape": (1, 2)}, **change})
    assert path.read_bytes() == before
    assert read_header(path)["run"]["run_seed"] == 0


class Fragile(Guess):
    """Its machine dies for two tasks of twelve, and its code breaks for a third."""

    def step(self, action):
        if self.task.index % 12 in (3, 4):
            raise SandboxDied("the box is gone")
        if self.task.index % 12 == 5:
            raise ZeroDivisionError("a bug")
        return super().step(action)


def test_an_episode_that_the_machine_spoilt_is_masked_and_never_a_zero(tmp_path):
    report = run(tmp_path / "e.jsonl", expert, Fragile, by=("index",))
    assert (report.success.value, report.success.n) == (1.0, 9)
    assert report.outcomes == {"ok": 9, "infra_error": 2, "env_error": 1}
    assert (report.masked, report.episodes) == (3, 12)
    assert len(report.by["index"]) == 9
    assert "masked      3 of 12" in str(report)
    assert report.floors["noop"].masked == 3


def test_masked_episodes_can_be_played_again_and_the_last_attempt_counts(tmp_path):
    path = tmp_path / "e.jsonl"
    run(path, expert, Fragile, floors={})
    again = []
    kept = run(path, expert, Guess, floors={})
    assert kept.masked == 3
    healed = run(path, expert, Guess, floors={}, retry_masked=True, watch=again.append)
    assert sorted(episode.task.index % 12 for episode in again) == [3, 4, 5]
    assert (healed.masked, healed.success.n) == (0, 12)
    assert len(list(read_records(path))) == 15


def test_if_every_episode_is_spoilt_nothing_is_known_and_nothing_crashes(tmp_path):
    spoilt = [task for task in TASKS if task.index % 12 in (3, 4, 5)]
    report = run(tmp_path / "e.jsonl", expert, Fragile, tasks=spoilt, replicas=2, floors={})
    assert report.success.n == 0
    assert "none (n=0)" in str(report)
    json.loads(canonical_json(report.to_json()))


def test_floors_stand_beside_the_score_on_the_same_tasks(tmp_path):
    path = tmp_path / "e.jsonl"
    report = run(path, expert)
    assert set(report.floors) == set(FLOORS) == {"noop", "random"}
    assert report.floors["noop"].success.value == 0.0
    assert report.floors["random"].success.n == len(TASKS)
    assert report.above_floors
    assert not run(tmp_path / "noop.jsonl", noop).above_floors
    seeds = [
        [row.episode.env_seed for row in read_records(floor.record)]
        for floor in (report, *report.floors.values())
    ]
    assert sorted(seeds[0]) == sorted(seeds[1]) == sorted(seeds[2])
    assert report.to_json()["floors"]["random"]["success"]["n"] == 12


def test_pass_at_k_and_the_breakdown_are_those_of_the_recorded_attempts(tmp_path):
    tasks = [replace(task, limit=4 + 8 * (task.index % 2)) for task in TASKS]
    path = tmp_path / "e.jsonl"
    report = run(path, guessing, replicas=4, by=("limit",), tasks=tasks, floors={})
    episodes = [row.episode for row in read_records(path)]
    solved = [sum(e.success for e in episodes if e.group == str(i)) for i in range(12)]
    assert 0 < sum(solved) < 48
    for k in range(1, 5):
        expected = [pass_at_k(4, c, k) for c in solved]
        assert report.pass_at[k].value == pytest.approx(sum(expected) / 12)
        assert report.pass_hat[k].value == pytest.approx(
            sum(pass_hat_k(4, c, k) for c in solved) / 12
        )
    assert report.success.value == pytest.approx(sum(solved) / 48)
    assert list(report.by["limit"]) == [4, 12]
    easy = [e.success for e in episodes if e.task.to_json()["limit"] == 4]
    assert report.by["limit"][4].value == pytest.approx(sum(easy) / len(easy))
    assert report.success.low <= report.success.value <= report.success.high
    assert "pass@4" in str(report)


def test_several_attempts_at_a_task_count_as_one_observation_of_its_difficulty(tmp_path):
    rng = random.Random(0)
    episodes = []
    base = next(row.episode for row in read_records(_one(tmp_path)))
    for task in range(100):
        solvable = rng.random() < 0.5
        episodes += [replace(base, group=str(task), replica=r, success=solvable) for r in range(8)]
    rate = summarise(episodes, replicas=8).success
    assert rate.n == 800
    assert 0.15 < rate.high - rate.low < 0.25  # as 100 tasks, not as 800 independent attempts


def _one(tmp_path):
    return run(tmp_path / "one.jsonl", tasks=TASKS[:1], floors={}).record


def test_an_agents_own_failures_do_count(tmp_path):
    report = run(tmp_path / "e.jsonl", noop, floors={})
    assert report.success.n == 12
    assert report.success.value == 0.0
    assert set(report.outcomes) <= {Outcome.AGENT_ERROR, Outcome.TRUNCATED}


def test_bad_requests_are_refused_before_anything_is_played(tmp_path):
    path = tmp_path / "e.jsonl"
    with pytest.raises(ValueError, match=r"no field 'depth' to break down by.*'limit'"):
        run(path, by=("depth",))
    with pytest.raises(ValueError, match="no tasks"):
        run(path, tasks=[])
    assert not path.exists()
