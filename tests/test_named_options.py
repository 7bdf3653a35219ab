"""Laws of the pieces that a configuration can name: they are the functions that a recipe takes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_runs import config_of, history, run, same_weights

from turnwise.trainers.config import IMPORTANCE, TrainConfig
from turnwise.trainers.recipe import every_group, mixed_rewards
from turnwise.trainers.recipes import recipe, recipes
from turnwise.trainers.surrogates import truncated, uncorrected, veto

torch.set_num_threads(1)


def test_without_a_name_a_recipe_keeps_its_own_pieces():
    for method in recipes():
        assert TrainConfig().adapted(method) is method


@pytest.mark.parametrize("name", IMPORTANCE)
def test_a_named_correction_takes_the_place_of_the_recipes_own(name):
    config = TrainConfig(importance=name, correct_mismatch=True)
    before = recipe("turn_rloo")
    assert config.adapted(before) == replace(before, importance=IMPORTANCE[name])


def test_names_mean_what_the_papers_mean():
    log_w_M, same = torch.tensor([3.0, 0.5, -0.5, -12.0]), torch.zeros(4, dtype=torch.int64)
    w_M = log_w_M.exp()
    found = {name: piece(log_w_M, same, same) for name, piece in IMPORTANCE.items()}
    assert torch.equal(found["none"], torch.ones(4))
    torch.testing.assert_close(found["tis"], w_M.clamp(max=2))
    torch.testing.assert_close(found["mask"], torch.where((w_M >= 0.5) & (w_M <= 2), w_M, 0.0))
    assert torch.equal(found["veto"], torch.zeros(4))
    assert torch.equal(IMPORTANCE["veto"](log_w_M[:3], same[:3], same[:3]), torch.ones(3))
    assert (IMPORTANCE["none"], IMPORTANCE["tis"], IMPORTANCE["veto"])[0] is uncorrected
    assert IMPORTANCE["tis"].func is truncated().func and IMPORTANCE["veto"].func is veto().func


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (
            {"importance": "tsi", "correct_mismatch": True},
            "one of none, tis, mask, veto, got 'tsi'",
        ),
        ({"importance": "tis"}, "set correct_mismatch, too"),
    ],
)
def test_a_correction_that_would_do_nothing_is_refused(wrong, why):
    with pytest.raises(ValueError, match=why):
        TrainConfig(**wrong)


def test_dynamic_sampling_by_name_is_dynamic_sampling_by_recipe(tmp_path):
    few = {"steps": 2, "recipe": "grpo", "checkpoint_every": 0}
    run(tmp_path / "named", dynamic=True, **few)
    run(tmp_path / "passed", method=replace(recipe("grpo"), keep_group=mixed_rewards), **few)
    assert history(tmp_path / "named") == history(tmp_path / "passed")
    assert same_weights(tmp_path / "named", tmp_path / "passed")
    run(tmp_path / "plain", **few)
    assert recipe("grpo").keep_group is every_group
    assert history(tmp_path / "named") != history(tmp_path / "plain")


def test_a_correction_by_name_is_the_same_run_as_by_recipe(tmp_path):
    few = {"steps": 1, "correct_mismatch": True, "checkpoint_every": 0}
    run(tmp_path / "named", importance="mask", **few)
    run(
        tmp_path / "passed",
        method=replace(recipe("turn_rloo"), importance=IMPORTANCE["mask"]),
        **few,
    )
    assert same_weights(tmp_path / "named", tmp_path / "passed")


def test_names_are_kept_in_the_run_folder(tmp_path):
    kept = config_of(tmp_path, dynamic=True, importance="veto", correct_mismatch=True).to_json()
    assert (kept["dynamic"], kept["importance"]) == (True, "veto")
    assert TrainConfig(**{**kept, "out": Path(kept["out"])}).adapted(recipe("grpo"))
