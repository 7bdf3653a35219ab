"""No problem of one split is asked in another, however few problems the knobs leave."""

import importlib
from collections.abc import Callable
from itertools import combinations

import pytest

from turnwise.envs import make
from turnwise.envs.split_shares import SHARES, belongs, drawn_for
from turnwise.envs.types import canonical_json


def module(env):
    return importlib.import_module(type(env.unwrapped).__module__)


def text_of_problem(env, task):
    return module(env).task_problem(task).text


def picture(env, task):
    level = module(env).task_level(task)
    return level.floor, level.goals


def brief(env, task):
    return module(env).task_world(task).text


def query(env, task):
    from turnwise.envs.builtin.sql_tasks import make_world

    return make_world(canonical_json(task.to_json())).question.sql


NARROW: dict[str, tuple[str, dict, int, Callable]] = {
    "a sum of digits": ("Calculator", {"steps": 1, "digits": 1}, 1500, text_of_problem),
    "one kind of question": ("PythonTool", {"kinds": ("digit_sum",)}, 600, text_of_problem),
    "small rooms": ("Sokoban", {"pushes": 2}, 400, picture),
    "one schema": ("Sql", {"depth": 1, "schemas": ("shop",)}, 60, query),
    "one field": (
        "Forms",
        {"pages": 1, "fields": 1, "distractors": 0, "strict": False},
        900,
        brief,
    ),
}


@pytest.mark.parametrize("name", NARROW)
def test_no_problem_of_one_split_is_asked_in_another(name):
    id, knobs, count, content = NARROW[name]
    env = make(f"turnwise/{id}-v1", **knobs)
    seen = {}
    for split in env.unwrapped.splits:
        tasks = env.unwrapped.tasks(split)
        seen[split] = {content(env, tasks[i]) for i in range(count if split == "train" else 60)}
    for one, two in combinations(seen, 2):
        assert not seen[one] & seen[two], (one, two)
    assert min(map(len, seen.values())) > 5


def test_every_content_belongs_to_one_split_and_shares_are_as_they_say():
    found = [[split for split in SHARES if belongs(split, ["problem", i])] for i in range(3000)]
    assert all(len(splits) == 1 for splits in found)
    counted = {split: found.count([split]) / 3000 for split in SHARES}
    for split, classes in SHARES.items():
        assert abs(counted[split] - len(classes) / 10) < 0.03


def test_a_split_that_has_no_problem_is_named():
    mine = next(split for split in SHARES if belongs(split, "the only one"))
    assert drawn_for(mine, lambda: "the only one", str) == "the only one"
    other = next(split for split in SHARES if split != mine)
    with pytest.raises(RuntimeError, match=f"split '{other}'"):
        drawn_for(other, lambda: "the only one", str)
