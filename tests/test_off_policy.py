"""The laws of samples older than the weights: every recipe has a bound and a correction."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from turnwise.trainers.off_policy import OnPolicyOnly, clipped, for_depth, held
from turnwise.trainers.recipe import no_policy_gradient
from turnwise.trainers.recipes import NAMES, recipe
from turnwise.trainers.surrogates import policy_gradient, ppo, truncated, uncorrected, weight_clip

OFF = [name for name in NAMES if recipe(name).imitation is None]


def gradient(surrogate, log_ratio, advantage):
    x = torch.tensor([log_ratio], requires_grad=True)
    gain, _ = surrogate(x, torch.tensor([advantage]))
    gain.sum().backward()
    return gain.item(), x.grad.item()


@pytest.mark.parametrize("name", OFF)
def test_every_recipe_that_runs_ahead_has_a_bound_and_a_correction(name):
    ready = for_depth(recipe(name), 1)
    assert ready.importance is not uncorrected
    assert ready.surrogate is no_policy_gradient or clipped(ready.surrogate)


@pytest.mark.parametrize("name", NAMES)
def test_at_depth_0_a_recipe_is_what_it_was(name):
    assert for_depth(recipe(name), 0) is recipe(name)


def test_pieces_that_are_there_already_are_kept():
    own = replace(recipe("grpo"), surrogate=ppo(0.1, 0.3), importance=truncated(3.0))
    ready = for_depth(own, 2)
    assert (ready.surrogate, ready.importance) == (own.surrogate, own.importance)
    assert for_depth(recipe("rloo"), 1).surrogate is not recipe("rloo").surrogate


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OFF])
def test_recipes_that_play_rounds_are_refused_with_the_way_out(name):
    with pytest.raises(OnPolicyOnly, match=rf"'{name}'.*set pipeline_depth to 0"):
        for_depth(recipe(name), 1)


def test_what_is_bounded_is_found_by_its_behaviour():
    assert clipped(ppo()) and clipped(weight_clip((0.0, 5.0), (0.0, 5.0)))
    assert not clipped(policy_gradient) and not clipped(weight_clip())


@pytest.mark.parametrize("advantage", [-2.0, 1.5])
def test_a_held_surrogate_is_its_own_inside_and_has_no_gradient_where_ppo_has_none(advantage):
    for surrogate in (policy_gradient, weight_clip()):
        for log_ratio in (-1.0, -0.3, -0.1, 0.0, 0.1, 0.3, 1.0):
            value, slope = gradient(held(surrogate), log_ratio, advantage)
            plain, plain_slope = gradient(surrogate, log_ratio, advantage)
            stopped = gradient(ppo(0.2, 0.28), log_ratio, advantage)[1] == 0.0
            assert value == plain
            assert slope == (0.0 if stopped else plain_slope)
