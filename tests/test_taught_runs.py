"""Laws of runs with a teacher: students come to act like it, and a run resumes bit for bit."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pupils import TAUGHT
from toy_runs import config_of, fresh, history, same_weights
from toys import Walks

from turnwise.agents.renderer import Renderer
from turnwise.trainers.contexts import outcome_hint
from turnwise.trainers.distillation import Distillation
from turnwise.trainers.divergences import full
from turnwise.trainers.learner import Learner
from turnwise.trainers.loop import TooManyLost, train
from turnwise.trainers.model import save_model
from turnwise.trainers.model_teacher import ema
from turnwise.trainers.recipe import Recipe, no_credit
from turnwise.trainers.recipes import recipe
from turnwise.trainers.sft import demonstrations, imitate
from turnwise.trainers.surrogates import ppo
from turnwise.trainers.teachers import TeacherMismatch
from turnwise.trainers.tutor import NoTeacher

torch.set_num_threads(1)


# ------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    """A folder with a model that walks well, and the tokenizer of every student here."""
    model, tokenizer = fresh()
    renderer = Renderer(tokenizer)
    learner = Learner(model, learning_rate=1e-2, max_len=96)
    shown = demonstrations(Walks, Walks().tasks("train")[:64], renderer, seed=0, noise=0.0)
    for _ in imitate(learner, shown, steps=30, batch=16, seed=0):
        pass
    place = tmp_path_factory.mktemp("master")
    save_model(learner.model, tokenizer, place)
    return place


def go(out, name, teacher, **more):
    more = {"recipe": name, "teacher": str(teacher), **more}
    return list(train(config_of(out, **more), model=fresh(), make_env=Walks))


@pytest.mark.parametrize("name", ["opd", "vopd", "gkd", "sod"])
def test_a_student_comes_to_walk_like_its_teacher(tmp_path, master, name):
    more = {"steps": 40, "group_size": 8, "tasks_per_step": 6, "learning_rate": 5e-3}
    rows = go(tmp_path / "run", name, master, checkpoint_every=0, **more)
    success = [row["success"] for row in rows]
    drift = [row["teacher_drift"] for row in rows]
    assert np.mean(success[:3]) < 0.1 and np.mean(success[-4:]) > 0.7
    assert np.mean(drift[-4:]) < np.mean(drift[:3]) / 2


@pytest.mark.parametrize("name", [name for name in TAUGHT if recipe(name).imitation is None])
def test_every_recipe_with_a_teacher_runs_and_logs_finite_numbers(tmp_path, master, name):
    rows = go(tmp_path / "run", name, master, steps=2)
    for row in rows:
        numbers = [value for value in row.values() if isinstance(value, float)]
        assert all(map(math.isfinite, numbers))
        assert row["teacher_missing"] == 0 and row["teacher_drift"] > 0


def test_a_batch_of_which_every_episode_is_cut_short_is_taught_and_counted(tmp_path, master):
    for row in go(tmp_path / "run", "sod", master, steps=2, max_turns=1):
        assert row["truncated"] == 1 and row["success"] == 0 and row["teacher_missing"] == 0
        assert math.isfinite(row["loss"]) and row["grad_norm"] > 0


@pytest.mark.parametrize("name", ["sod", "dagger"])
def test_a_batch_that_is_full_before_its_first_turn_is_refused_by_name(tmp_path, master, name):
    class Wordy(Walks):
        def setup(self, task, rng):
            return 20 * super().setup(task, rng)

    how = {"white_box": True} if name == "dagger" else {}
    config = config_of(tmp_path, teacher=str(master), max_tokens=20)
    with pytest.raises(TooManyLost, match=r"no episode .* turn to train on: .*max_tokens 20 "):
        list(train(config, model=fresh(), make_env=Wordy, recipe=recipe(name, **how)))


def own_average() -> Recipe:
    from functools import partial

    how = Distillation(direct=full(), source=partial(ema, decay=0.5), context=outcome_hint)
    return Recipe(
        name="opd", source="", status="", credit=no_credit, surrogate=ppo(), distillation=how
    )


@pytest.mark.parametrize("kind", ["frozen", "average"])
def test_an_interrupted_lesson_resumes_bit_for_bit(tmp_path, master, kind):
    method = own_average() if kind == "average" else recipe("opd_then_rl", patience=2)

    def part(out, **more):
        named = str(master) if kind == "frozen" else ""
        config = config_of(out, teacher=named, **more)
        return list(train(config, model=fresh(), make_env=Walks, recipe=method))

    part(tmp_path / "whole")
    part(tmp_path / "cut", steps=4)
    saved = json.loads((tmp_path / "cut/checkpoints/step-000004/tutor.json").read_text())
    assert len(saved["success"]) == 4
    part(tmp_path / "cut", steps=6, resume=True)
    assert history(tmp_path / "whole") == history(tmp_path / "cut")
    assert same_weights(tmp_path / "whole", tmp_path / "cut")


def test_a_run_tells_its_teacher_what_the_recipe_says_and_the_teacher_listens(tmp_path):
    method = own_average()
    deaf = replace(method, distillation=replace(method.distillation, context=None))
    said = []
    for name, one in (("told", method), ("deaf", deaf)):
        config = config_of(tmp_path / name, steps=1)
        said += train(config, model=fresh(), make_env=Walks, recipe=one)
    assert [row["teacher_context"] for row in said] == [1, 0]
    assert said[1]["teacher_drift"] < 1e-4 < 1e-3 < said[0]["teacher_drift"]


def test_an_average_of_the_student_follows_it_through_a_run(tmp_path):
    model, tokenizer = fresh()
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = config_of(tmp_path / "run", steps=2, updates_per_step=1)
    list(train(config, model=(model, tokenizer), make_env=Walks, recipe=own_average()))
    saved = torch.load(tmp_path / "run/checkpoints/step-000002/teacher.pt", weights_only=True)
    moved = {n for n, p in first.items() if not torch.equal(saved[n], p)}
    assert moved == set(first)
    assert any(not torch.equal(saved[n], p) for n, p in model.named_parameters())


def test_a_hint_on_an_episode_of_full_length_does_not_end_the_run(tmp_path):
    def long_hint(episode):
        return "well " * (3 if episode.success else 60)

    method = replace(own_average(), distillation=replace(own_average().distillation,
                                                         context=long_hint))  # fmt: skip
    config = config_of(tmp_path / "run", steps=2)
    rows = list(train(config, model=fresh(), make_env=Walks, recipe=method))
    assert all(row["teacher_missing"] > 0 and math.isfinite(row["loss"]) for row in rows)


def test_steps_are_counted_and_all_attempts_too_where_no_group_is_kept(tmp_path, master):
    """Groups that tie in the third and fourth step are not kept: the schedule goes on."""

    class Tied(Walks):
        def respond(self, action):
            said = super().respond(action)
            index = self.task.index
            won = index % 3 == 0 if 6 <= index < 12 else self.rng.random() < 0.5
            return replace(said, reward=float(won), success=won)

    def mixed(group):
        return not 6 <= group.task.index < 12

    method = replace(recipe("opd_then_rl", switch=4), keep_group=mixed)
    config = config_of(tmp_path / "run", teacher=str(master), checkpoint_every=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("turnwise.trainers.attempts.ROUNDS", 1)
        rows = list(train(config, model=fresh(), make_env=Tied, recipe=method))
    assert [row["kept_groups"] for row in rows] == [3, 3, 0, 0, 3, 3]
    assert [row.get("teacher_coefficient") for row in rows] == [1, 1, None, None, 0, 0]
    (saved,) = (tmp_path / "run").glob("checkpoints/*6/tutor.json")
    seen = json.loads(saved.read_text())
    assert seen["success"] == [row["success"] for row in rows]
    assert seen["success"][2:4] == pytest.approx([1 / 3, 1 / 3])
    assert [math.isnan(drift) for drift in seen["drift"]] == [False] * 2 + [True] * 4


def test_a_recipe_without_its_teacher_says_how_to_name_one(tmp_path):
    with pytest.raises(NoTeacher, match="--teacher FOLDER"):
        go(tmp_path / "run", "opd", "")


def test_a_teacher_with_other_tokens_is_refused_before_anything_is_played(tmp_path, master):
    other, tokenizer = fresh()
    tokenizer.add_tokens(["<zebra>"])
    other.resize_token_embeddings(len(tokenizer))
    save_model(other, tokenizer, tmp_path / "other")
    with pytest.raises(TeacherMismatch, match="zebra"):
        go(tmp_path / "run", "opd", tmp_path / "other")
    assert not (tmp_path / "run" / "episodes.jsonl").exists()
