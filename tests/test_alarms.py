"""Alarms compare an agent with its own first steps, and tell once what most of a batch suffers."""

from __future__ import annotations

import json
import re

import pytest
import torch
from toy_runs import run
from toys import Walks

from turnwise.trainers.watch import Alarms

torch.set_num_threads(1)


def test_alarms_compare_with_the_first_steps_and_survive_a_resume():
    alarms = Alarms(baseline=3, recent=2)
    calm = [alarms.check({"entropy": 2.0, "action_tokens": 5.0, "reward": 0.5}) for _ in range(6)]
    assert calm == [[]] * 6
    resumed = Alarms(baseline=3, recent=2)
    resumed.load_state_dict(json.loads(json.dumps(alarms.state_dict())))
    for bell in (alarms, resumed):
        assert bell.check({"entropy": 0.1, "action_tokens": 5.0, "reward": 0.5}) == []
        found = bell.check({"entropy": 0.1, "action_tokens": 50.0, "reward": 0.5})
        assert found == ["entropy fell from 2 to 0.1", "action_tokens rose from 5 to 27.5"]


def test_a_policy_that_runs_away_in_late_turns_alone_sets_off_an_alarm():
    alarms, calm = Alarms(baseline=3, recent=2), {"kl_early": 1e-3, "kl_late": 2e-3}
    for _ in range(6):
        assert alarms.check(calm) == []
    assert alarms.check({**calm, "kl_late": 9e-2}) == []  # as large as that is no collapse
    assert alarms.check({**calm, "kl_late": 0.2}) == ["kl_late rose from 0.002 to 0.145"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("length_cut", "of the actions are cut at max_new_tokens; raise it"),
        ("teacher_missing", "of the tokens have no finite score of the teacher"),
        ("no_way", "of the attempts are played whole, as expert\\(\\) did not solve their task"),
        ("prelude_ended", "of the attempts were over before the agent's first turn"),
    ],
)
def test_what_most_of_a_batch_suffers_is_told_once_also_after_a_resume(name, what):
    bell = Alarms()
    assert bell.check({name: 0.5}) == []
    (told,) = bell.check({name: 0.75})
    assert re.match(f"75% {what}", told)
    bell.load_state_dict(json.loads(json.dumps(bell.state_dict())))
    assert [bell.check({name: share}) for share in (0.9, 0.1, 0.8)] == [[]] * 3


def test_an_alarm_is_in_the_metrics_of_its_step(tmp_path):
    class Fading(Walks):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, float(self.task.index < 10), *rest

    rows = run(tmp_path / "run", env=Fading, steps=15, tasks_per_step=1, checkpoint_every=0)
    logged = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for found in (rows, logged):
        alarms = [[a for a in row.get("alarms", ()) if "% of" not in a] for row in found]
        assert alarms[:14] == [[]] * 14
        assert "reward fell from 2 to 0" in alarms[14]


@pytest.mark.parametrize("paid", [1.0, 0.1, 0.7])
@pytest.mark.parametrize("name", ["turn_rloo", "dapo", "grpo", "dr_grpo", "reinforce_pp", "gigpo"])
def test_a_run_that_learns_nothing_says_so_once_and_why(tmp_path, name, paid):
    """Also where the mean of equal rewards is not quite their value."""

    class Dull(Walks):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, paid * float(rest[0] or rest[1]), *rest

    same = {"group_size": 7, "max_turns": 2, "steps": 4, "checkpoint_every": 0}
    rows = run(tmp_path / "run", env=Dull, recipe=name, **same)
    assert [row["tied_groups"] for row in rows] == [1] * 4
    if name != "reinforce_pp":  # the batch is its group
        assert [row["idle_groups"] for row in rows] == [1] * 4
    told = [[a for a in row.get("alarms", ()) if "earned the same" in a] for row in rows]
    assert [len(some) for some in told] == [0, 0, rows[0]["idle_groups"] == 1, 0]


def test_only_three_idle_steps_in_a_row_are_an_alarm():
    bell = Alarms()
    shares = [1.0, 1.0, 15 / 16, 1.0, 1.0, 1.0, 1.0]
    told = [bell.check({"idle_groups": share}) for share in shares]
    assert [len(some) for some in told] == [0, 0, 0, 0, 0, 1, 0]
    assert told[5][0].startswith("100% of the groups of three steps earned the same")
