"""Laws of stages and of the pipeline: each made once, resumed as if never stopped, all measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from turnwise.trainers import schooling
from turnwise.trainers.guard import Guard
from turnwise.trainers.lesson import CRAFT_RL, CRAFT_SFT
from turnwise.trainers.model import fingerprint, load_model
from turnwise.trainers.progress import Progress
from turnwise.trainers.schooling import Schooling, run_schooling
from turnwise.trainers.stages import Interrupted, Named, PlanChanged, Stage, run_stages

torch.set_num_threads(1)


def writes(name, text="weights", plan=None, fail=False):
    """A stage whose model is a file, and the list of what was run."""

    def run(folder):
        ran.append(name)
        (folder / "begun").touch()
        if fail:
            raise Interrupted(name)
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(text)
        return folder / "model"

    ran: list[str] = []
    return Stage(name, plan or {"steps": 3}, run), ran


def test_a_stage_is_made_once(tmp_path):
    stage, ran = writes("sft")
    assert stage.made(tmp_path) == stage.made(tmp_path) == tmp_path / "sft" / "model"
    assert ran == ["sft"]


def test_a_stage_that_was_stopped_is_gone_on_with_and_one_that_is_whole_is_not(tmp_path):
    first, ran_first = writes("sft")
    stopped, _ = writes("rl", fail=True)
    with pytest.raises(Interrupted):
        run_stages(tmp_path, [first, stopped], lambda name, model: {})
    second, ran_second = writes("rl")
    reports = run_stages(tmp_path, [first, second], lambda name, model: {})
    assert list(reports) == ["sft", "rl"]
    assert (ran_first, ran_second) == (["sft"], ["rl"])


@pytest.mark.parametrize("fail", [False, True])
def test_another_plan_is_refused_for_a_stage_that_is_whole_or_begun(tmp_path, fail):
    stage, _ = writes("sft", fail=fail)
    if fail:
        with pytest.raises(Interrupted):
            stage.made(tmp_path)
    else:
        stage.made(tmp_path)
    other, ran = writes("sft", plan={"steps": 4})
    with pytest.raises(PlanChanged, match="steps=3, and 4 is asked for: give another --out"):
        other.made(tmp_path)
    assert not ran


def test_a_later_stage_of_another_plan_is_refused_before_the_numbers_are_written_over(tmp_path):
    run_stages(tmp_path, [writes("sft")[0], writes("rl")[0]], lambda name, model: {})
    before = (tmp_path / "summary.json").read_text()
    changed = [writes("sft")[0], writes("rl", plan={"steps": 4})[0]]
    with pytest.raises(PlanChanged, match="steps=3, and 4 is asked for"):
        run_stages(tmp_path, changed, lambda name, model: {})
    assert (tmp_path / "summary.json").read_text() == before


def test_a_folder_may_be_moved(tmp_path):
    stage, ran = writes("sft")
    stage.made(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert stage.made(tmp_path / "there") == tmp_path / "there" / "sft" / "model"
    assert len(ran) == 1


def test_every_stage_is_measured_when_it_is_made_and_a_named_model_too(tmp_path):
    seen = []

    def measure(name, model):
        seen.append((name, model))
        written = tmp_path / "summary.json"
        assert list(json.loads(written.read_text()) if written.exists() else {}) == [
            earlier for earlier, _ in seen[:-1]
        ]
        return {}

    stages = [Named("student", "some/name"), writes("rl")[0]]
    run_stages(tmp_path, stages, measure)
    assert [(name, str(model)) for name, model in seen] == [
        ("student", "some/name"),
        ("rl", str(tmp_path / "rl" / "model")),
    ]


# ------------------------------------------------------------ the pipeline

BRIEF = replace(CRAFT_SFT, demos=16, steps=6, batch=4, check_every=9, learning_rate=6e-3)
LONGER = replace(BRIEF, demos=32, steps=30, batch=8, check_every=99)
SHORT = replace(CRAFT_RL, steps=2, tasks_per_step=2, group_size=8, updates_per_step=1)
SOON = Guard(every=1, patience=2)


def pipeline(out, **more):
    """A pipeline on walks. Its teacher ends its answers: cut ones would teach nothing."""
    default = Schooling()
    brief = {"steps": 2, "tasks_per_step": 2, "group_size": 2, "updates_per_step": 1}
    plan = {
        "student_sft": BRIEF,
        "teacher_sft": LONGER,
        "teacher_rl": SHORT,
        "bridge": replace(default.bridge, **brief, max_failed=1.0),
        "opd": replace(default.opd, **brief),
        "train": SHORT,
    }
    few = {"test_tasks": 4, "dev_tasks": 3, "probe_tasks": 2}
    guards = {"bridge_guard": SOON, "opd_guard": SOON}
    walks = {"env": "toys:Walks", "env_kwargs": "{}"}
    return Schooling(out=out, **{**walks, **plan, **few, **guards, **more})


@pytest.fixture(scope="module")
def newest():
    """Keep the newest weights, not the best: two probe tasks often tie, and the start would win."""
    with pytest.MonkeyPatch.context() as patch:
        for place in ("guard", "schooling"):
            patch.setattr(f"turnwise.trainers.{place}.best_of", max)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, newest):
    """A pipeline that nobody stopped."""
    out = tmp_path_factory.mktemp("pipeline") / "whole"
    assert run_schooling(pipeline(out)) == 0
    return out


STAGES = {"student": "", "teacher": "", "teacher_rl": "model", "bridge": "model", "opd": "model"}
STAGES["rl"] = "model"


def weights(out):
    return {
        name: fingerprint(load_model(str(out / name / where))[0]) for name, where in STAGES.items()
    }


def test_every_stage_of_the_pipeline_has_its_reports_on_dev_and_test(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert list(summary) == list(STAGES)
    for splits in summary.values():
        assert {name: found["episodes"] for name, found in splits.items()} == {"dev": 3, "test": 4}
    assert summary["student"]["test"]["floors"].keys() == {"noop", "random"}


def test_every_stage_of_the_miniature_changes_the_weights(whole):
    """Else equal weights after a kill would say nothing."""
    assert len(set(weights(whole).values())) == len(STAGES)


def before_its_model_is_there(patch):
    """Stop a stage that imitates after its last step, when all but saving is done."""
    patch.setattr("turnwise.trainers.lesson_run.save_model", interrupted)


def after_its_first_step(patch):
    """Stop a stage of training when it has learnt from one batch of two."""
    show = Progress.show
    patch.setattr(Progress, "show", lambda bar, row, **more: (show(bar, row), interrupted()))


def interrupted(*args, **more):
    raise KeyboardInterrupt


def records(out):
    """Every record of an evaluation, and what is in it."""
    return {path.name: path.read_bytes() for path in (out / "eval").glob("*.jsonl")}


def stage_of(record):
    """The stage whose model a record evaluates: student_dev.jsonl, student.noop.jsonl, ..."""
    return record.split(".")[0].removesuffix("_dev")


def earlier(stage):
    """The stages before one."""
    return list(STAGES)[: list(STAGES).index(stage)]


KILLS = {name: after_its_first_step for name in ("teacher_rl", "bridge", "opd", "rl")}
KILLS |= {name: before_its_model_is_there for name in ("student", "teacher")}


@pytest.mark.parametrize("stage", STAGES)
def test_a_pipeline_that_is_killed_in_a_stage_ends_with_the_same_weights(
    whole, tmp_path, stage, monkeypatch
):
    def killed(self, out):
        if self.name == stage:
            KILLS[stage](patch)
        return made(self, out)

    made = Stage.made
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(schooling.Stage, "made", killed)
        run_schooling(pipeline(tmp_path))
    note = json.loads((tmp_path / stage / "made.json").read_text())
    assert note["model"] is None
    looked = records(tmp_path)
    assert looked.keys() == {f for f in records(whole) if stage_of(f) in earlier(stage)}
    assert run_schooling(pipeline(tmp_path)) == 0
    now = records(tmp_path)
    assert {name: now[name] for name in looked} == looked and now.keys() == records(whole).keys()
    assert weights(tmp_path) == weights(whole)
    assert (tmp_path / "summary.json").read_text() == (whole / "summary.json").read_text()


def test_a_pipeline_under_another_guard_is_refused(whole):
    with pytest.raises(PlanChanged, match="guard="):
        run_schooling(pipeline(whole, opd_guard=Guard(every=2)))


def test_named_models_are_measured_and_not_made(whole, tmp_path):
    names = {"student": str(whole / "student"), "teacher": str(whole / "teacher_rl" / "model")}
    assert run_schooling(pipeline(tmp_path, **names)) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary) == ["student", "teacher", "bridge", "opd", "rl"]
    assert not (tmp_path / "student").exists() and not (tmp_path / "teacher").exists()
    assert weights(whole)["opd"] == fingerprint(load_model(str(tmp_path / "opd" / "model"))[0])


def test_a_pipeline_without_its_middle_stage_goes_from_the_bridge_to_the_reward(
    whole, tmp_path, capsys
):
    names = {"student": str(whole / "student"), "teacher": str(whole / "teacher_rl" / "model")}
    assert run_schooling(pipeline(tmp_path, skip_opd=True, **names)) == 0
    assert "the middle stage is left out" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary) == ["student", "teacher", "bridge", "rl"]
    config = json.loads((tmp_path / "rl" / "config.json").read_text())
    assert config["model"] == str(tmp_path / "bridge" / "model")
    with pytest.raises(PlanChanged, match="skip_opd=True, and None"):
        run_schooling(pipeline(tmp_path, **names))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"opd_guard": Guard(every=2.5)}, "whole number of steps"),
        ({"opd": replace(SHORT, lora_rank=4)}, "no LoRA"),
    ],
)
def test_what_the_guard_cannot_keep_is_refused_before_anything_is_made(tmp_path, wrong, why):
    with pytest.raises(ValueError, match=why):
        pipeline(tmp_path, **wrong)
