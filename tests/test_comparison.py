"""Laws of a comparison: equal starts, charged turns, controls that change one thing, one page."""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.agents.rollout import jobs_for, play
from turnwise.envs.builtin.corridor import Corridor
from turnwise.trainers import contest_models, contest_run, suite
from turnwise.trainers.comparison import area, best_rate, crossing, paired, thirds, verdict
from turnwise.trainers.contest import Arm, Experiment, Job, Models, School
from turnwise.trainers.contest_models import beginning
from turnwise.trainers.contest_run import run
from turnwise.trainers.equal_start import StartPlan, TargetMissed, equal_start, interpolated
from turnwise.trainers.guard import Guard
from turnwise.trainers.model import load_model
from turnwise.trainers.results_page import page_of
from turnwise.trainers.suite import Suite, run_suite
from turnwise.trainers.watch import env_steps, shares_of_kinds

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from compare_methods import EXPERIMENTS  # noqa: E402
from compared.arms import SOD, shuffled, uniform  # noqa: E402

RELAXED = settings(deadline=None, max_examples=40)
scores = st.dictionaries(st.integers(0, 20), st.floats(0, 1), min_size=3, max_size=8)


# Numbers


@RELAXED
@given(scores, st.floats(-0.5, 0.5))
def test_a_constant_gap_is_found_exactly_and_has_no_width(rival, gap):
    found = paired({seed: score + gap for seed, score in rival.items()}, rival)
    assert found.value == pytest.approx(gap) and found.n == len(rival)
    assert found.high - found.low == pytest.approx(0, abs=1e-6)


@RELAXED
@given(scores, scores)
def test_a_difference_is_that_of_the_common_seeds_and_turns_its_sign_with_its_sides(one, other):
    there, back = paired(one, other), paired(other, one)
    assert there.n == len(one.keys() & other.keys())
    if there.n > 1:
        assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_pairing_takes_the_seeds_own_difficulty_out():
    seeds = {seed: seed / 10 for seed in range(8)}
    better = {seed: score + 0.05 + 0.01 * (seed % 2) for seed, score in seeds.items()}
    assert verdict(paired(better, seeds)) == "above"
    unpaired = dict(zip(better, reversed(better.values()), strict=True))
    assert verdict(paired(unpaired, seeds)) == "level"


def test_the_interval_is_students():
    found = paired({1: 0.1, 2: 0.2, 3: 0.6}, {1: 0.0, 2: 0.0, 3: 0.0})
    assert found.high - found.value == pytest.approx(4.302653 * 0.2645751 / math.sqrt(3), rel=1e-5)


@RELAXED
@given(st.floats(0, 1), st.lists(st.floats(0, 500), max_size=5))
def test_the_area_under_a_level_curve_is_its_height(height, at):
    assert area([(x, height) for x in sorted(at)] or [(0, height)], 400) == pytest.approx(height)


def test_an_area_counts_what_is_reached_early_more():
    early, late = [(0, 0), (100, 1), (400, 1)], [(0, 0), (300, 0), (400, 1)]
    assert area(early, 400) == pytest.approx(0.875) and area(late, 400) == pytest.approx(0.125)
    assert area([(0, 0), (800, 1)], 400) == area([(0, 0), (400, 1)], 400)


def test_a_rate_is_chosen_by_its_mean_and_a_tie_goes_to_the_lower_one():
    assert best_rate({1e-3: [0.2, 0.9], 3e-3: [0.5, 0.5]}) == 1e-3
    assert best_rate({3e-3: [0.5], 1e-3: [0.5]}) == 1e-3
    with pytest.raises(ValueError, match="needs a score"):
        best_rate({1e-3: []})


def test_thirds_are_the_means_of_the_steps_that_have_the_metric():
    rows = [{"a": 1.0}, {"a": 3.0, "b": 5.0}, {}, {}, {"b": 1.0}, {"a": 9.0}]
    found = thirds(rows, lambda name: True)
    assert found == {"first": {"a": 2.0, "b": 5.0}, "last": {"b": 1.0, "a": 9.0}}


# Equal starts


@RELAXED
@given(st.floats(0, 1))
def test_weights_between_two_checkpoints_lie_on_the_line_and_its_ends_are_exact(share):
    torch.manual_seed(0)
    one, other = ({"w": torch.randn(4)} for _ in range(2))
    between = interpolated(one, other, share)["w"]
    assert torch.allclose(between, one["w"] + share * (other["w"] - one["w"]), atol=1e-6)
    assert interpolated(one, other, 0.0)["w"] is one["w"]
    assert interpolated(one, other, 1.0)["w"] is other["w"]


@RELAXED
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_where_a_line_meets_the_target_is_kept_between_its_ends(low, high, target):
    share = crossing(low, high, target)
    assert 0 <= share <= 1
    if min(low, high) < target < max(low, high):
        assert low + share * (high - low) == pytest.approx(target)


MINI = School(
    env={"stages": 2, "turns": 4, "symbols": 2},
    start=StartPlan(
        target=0.3,
        tolerance=0.12,
        steps=100,
        check_every=5,
        check_below=1.5,
        learning_rate=1e-2,
        batch=8,
    ),
    demos=48,
    noise=0.1,
)
SHAPE = {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn": 16}
SMALL = Experiment(
    name="small",
    title="Small",
    claim="Does it run?",
    env={"stages": 2, "turns": 4, "symbols": 2, "p_fail": 0.2, "progress": 1.0},
    beginning=MINI,
    teachers={"mini": MINI},
    arms=(
        Arm(name="SOD", method="sod", teacher="mini"),
        Arm(name="uniform", method="sod", teacher="mini", change=uniform, rate_of="SOD"),
    ),
    pairs=(("SOD", "uniform"),),
    budget=150,
    rates=(1e-3, 3e-3),
    plan={"tasks_per_step": 2, "group_size": 2},
    models=Models(student=SHAPE, teacher={**SHAPE, "hidden": 24}, max_tokens=64),
    tests=12,
)


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


@pytest.mark.parametrize("about", EXPERIMENTS, ids=lambda about: about.name)
def test_the_results_that_are_kept_are_of_the_plan_that_is_written(about):
    file = ROOT / "docs" / "results" / f"{about.name}.json"
    if not file.exists():
        pytest.skip("not run, as the page says")
    found = json.loads(file.read_text())
    for row in (*found["rows"], *found["dev"]):
        arm, dev = about.arm(row["arm"]), "curve" not in row
        rate = row["rate"] if dev else found["rates"][arm.name]
        split = "dev" if dev else "test"
        job = Job(experiment=about, arm=arm, seed=row["seed"], rate=rate, split=split)
        assert row["key"] == job.key, f"{arm.name}, seed {row['seed']}: run by another plan"
    seeds = {row["seed"] for row in found["rows"]}
    assert len(found["rows"]) == len(seeds) * len(about.arms)


def test_the_page_holds_every_arm_floor_and_difference(done):
    page = page_of([SMALL, *EXPERIMENTS[:1]], done.results)
    for text in ("| SOD |", "| uniform |", "*start*", "floor: anything", "SOD - uniform"):
        assert text in page
    assert "## Not run" in page and EXPERIMENTS[0].name in page


def test_a_target_that_is_not_reached_is_an_error_that_names_it():
    model, shown = _pupil()
    plan = replace(MINI.start, steps=5, target=0.9)
    with pytest.raises(TargetMissed, match=r"0\.9 was asked for"):
        equal_start(model, shown, lambda pupil: 0.0, plan, seed=0)


def test_the_search_for_the_target_ends_within_its_tolerance_where_progress_is_smooth():
    model, shown = _pupil()
    first = model.get_input_embeddings().weight.detach().clone()

    def moved(pupil):
        return float((pupil.get_input_embeddings().weight.detach() - first).norm())

    plan = replace(MINI.start, target=1.0, tolerance=0.01, halvings=20, check_below=99.0)
    found = equal_start(model, shown, moved, plan, seed=0)
    assert abs(found["progress"] - 1.0) <= 0.01 and found["progress"] == pytest.approx(moved(model))


def _pupil():
    from turnwise.agents.renderer import Renderer
    from turnwise.trainers.model import tiny_from_env
    from turnwise.trainers.sft import demonstrations

    model, tokenizer = tiny_from_env(Corridor, seed=0, separators=("", " "), **SHAPE)
    tasks = Corridor(**MINI.env).tasks("train")[:32]
    shown = demonstrations(lambda: Corridor(**MINI.env), tasks, Renderer(tokenizer), seed=0)
    return model, shown


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


def test_env_steps_are_the_turns_of_all_episodes():
    env = Corridor()
    from turnwise.agents.policy import ScriptedPolicy, expert

    jobs = jobs_for(env.tasks("dev")[:3], run_seed=0, split="dev")
    episodes = list(play(jobs, Corridor, ScriptedPolicy(expert)))
    assert env_steps(episodes) == 3 * 8
    assert shares_of_kinds(episodes[0].turns) == {"turns_on": 1.0}


@pytest.mark.parametrize("control", [uniform, shuffled])
def test_a_control_of_sod_has_the_mean_of_its_weights_and_changes_nothing_else(control):
    recipe = SOD["SOD"].recipe()
    changed = control(recipe)
    table = _table()
    mine, theirs = recipe.distillation.weight(table), changed.distillation.weight(table)
    assert theirs.mean() == pytest.approx(mine.mean())
    assert not np.allclose(mine, theirs)
    for name, value in vars(changed).items():
        assert name == "distillation" or value is getattr(recipe, name)


def _table():
    from turnwise.trainers.tokens import TokenTable

    rng = np.random.default_rng(0)
    step, traj = np.tile(np.repeat(np.arange(5), 2), 4), np.repeat(np.arange(4), 10)
    return TokenTable(
        old_M=rng.normal(size=40),
        teacher_M=rng.normal(size=40) - step,
        step_M=step,
        traj_M=traj,
        group_M=traj // 2,
        success_M=traj % 2 == 0,
        reward_M=np.zeros(40),
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


# The page


def test_names_are_unique_and_every_pair_is_of_arms_that_are_there():
    assert len({about.name for about in EXPERIMENTS}) == len(EXPERIMENTS)
    for about in EXPERIMENTS:
        names = [arm.name for arm in about.arms]
        assert len(set(names)) == len(names)
        assert {name for pair in about.pairs for name in pair} <= set(names)
        assert {arm.rate_of for arm in about.arms if arm.rate_of} <= set(names)
        assert {arm.teacher for arm in about.arms if arm.teacher} <= set(about.teachers)
        for arm in about.arms:
            arm.recipe()


def test_the_page_is_what_the_committed_results_give():
    page = (ROOT / "docs" / "results.md").read_text()
    assert page == page_of(EXPERIMENTS, ROOT / "docs" / "results")


def test_a_model_of_a_comparison_loads_like_any_other(done):
    model, tokenizer = load_model(str(beginning(SMALL, 0, done.out)))
    assert model.config.hidden_size == 16 and len(tokenizer) > 256
