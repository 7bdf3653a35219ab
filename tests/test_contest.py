"""Laws of a comparison that is run: equal starts, charged turns, and nothing is run twice."""

import json
import shutil
from dataclasses import replace

import pytest
from contests import EXPERIMENTS, SMALL, uniform

from turnwise.trainers import contest_models, contest_run, suite
from turnwise.trainers.contest import Arm, Job
from turnwise.trainers.contest_models import beginning, teacher_of
from turnwise.trainers.contest_run import run
from turnwise.trainers.guard import Guard
from turnwise.trainers.model import load_model
from turnwise.trainers.results_page import page_of
from turnwise.trainers.suite import Suite, run_suite


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The small comparison, run once."""
    out = tmp_path_factory.mktemp("compare")
    how = Suite(
        out=out, results=out / "compact", seeds=(0, 1), dev_seeds=(0,), jobs=1, say=lambda _: None
    )
    run_suite([SMALL], how)
    return how


def test_every_arm_of_a_seed_begins_with_the_same_student_near_the_target(done):
    rows = json.loads((done.results / "small.json").read_text())["rows"]
    assert [(row["arm"], row["seed"]) for row in rows] == [
        (arm.name, seed) for seed in (0, 1) for arm in SMALL.arms
    ]
    for seed in (0, 1):
        assert len({json.dumps(row["start"]) for row in rows if row["seed"] == seed}) == 1
        made = beginning(SMALL, seed, done.out) / "made.json"
        assert abs(json.loads(made.read_text())["progress"] - 0.3) <= 0.2


def test_a_run_ends_with_the_step_that_reaches_its_budget(done):
    for row in json.loads((done.results / "small.json").read_text())["rows"]:
        assert 150 <= row["env_steps"] <= 150 + 4 * 4 + 32 * 4 and row["updates"] > 0
        assert row["curve"][0][0] == 0 and row["curve"][-1][0] == row["env_steps"]
        assert {"teacher_weight_on", "turns_on", "teacher_kl_on"} <= row["metrics"]["first"].keys()


def test_what_was_run_is_read_and_what_depends_on_another_setting_is_not(done, monkeypatch):
    monkeypatch.setattr(contest_run, "_Run", _never)
    job = Job(experiment=SMALL, arm=SMALL.arms[0], seed=0, rate=1e-3)
    there = {path.stem for path in (done.out / "results").iterdir()}
    rates = json.loads((done.results / "small.json").read_text())["rates"]
    assert replace(job, rate=rates["SOD"]).key in there
    assert run(replace(job, rate=rates["SOD"]), done.out)["seed"] == 0
    for other in (
        replace(job, seed=7),
        replace(job, rate=0.5),
        replace(job, arm=replace(job.arm, change=uniform, options={"floor": 0.1})),
        replace(job, experiment=replace(SMALL, budget=151)),
        replace(job, split="dev", seed=1),
        replace(job, experiment=replace(SMALL, models=replace(SMALL.models, recall=0))),
    ):
        assert other.key not in there
    assert replace(job, arm=replace(job.arm, name="another name")).key == job.key


def _never(*args):
    raise AssertionError("a run that is there was run again")


def test_a_run_whose_row_is_kept_is_not_made_again_where_its_file_is_gone(
    done, tmp_path, monkeypatch
):
    compact = tmp_path / "compact" / "small.json"
    compact.parent.mkdir()
    shutil.copy(done.results / "small.json", compact)
    before = compact.read_text()
    monkeypatch.setattr(suite, "run", _never)
    monkeypatch.setattr(suite, "teachers", _never)
    run_suite([SMALL], replace(done, out=tmp_path, results=compact.parent))
    assert compact.read_text() == before
    another = replace(SMALL, arms=[replace(SMALL.arms[0], options={"floor": 0.1})], pairs=())
    with pytest.raises(AssertionError, match="run again"):
        run_suite([another], replace(done, out=tmp_path, results=compact.parent))


def test_a_part_of_the_seeds_leaves_the_rows_of_the_others(done, tmp_path):
    compact = tmp_path / "small.json"
    shutil.copy(done.results / "small.json", compact)
    before = json.loads(compact.read_text())
    for seeds in ((1,), (0,), (0, 1)):
        run_suite([SMALL], replace(done, results=tmp_path, seeds=seeds))
        after = json.loads(compact.read_text())
        assert sorted(map(str, after["rows"])) == sorted(map(str, before["rows"]))
    assert after == before


def test_rows_that_are_kept_and_began_elsewhere_are_not_set_beside_new_ones(done, tmp_path):
    compact = tmp_path / "small.json"
    found = json.loads((done.results / "small.json").read_text())
    found["rows"] = [row for row in found["rows"] if row["arm"] == "SOD"]
    found["rows"][1]["start"]["progress"] += 0.01
    compact.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"small, seed 1: not all .* remove it to run all arms"):
        run_suite([SMALL], replace(done, results=tmp_path))


def test_what_a_teacher_reaches_is_measured_kept_and_shown_beside_the_floors(done):
    found = json.loads((done.results / "small.json").read_text())
    model = load_model(str(teacher_of(SMALL, "mini", done.out)))
    env = SMALL.make_env()()
    again = contest_models.scored(*model, SMALL, env.tasks("test")[: SMALL.tests], 0)
    env.close()
    assert found["teachers"] == {"mini": {**again, "key": SMALL.key_of_teacher("mini")}}
    page = page_of([SMALL], done.results)
    assert f"| *teacher: mini* | {again['success']:.3f} |" in page
    starts = [row["start"]["progress"] for row in found["rows"] if row["arm"] == "SOD"]
    told = " ".join(f"{start:.2f}".lstrip("0") for start in starts)
    assert f"Progress at the start, by seed: {told}." in page


def test_the_score_of_another_teacher_of_the_same_name_is_not_kept(done, tmp_path, monkeypatch):
    shutil.copy(done.results / "small.json", tmp_path / "small.json")
    other = replace(SMALL.teachers["mini"], noise=0.2)
    measured = {"mini": {"success": 0.5, "progress": 0.5}}
    monkeypatch.setattr(suite, "teachers", lambda about, folder: measured)
    about = replace(SMALL, teachers={"mini": other})
    again = suite._Comparison(about, replace(done, results=tmp_path), None)._teachers()
    assert again == {"mini": {**measured["mini"], "key": about.key_of_teacher("mini")}}


def test_an_arm_may_have_rates_of_its_own_and_then_none_of_another(done, tmp_path):
    own = replace(SMALL.arms[0], rates=(2e-3,))
    about = replace(SMALL, arms=[own], pairs=())
    run_suite([about], replace(done, results=tmp_path, seeds=(0,)))
    found = json.loads((tmp_path / "small.json").read_text())
    assert found["rates"] == {"SOD": 2e-3} and found["dev"] == []
    assert [row["rate"] for row in found["rows"]] == [2e-3]
    with pytest.raises(ValueError, match="SOD has rates of its own and that of another"):
        replace(own, rate_of="another")


def test_a_control_takes_the_rate_of_its_method(done):
    found = json.loads((done.results / "small.json").read_text())
    rates = {row["arm"]: row["rate"] for row in found["rows"]}
    assert rates["uniform"] == rates["SOD"] == found["rates"]["SOD"]


def test_what_was_tried_on_dev_seeds_is_kept_and_the_best_of_it_was_taken(done):
    found = json.loads((done.results / "small.json").read_text())
    tried = {row["rate"]: row["success"] + row["progress"] for row in found["dev"]}
    assert {(row["arm"], row["seed"]) for row in found["dev"]} == {("SOD", 0)}
    assert tried.keys() == {1e-3, 3e-3} and tried[found["rates"]["SOD"]] == max(tried.values())
    shown = f"{tried[1e-3] / 2:.2f} at 0.001".lstrip("0")
    assert f"by rate: SOD {shown}, " in page_of([SMALL], done.results)


def test_the_page_holds_every_arm_floor_and_difference(done):
    page = page_of([SMALL, *EXPERIMENTS[:1]], done.results)
    for text in ("| SOD |", "| uniform |", "*start*", "floor: anything", "SOD - uniform"):
        assert text in page
    assert "## Not run" in page and EXPERIMENTS[0].name in page


# Charging and controls


def test_turns_that_an_expert_replays_are_charged(done):
    arm = Arm(name="B2F", method="tcod_b2f", options={"every": 100}, teacher="mini")
    job = Job(experiment=replace(SMALL, budget=1), arm=arm, seed=0, rate=1e-3)
    found = run(job, done.out)  # one step: 4 attempts at the last stage, 1 turn played before each
    assert found["env_steps"] >= 4 * 2
    own = found["metrics"]["first"]["turns"]
    assert own == pytest.approx(found["env_steps"] / 4), (
        "all turns of the record, replayed ones too"
    )


def test_a_pipeline_leaves_its_teacher_and_is_charged_for_looking_whether_it_should(done):
    first = Arm(name="first", method="tcod_f2b", options={"every": 1}, teacher="mini")
    after, soon = Arm(name="after", method="turn_rloo"), Guard(every=1 / 8, patience=1)
    both = replace(first, name="both", then=after, guard=soon)
    job = Job(experiment=replace(SMALL, budget=2000), arm=both, seed=0, rate=1e-5)
    found = run(job, done.out)  # at this rate nothing rises for long
    looked = contest_run.VALIDATED * found["end"]["turns"]
    (left,) = found["left_at"]
    assert looked < left < found["env_steps"]
    assert "teacher_kl_on" in found["metrics"]["first"]
    assert "teacher_kl_on" not in found["metrics"]["last"]


def test_each_stage_of_a_pipeline_is_left_by_its_own_time(done):
    first = Arm(name="first", method="tcod_f2b", options={"every": 1}, teacher="mini")
    after, soon = Arm(name="after", method="turn_rloo"), Guard(every=1 / 8, patience=1)
    second = replace(first, then=after, guard=replace(soon, settle=1 / 4))
    three = replace(first, name="three", then=second, guard=soon)
    job = Job(experiment=replace(SMALL, budget=4000), arm=three, seed=0, rate=1e-5)
    one, other = run(job, done.out)["left_at"]
    assert other - one >= 4000 / 4  # it settles from where it begins, not from the first stage


def test_a_run_that_is_stopped_amid_its_steps_leaves_no_result(done, monkeypatch):
    def cut(*args, **kwargs):
        yield {"step": 1.0, "env_steps": 4.0, "policy_version": 1}

    monkeypatch.setattr(contest_run, "train", cut)
    job = Job(experiment=SMALL, arm=SMALL.arms[0], seed=1, rate=0.123)
    with pytest.raises(KeyboardInterrupt, match="has no result"):
        run(job, done.out)
    assert not (done.out / "results" / f"{job.key}.json").exists()


@pytest.mark.parametrize("change", [{"max_tokens": 300}, {"max_new_tokens": 5}, {"recall": 0}])
def test_who_begins_depends_on_what_an_agent_may_read_and_say(change):
    other = replace(SMALL, models=replace(SMALL.models, **change))
    assert contest_models.limits(other) == {**contest_models.limits(SMALL), **change}


def test_the_stages_of_a_pipeline_share_a_teacher():
    second = Arm(name="second", method="opd", teacher="other")
    arm = Arm(name="first", method="opd", teacher="mini", then=second)
    with pytest.raises(ValueError, match="two teachers"):
        arm.to_json()


def test_a_model_of_a_comparison_loads_like_any_other(done):
    model, tokenizer = load_model(str(beginning(SMALL, 0, done.out)))
    assert model.config.hidden_size == 16 and len(tokenizer) > 256
