"""Laws of runs by a curriculum: they go as deep as told, also when resumed or measured."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from long_walks import LONG, fresh_long, go
from toy_runs import history, same_weights
from toys import Walks

from turnwise.agents.jobs import Job
from turnwise.agents.record import read_records
from turnwise.agents.reenact import as_played
from turnwise.agents.renderer import Renderer
from turnwise.agents.rollout import Settings, play
from turnwise.envs.types import Stop
from turnwise.trainers.curriculum import Depth, climbed
from turnwise.trainers.model import load_model, save_model
from turnwise.trainers.model_teacher import ema
from turnwise.trainers.pipeline import measure, policy_of
from turnwise.trainers.recipes import recipe
from turnwise.trainers.ways import NoExpert

torch.set_num_threads(1)


# ------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    """Some other model with the same tokenizer."""
    model, tokenizer = fresh_long(seed=1)
    return save_model(model, tokenizer, tmp_path_factory.mktemp("master"))


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


def without_ways(out):
    """The history of a run; a resumed one finds ways again, which is all that may differ."""
    rows = [json.loads(line) for line in history(out)]
    return [{k: v for k, v in row.items() if k != "way_turns"} for row in rows]


class Alone(Walks):
    """Nobody demonstrates; any letter that is whole is right."""

    expert = None
    wanted = frozenset(map(chr, range(0x800)))


def test_a_curriculum_follows_the_teachers_own_way_where_there_is_no_expert(tmp_path, master):
    env = partial(Alone, length=2)
    method = recipe("tcod_b2f", every=2)
    rows = go(tmp_path / "run", method, master, env=env, learning_rate=1e-6)
    lost = [row["no_way"] for row in rows]
    assert 0 < np.mean(lost) < 1, "some ways are solved by the teacher, and some are not"
    model, tokenizer = load_model(str(master))
    guide = policy_of(model, Renderer(tokenizer), 1.0, 96, 3)
    for step, episodes in episodes_by_step(tmp_path / "run").items():
        for episode in episodes:
            shown = [turn.action for turn in episode.turns if turn.executor == "expert"]
            left = 1 + step // 2
            assert shown == way_of(guide, env, episode)[: max(0, 2 - left)]
    again = go(tmp_path / "again", method, master, env=env, learning_rate=1e-6)
    assert [row["start"] for row in again] == [row["start"] for row in rows]


def test_batches_in_flight_take_turns_with_a_teacher_that_shows_the_way(tmp_path, master):
    env, method = partial(Alone, length=2), recipe("tcod_b2f", every=1)
    how = {"env": env, "steps": 5, "tasks_per_step": 8, "learning_rate": 1e-6}
    alone = go(tmp_path / "alone", method, master, **how)
    rows = go(tmp_path / "run", method, master, pipeline_depth=3, **how)
    assert [row["no_way"] for row in rows] == [row["no_way"] for row in alone]
    assert all(row["lost"] == 0 for row in rows)


def way_of(guide, env, episode):
    """What a policy does at the task of an episode, if it solves it."""
    (task,) = (task for task in env().tasks("train") if task.key == episode.task.key)
    job = Job(task, episode.task.key, 0, episode.env_seed, episode.env_seed)
    (alone,) = play([job], env, guide, Settings(max_tokens=96))
    return [as_played(turn) for turn in alone.turns] if alone.success else []


@pytest.mark.parametrize("expert", [property(), None])
def test_a_curriculum_that_follows_a_way_is_refused_where_nobody_shows_one(
    tmp_path, master, expert
):
    Lone = type("Lone", (Walks,), {"expert": expert})
    following = recipe("tcod_b2f")
    following = replace(
        following, distillation=replace(following.distillation, source=partial(ema, decay=0.5))
    )
    with pytest.raises(NoExpert, match=r"Lone has no expert\(\).*tcod_f2b"):
        go(tmp_path / "run", following, env=partial(Lone, length=6))
    assert not (tmp_path / "run").exists()


def test_deeper_attempts_set_off_no_alarm_for_their_turns_and_rewards(tmp_path, master):
    method = recipe("tcod_b2f", every=3)
    rows = go(tmp_path / "run", method, master, steps=18, learning_rate=1e-6, checkpoint_every=0)
    earned = [row["reward"] for row in rows]
    assert np.mean(earned[-5:]) < 0.5 * np.mean(earned[:10])  # what the alarm would compare
    assert not [alarm for row in rows for alarm in row.get("alarms", ()) if "reward" in alarm]
