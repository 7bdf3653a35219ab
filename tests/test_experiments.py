"""Laws of the real comparisons: names, controls that change one thing, and the page they give."""

import json
import re

import numpy as np
import pytest
from contests import EXPERIMENTS, ROOT, SOD, shuffled, uniform
from test_advantages import table_of

from turnwise.trainers.contest import Job
from turnwise.trainers.recipes import recipe, recipes
from turnwise.trainers.results_page import page_of
from turnwise.trainers.tokens import TokenTable


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
    keys = {name: about.key_of_teacher(name) for name in about.teachers}
    assert {name: row["key"] for name, row in found["teachers"].items()} == keys
    seeds = {row["seed"] for row in found["rows"]}
    assert len(found["rows"]) == len(seeds) * len(about.arms)


def test_turn_rloo_divided_in_the_comparison_is_what_the_option_makes():
    (about,) = (each for each in EXPERIMENTS if each.name == "turn_credit_long")
    arms = {arm.name: arm for arm in about.arms}
    table = table_of([([0.0, 1.0], "ab"), ([0.5], "a"), ([0.0, 0.0, 0.0], "aba")])
    for name in ("turn_rloo, divided", "turn_rloo, gamma .95, divided"):
        arm = arms[name]
        made, option = arm.recipe(), recipe(arm.method, **arm.options, divided=True)
        assert np.abs(made.credit(table)).max() > 0.1
        np.testing.assert_allclose(made.credit(table), option.credit(table))


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


def test_the_page_begins_with_a_line_for_each_experiment_that_leads_to_its_numbers(tmp_path):
    page = page_of(EXPERIMENTS, ROOT / "docs" / "results")
    told = dict(re.findall(r"^\| \[(.+)\]\(#(.+)\) \| .+ \|$", page, re.M))
    run = [e for e in EXPERIMENTS if (ROOT / "docs" / "results" / f"{e.name}.json").exists()]
    assert list(told) == [about.title for about in run]
    assert all(about.short.endswith(".") and len(about.short) <= 90 for about in EXPERIMENTS)
    heads = re.findall("^## (.+)$", page, re.M)
    assert list(told.values()) == [slug(h) for h in heads if h not in ("In short", "Not run")]
    assert "| [" not in page_of(EXPERIMENTS, tmp_path), "what was not run has no line"


def slug(heading):
    """As the readers of Markdown link to a heading: letters, digits, hyphens for blanks."""
    letters = (c for c in heading.lower() if c.isalnum() or c in " -_")
    return "".join(letters).replace(" ", "-")


def test_a_recipe_says_that_it_was_measured_if_it_was_compared_and_no_other_does():
    compared = {
        stage.method for about in EXPERIMENTS for arm in about.arms for stage in _stages(arm)
    }
    assert compared == {each.name for each in recipes() if "Measured" in each.status}


def _stages(arm):
    return () if arm is None else (arm, *_stages(arm.then))
