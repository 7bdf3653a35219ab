"""Laws of the limits of a lesson: what is asked for stays, what is left out holds the expert."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import tyro
from rich.console import Console
from toys import Walks

from turnwise.agents.renderer import Renderer
from turnwise.agents.rollout import Settings
from turnwise.envs.extras import MissingExtra
from turnwise.envs.registry import list_envs
from turnwise.sandboxes.base import NoSafeSandbox
from turnwise.trainers import asked as asking
from turnwise.trainers.asked import asked, fitted, limits_of
from turnwise.trainers.config import TrainConfig
from turnwise.trainers.experts import ExpertFailed, Needs, NoDemonstrations, solved
from turnwise.trainers.lesson import CRAFT_SFT, Lesson
from turnwise.trainers.lesson_run import imitation, run_lesson
from turnwise.trainers.model import load_model, transcripts
from turnwise.trainers.schooling import Schooling
from turnwise.trainers.sft import expert_episodes

torch.set_num_threads(1)
REGISTERED = [spec.id for spec in list_envs() if spec.id.startswith("turnwise/")]
BRIEF = replace(CRAFT_SFT, demos=4, steps=1, batch=1, check_every=9)
OWN = Lesson(out=Path("unused"))


def lesson(out, *args, **more) -> Lesson:
    own = Lesson(out=out, student_sft=BRIEF, texts=8, **more)
    return asked(own, tyro.cli, list(args))


@pytest.fixture
def said():
    """A console that keeps what is printed."""
    return Console(file=io.StringIO(), width=300)


def shows(plan, tokenizer, tasks, settings):
    """What the expert of a lesson shows under some settings."""
    stumbles = {"noise": BRIEF.noise, "malformed": BRIEF.malformed}
    renderer = Renderer(tokenizer)
    played = expert_episodes(plan.make_env, tasks, renderer, seed=0, settings=settings, **stumbles)
    return solved(played)


@pytest.mark.parametrize("id", REGISTERED)
def test_a_lesson_holds_the_demonstrations_of_every_registered_environment(
    id, tmp_path, said, monkeypatch
):
    monkeypatch.setattr(asking, "LOOKED_AT", BRIEF.demos)
    try:
        plan = fitted(lesson(tmp_path, "--env", id), said)
    except (MissingExtra, NoSafeSandbox) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    student = imitation(plan, "student", plan.student_sft, said).made(tmp_path)
    model, tokenizer = load_model(str(student))
    assert model.config.max_position_embeddings >= plan.train.max_tokens
    tasks, shown = plan.make_env().tasks("train")[: BRIEF.demos], partial(shows, plan, tokenizer)
    held = shown(tasks, Settings(max_tokens=plan.train.max_tokens))
    assert [e.task for e in held] == [e.task for e in shown(tasks, None)]
    turns = [turn for episode in held for turn in episode.turns if turn.executor == "expert"]
    assert max(len(turn.action_ids) for turn in turns) <= plan.train.max_new_tokens


def test_a_script_on_its_own_environment_leaves_no_limit_to_the_expert():
    assert asked(OWN, tyro.cli, []).fit == ()
    assert asked(OWN, tyro.cli, ["--env-kwargs", OWN.env_kwargs]).fit == ()


def test_a_limit_that_the_command_line_names_is_not_left_to_the_expert():
    usual = str(OWN.train.max_tokens)  # also where it names what is usual
    plan = asked(OWN, tyro.cli, ["--env", "turnwise/Sql-v1", "--train.max-tokens", usual])
    assert set(limits_of(OWN)) - set(plan.fit) == {"train.max_tokens"}


@pytest.mark.parametrize("own", [OWN, Schooling()], ids=["lesson", "pipeline"])
def test_another_recipe_has_no_options_of_the_scripts_own(own):
    usual, named = own.train.recipe_options, ["--train.recipe", "grpo"]
    assert json.loads(usual), "else there is nothing to leave out"
    assert asked(own, tyro.cli, named).train.recipe_options == "{}"
    assert asked(own, tyro.cli, [*named, "--train.recipe-options", usual]).train == replace(
        own.train, recipe="grpo"
    )
    kept = asked(own, tyro.cli, ["--train.recipe", own.train.recipe, "--seed", "3"])
    assert kept.train == own.train and kept.teacher_rl == own.teacher_rl


def test_all_runs_of_a_pipeline_get_the_room_that_the_expert_needs(tmp_path, said):
    own = Schooling(out=tmp_path, texts=8)
    few = ["--env", "turnwise/Sokoban-v1", "--env-kwargs", '{"pushes": 1}', "--opd.max-tokens", "7"]
    plan = fitted(asked(own, tyro.cli, few), said)
    limits = {name: value for name, value in limits_of(plan).items() if "new" not in name}
    needed = json.loads((tmp_path / "limits" / "limits.json").read_text())["max_tokens"]
    assert limits.pop("opd.max_tokens") == 7
    assert len(limits) == 3 and all(value > needed for value in limits.values())


def test_what_the_usual_limits_hold_stays_as_it_is_and_what_they_do_not_has_a_margin():
    assert Needs(384, 8).limit("max_tokens", 384) == 384
    assert Needs(385, 9).limit("max_tokens", 384) == 512
    assert Needs(385, 9).limit("max_new_tokens", 8) == 12
    assert Needs(4000, 9).limit("max_tokens", 384, positions=2048) == 2048


def test_a_limit_that_there_is_not_is_refused(said):
    with pytest.raises(ValueError, match=r"fit names \['train.most'\]; there are: teacher_rl"):
        fitted(replace(OWN, fit=("train.most",)), said)


class Halfway(Walks):
    """Half of its walks are too long for forty tokens."""

    def setup(self, task, rng):
        self.length = 2 if task.index % 2 else 9
        return super().setup(task, rng)


class Confused(Walks):
    def expert(self):
        raise KeyError("no key in this world")


WALKS = {"env_kwargs": "{}", "train": TrainConfig(max_tokens=48, max_new_tokens=8)}


def test_demonstrations_that_are_cut_are_counted_in_one_line(tmp_path, said):
    plan = Lesson(out=tmp_path, env="test_asked:Halfway", student_sft=BRIEF, **WALKS)
    imitation(plan, "student", BRIEF, said).made(tmp_path)
    assert "2 of 4 demonstrations were cut at max_tokens 48" in said.file.getvalue()


def test_an_expert_that_was_cut_is_not_said_to_have_failed(tmp_path, said):
    short = {**WALKS, "train": TrainConfig(max_tokens=10, max_new_tokens=8)}
    plan = Lesson(out=tmp_path, env="test_asked:Walks", student_sft=BRIEF, **short)
    with pytest.raises(NoDemonstrations, match=r"4 were cut at max_tokens 10: raise it$"):
        imitation(plan, "student", BRIEF, said).made(tmp_path)


def test_an_expert_that_raises_is_named():
    with pytest.raises(ExpertFailed, match=r"of Confused raised KeyError: 'no key in this world'"):
        transcripts(Confused, Confused().tasks("train")[:1], 0)


def test_a_lesson_longer_than_usual_has_a_model_that_holds_it(tmp_path):
    brief = TrainConfig(
        steps=1, tasks_per_step=1, group_size=2, max_tokens=1500, max_new_tokens=4, max_failed=1.0
    )
    plan = lesson(tmp_path, "--env", "toys:Walks", "--test-tasks", "2", train=brief, fit=())
    assert run_lesson(plan) == 0
    assert load_model(str(tmp_path / "student"))[0].config.max_position_embeddings == 1500
