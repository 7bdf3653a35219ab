"""Laws of the `train_*` scripts, on miniatures: all stages, each made once, all of it measured."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

from turnwise.agents.record import read_records
from turnwise.trainers.asked import asked
from turnwise.trainers.lesson import CRAFT_RL, CRAFT_SFT, Lesson
from turnwise.trainers.lesson_run import run_lesson
from turnwise.trainers.recipes import recipe
from turnwise.trainers.run_folder import RunFolderError
from turnwise.trainers.stages import PlanChanged
from turnwise.trainers.tutor import UnusedTeacher

SCRIPTS = Path(__file__).parents[1] / "scripts"
BRIEF = replace(CRAFT_SFT, demos=16, steps=2, batch=4, check_every=2, check_tasks=2)
SHORT = replace(CRAFT_RL, steps=2, tasks_per_step=2, group_size=2, updates_per_step=1)
OTHER = replace(SHORT, recipe="tcod_f2b", recipe_options="{}")
torch.set_num_threads(1)


def lesson(out, name, options="{}", **more) -> Lesson:
    # Teachers of two steps of imitation hardly end what they say.
    method = replace(SHORT, recipe=name, recipe_options=options, max_failed=1.0)
    usual = {"student_sft": BRIEF, "teacher_sft": BRIEF, "train": method, "test_tasks": 4}
    return Lesson(out=out, **{"teacher_rl": replace(SHORT, steps=1), **usual, **more})


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A whole lesson from nothing."""
    out = tmp_path_factory.mktemp("lesson") / "b2f"
    assert run_lesson(lesson(out, "tcod_b2f")) == 0
    return out


def made(out):
    """When each model and each number was written."""
    kept = [*out.rglob("*.safetensors"), *out.rglob("made.json"), *out.rglob("metrics.jsonl")]
    final = [path for path in kept if path.parent.name != "model"]
    return {path: path.read_bytes() for path in final}


def test_a_lesson_measures_student_teacher_and_result_above_the_floors(once):
    summary = json.loads((once / "summary.json").read_text())
    assert list(summary) == ["before", "teacher", "after"]
    assert all(s["success"]["n"] == s["episodes"] == 4 for s in summary.values())
    assert summary["before"]["floors"].keys() == {"noop", "random"}


def test_what_is_measured_is_played_whole_by_the_model_alone(once):
    for row in read_records(once / "eval" / "after.jsonl"):
        assert {turn.executor for turn in row.episode.turns} == {"student"}
        assert not {"cut", "prelude"} & row.episode.metrics.keys()


def test_the_same_command_again_makes_nothing_again_and_says_the_same(once, capsys):
    before, summary = made(once), (once / "summary.json").read_text()
    assert run_lesson(lesson(once, "tcod_b2f")) == 0
    assert made(once) == before and (once / "summary.json").read_text() == summary
    assert "(floor)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"student_sft": replace(BRIEF, noise=0.5)}, PlanChanged, r"noise=0\.1, and 0\.5"),
        ({"seed": 7}, PlanChanged, "seed=0, and 7 is asked for: give another --out"),
        (
            {"train": replace(SHORT, recipe="tcod_f2b", recipe_options="{}")},
            RunFolderError,
            "tcod_b2f",
        ),
    ],
)
def test_another_plan_is_not_mixed_with_what_is_there(once, change, error, why):
    with pytest.raises(error, match=why):
        run_lesson(lesson(once, "tcod_b2f", **change))


def test_named_models_are_taken_and_none_is_made(once, tmp_path):
    out, names = tmp_path / "run", {"student": once / "student", "teacher": once / "teacher"}
    names = {name: str(path) for name, path in names.items()}
    assert run_lesson(lesson(out, "sod", **names)) == 0
    assert {path.name for path in out.iterdir()} == {"eval", "run", "summary.json"}
    config = json.loads((out / "run" / "config.json").read_text())
    assert (config["model"], config["teacher"]) == (names["student"], names["teacher"])


def test_a_method_that_imitates_learns_from_the_teacher_that_is_named(once, tmp_path):
    names = {name: str(once / name) for name in ("student", "teacher")}
    assert run_lesson(lesson(tmp_path, "sft", **names)) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["teacher"] == names["teacher"]
    assert list(json.loads((tmp_path / "summary.json").read_text())) == [
        "before", "teacher", "after"
    ]  # fmt: skip
    played = [row.episode for row in read_records(tmp_path / "run" / "episodes.jsonl")]
    assert {turn.executor for episode in played for turn in episode.turns} == {"teacher"}


def test_a_method_without_a_teacher_makes_none(once, tmp_path):
    assert run_lesson(lesson(tmp_path, "grpo", student=str(once / "student"))) == 0
    assert list(json.loads((tmp_path / "summary.json").read_text())) == ["before", "after"]


def script(name) -> Lesson:
    """The lesson of a script."""
    path = SCRIPTS / f"train_{name}.py"
    found = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return getattr(module, name.upper())


@pytest.mark.parametrize("name", ["sod", "dagger", "pipeline"])
def test_another_environment_alone_has_no_arguments_of_the_scripts_own(name):
    own = script(name)
    assert asked(own, tyro.cli, []) == own
    assert asked(own, tyro.cli, ["--env", own.env]) == own
    sokoban = asked(own, tyro.cli, ["--env", "turnwise/Sokoban-v1"])
    assert sokoban.env_kwargs == "{}" and sokoban.make_env().tasks("train")
    named = asked(own, tyro.cli, ["--env", "turnwise/Sokoban-v1", "--env-kwargs", own.env_kwargs])
    assert named.env_kwargs == own.env_kwargs


def test_a_teacher_that_the_method_never_asks_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UnusedTeacher, match="'grpo' learns from no teacher, and teacher 'x'"):
        run_lesson(lesson(tmp_path / "run", "grpo", teacher="x"))
    assert not (tmp_path / "run").exists()


def test_dagger_measures_goes_on_and_has_floors_like_the_others(tmp_path):
    brief = {"steps": 2, "tasks_per_step": 2, "group_size": 2, "updates_per_step": 1}
    own = script("dagger")
    plan = replace(own, out=tmp_path, test_tasks=2, train=replace(own.train, **brief))
    assert run_lesson(plan) == 0
    first = made(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary) == ["before", "after"] and summary["before"]["floors"]
    assert run_lesson(plan) == 0
    assert made(tmp_path) == first


@pytest.mark.parametrize("name", ["grpo", "sod", "tcod", "dagger"])
def test_a_script_is_short_and_names_its_method(name):
    path = SCRIPTS / f"train_{name}.py"
    assert len(path.read_text().splitlines()) < 60
    plan = script(name).train
    assert recipe(plan.recipe, **plan.options_of_recipe()).name.startswith(name)
