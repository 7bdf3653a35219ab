"""Every recipe learns: what it is told to learn from is what moves success, and nothing else does.

Teachers: the environment pays nothing, so that a gain is the teacher's. Rewards: nobody teaches.
The controls take the source away and keep all else; success then stays where it was. The recipes
that are not here learn in test_taught_runs.py (opd, vopd, gkd, sod) and in test_dagger.py (sft,
dagger, guided_opd).
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_dagger import student_success
from test_taught_runs import master  # noqa: F401  (a fixture)
from toy_runs import config_of, fresh
from toys import Walks

from turnwise.trainers.loop import train
from turnwise.trainers.model import save_model
from turnwise.trainers.recipes import NAMES, recipe

torch.set_num_threads(1)

TAUGHT = {
    "tcod_f2b": {"every": 4},
    "tcod_b2f": {"every": 6},
    "exopd": {},
    "kdrl": {},
    "opd_then_rl": {"switch": 40},
}
"""Recipe to its options. Each comes to full depth, or stays with its teacher, within the run."""
PAID = [name for name in NAMES if recipe(name).distillation is None and not recipe(name).imitation]
ELSEWHERE = {"opd", "vopd", "gkd", "sod", "sft", "dagger", "guided_opd"}
BY_TEACHER = {"steps": 36, "learning_rate": 5e-3}
BY_REWARD = {"steps": 20, "learning_rate": 1e-2}
LEARNT, GUESSED = 0.7, 0.15
"""Success on 60 test tasks. A fresh model solves .01 of them; those who learn end above .9."""


class Unpaid(Walks):
    """Walks for which nobody is paid; they still succeed or fail."""

    def respond(self, action):
        return replace(super().respond(action), reward=0.0)


class Flat(Walks):
    """Walks that pay everyone the same when they end."""

    def respond(self, action):
        said = super().respond(action)
        return replace(said, reward=float(said.terminated))


def learn(out, name, env, *, teacher="", options=None, **more):
    """Train a fresh model to the end and return the metrics of each step."""
    batch = {"tasks_per_step": 6, "group_size": 8, "updates_per_step": 4, "checkpoint_every": 0}
    told = {"recipe": name, "recipe_options": json.dumps(options or {}), "teacher": str(teacher)}
    return list(train(config_of(out, **batch, **told, **more), model=fresh(), make_env=env))


@pytest.fixture
def itself(tmp_path):
    """The folder of the very weights that every student here starts from."""
    return save_model(*fresh(), tmp_path / "itself")


def test_no_recipe_is_left_out():
    assert {*TAUGHT, *PAID, *ELSEWHERE} == set(NAMES)


@pytest.mark.parametrize("name", TAUGHT)
def test_a_student_that_nobody_pays_comes_to_succeed_like_its_teacher(tmp_path, master, name):  # noqa: F811
    out, options = tmp_path / "run", TAUGHT[name]
    rows = learn(out, name, Unpaid, teacher=master, options=options, **BY_TEACHER)
    drift = [row["teacher_drift"] for row in rows]
    assert student_success(out) > LEARNT
    assert np.mean(drift[-4:]) < np.mean(drift[:4]) * 2 / 3
    assert all(row["reward"] == 0 for row in rows)


@pytest.mark.parametrize("name", TAUGHT)
def test_a_student_that_is_its_own_teacher_learns_nothing(tmp_path, itself, name):
    out, options = tmp_path / "run", TAUGHT[name]
    learn(out, name, Unpaid, teacher=itself, options=options, **BY_TEACHER)
    assert student_success(out) < GUESSED


def test_after_the_switch_the_reward_is_what_is_learnt_from(tmp_path, itself):
    out = tmp_path / "run"
    rows = learn(out, "opd_then_rl", Walks, teacher=itself, options={"switch": 0}, **BY_REWARD)
    assert student_success(out) > LEARNT
    assert all(row["teacher_coefficient"] == 0 for row in rows)


@pytest.mark.parametrize("name", PAID)
def test_a_student_that_is_paid_comes_to_succeed(tmp_path, name):
    learn(tmp_path / "run", name, Walks, **BY_REWARD)
    assert student_success(tmp_path / "run") > LEARNT


@pytest.mark.parametrize("name", ["turn_rloo", "grpo", "reinforce_pp", "mt_grpo"])
def test_a_student_that_is_paid_whatever_it_does_learns_nothing(tmp_path, name):
    """One recipe for each way to give credit: leave-one-out, normalised, whitened, summed."""
    learn(tmp_path / "run", name, Flat, **BY_REWARD)
    assert student_success(tmp_path / "run") < GUESSED
