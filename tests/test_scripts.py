"""Laws of the scripts: bad input is one line and exit code 1, and a teacher may be elsewhere."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from servers import small
from toys import Walks

from turnwise.agents.engines.standin import Settings, StandIn, served
from turnwise.agents.record import read_records
from turnwise.cli.script import run_script
from turnwise.trainers.lesson import CRAFT_RL, CRAFT_SFT, Lesson
from turnwise.trainers.lesson_run import run_lesson
from turnwise.trainers.model import save_model
from turnwise.trainers.schooling import Schooling, stages_of
from turnwise.trainers.teachers import TeacherMismatch
from turnwise.trainers.tutor import NoTeacher

torch.set_num_threads(1)
SCRIPTS = Path(__file__).parents[1] / "scripts"
BRIEF = replace(CRAFT_SFT, demos=16, steps=2, batch=4, check_every=2, check_tasks=2)
SHORT = replace(CRAFT_RL, steps=2, tasks_per_step=2, group_size=2, updates_per_step=1)


@pytest.fixture
def script(monkeypatch, capsys, tmp_path):
    """Runs a script in an empty folder: exit code, and what it wrote to stderr."""

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(SCRIPTS))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        return exit.value.code, capsys.readouterr().err

    return run


TRAINING = [f"train_{name}" for name in ("grpo", "sod", "tcod", "dagger", "pipeline")]


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--env", "turnwise/FilHunt-v1"], "did you mean 'turnwise/FileHunt-v1'"),
        (["--train.recipe", "nope"], "no recipe 'nope'"),
        (["--train.steps", "x"], "train.steps: invalid literal"),
        (["--train.steps", "-1"], "steps must be at least 1, got -1"),
        (["--env-kwargs", "{x"], "env_kwargs must be JSON, got '{x'"),
        (["--env-kwargs", '{"nope": 1}'], "takes no argument 'nope'"),
        (["--student", "/nowhere"], "no model in folder '/nowhere'"),
        (["--env", "test_scripts:Mute"], "Mute has no expert()"),
        (["--texts", "0"], "texts must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--student-sft.noise", "1.5"], "noise is a share from 0 to 1, got 1.5"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(script, tmp_path, name, arguments, why):
    code, err = script(name, *arguments, "--out", "run")
    assert code == 1 and len(err.splitlines()) == 1
    assert err.startswith(f"{name}.py: ") and why in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["train_sod", "train_tcod", "train_dagger", "train_pipeline"])
def test_a_teacher_that_is_not_there_is_found_out_before_a_student_is_made(script, tmp_path, name):
    code, err = script(name, "--teacher", "/nowhere", "--out", "run")
    assert code == 1 and "no model in folder '/nowhere'" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", ["train_families", "train_babyai", "demo", "compare_methods", "imitate_babyai"]
)
def test_the_other_scripts_answer_in_one_line_too(script, name):
    code, err = script(name, *(["tool"] if name == "train_families" else []), "--bogus", "3")
    assert code == 1 and err.startswith(f"{name}.py: ") and len(err.splitlines()) == 1


def test_a_comparison_that_there_is_not_is_named(script):
    code, err = script("compare_methods", "--only", "nope")
    assert code == 1 and "no experiment ['nope']; there are: " in err


def test_a_text_teacher_of_no_form_is_named_before_a_student_is_made(script, tmp_path):
    code, err = script("train_dagger", "--teacher", "openai:gpt", "--out", "run")
    assert code == 1 and "a served model is openai:MODEL@URL" in err
    assert not (tmp_path / "run").exists()


def test_debug_shows_where(monkeypatch):
    def work(read):
        raise KeyError("deep")

    monkeypatch.setattr(sys, "argv", ["some.py", "--debug"])
    with pytest.raises(KeyError, match="deep"):
        run_script(work)


class Mute(Walks):
    """A world without an expert."""

    expert = None


def lesson(out, name, **more) -> Lesson:
    method = replace(SHORT, recipe=name, recipe_options="{}", max_failed=1.0)
    world = {"env": "toys:Walks", "env_kwargs": "{}", "texts": 10}
    return Lesson(out=out, student_sft=BRIEF, train=method, test_tasks=4, **world, **more)


@pytest.fixture(scope="module")
def server():
    with served(StandIn(*small(3), Settings(max_model_len=512, max_logprobs=64))) as url:
        yield url


@pytest.mark.parametrize(
    ("name", "teacher"), [("sod", "{}"), ("dagger", "{}"), ("dagger", "openai:m@{}/v1")]
)
def test_a_teacher_at_an_address_teaches_and_is_not_measured(
    server, tmp_path, capsys, name, teacher
):
    where = teacher.format(server)
    assert run_lesson(lesson(tmp_path / "run", name, teacher=where)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary.pop("teacher") == {"not measured": where} and len(summary) == 2
    assert "not measured: it is served as" in capsys.readouterr().out
    played = [row.episode for row in read_records(tmp_path / "run" / "run" / "episodes.jsonl")]
    executors = {turn.executor for episode in played for turn in episode.turns}
    if not teacher.startswith("openai:"):  # what a random model says in text can hardly be said
        assert ("teacher" in executors) == (name == "dagger")


def test_a_pipeline_keeps_the_address_of_its_teacher_and_has_no_stage_for_it(tmp_path, console):
    plan = Schooling(out=tmp_path, teacher="http://h:1/v1")
    stages = stages_of(plan, console)
    assert [stage.name for stage in stages] == ["student", "bridge", "opd", "rl"]
    assert stages[1].plan["teacher"] == stages[1].run.args[1].teacher == "http://h:1/v1"


@pytest.fixture
def console():
    from rich.console import Console

    return Console()


@pytest.mark.parametrize(("name", "teacher"), [("gkd", "openai:m@http://h"), ("x", "http://h")])
def test_a_teacher_that_gives_too_little_is_refused_before_anything_is_made(
    tmp_path, name, teacher
):
    plan = lesson(tmp_path / "run", name, teacher=teacher)
    if name == "x":
        options = json.dumps({"white_box": True})
        train = replace(plan.train, recipe="dagger", recipe_options=options)
        plan = replace(plan, train=train)
    with pytest.raises(NoTeacher, match=r"more of a teacher than '[a-z:@/]+' gives: name a model"):
        run_lesson(plan)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_another_vocabulary_is_refused_before_anything_is_made(tmp_path):
    folder = save_model(*small(3), tmp_path / "teacher")
    plan = replace(lesson(tmp_path / "run", "sod", teacher=str(folder)), env="fakes:Guess")
    with pytest.raises(TeacherMismatch, match="is not the student's"):
        run_lesson(plan)
    assert not (tmp_path / "run").exists()
