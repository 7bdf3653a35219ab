"""Every recipe is complete, is found by name, and is what its paper says on a worked example."""

from __future__ import annotations

import inspect
import math
import pickle
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from turnwise.envs.types import Episode, Group, Outcome, Segment, Task, Turn
from turnwise.trainers import recipes as package
from turnwise.trainers.advantages import nonzero, turn_table
from turnwise.trainers.recipe import no_credit
from turnwise.trainers.recipes import NAMES, UnknownRecipe, recipe, recipes
from turnwise.trainers.recipes.dapo import dapo
from turnwise.trainers.recipes.dr_grpo import dr_grpo
from turnwise.trainers.recipes.gigpo import gigpo
from turnwise.trainers.recipes.grpo import grpo
from turnwise.trainers.recipes.gspo import gspo
from turnwise.trainers.recipes.hgpo import hgpo
from turnwise.trainers.recipes.mt_grpo import mt_grpo
from turnwise.trainers.recipes.reinforce_pp import reinforce_pp
from turnwise.trainers.recipes.turn_rloo import turn_rloo
from turnwise.trainers.surrogates import Totals, sequence_ratio, token_ratio, turn_ratio


def episode(rewards, states, outcome=Outcome.OK, tokens=1) -> Episode:
    turns = tuple(
        Turn(action_ids=(1,) * tokens, logprobs=(0.0,) * tokens, reward=r, state_before=s)
        for r, s in zip(rewards, states, strict=True)
    )
    segments = (Segment(turns=turns),)
    return Episode(id="e", env_id="toy", task=Task(), segments=segments, outcome=outcome)


def group(*episodes: Episode) -> Group:
    return Group(task=Task(), episodes=episodes)


def example():
    """Three attempts: rewards 0 1 | 0.5 | 0 0 0; states a b | a | a b a."""
    return turn_table(
        [group(episode([0, 1], "ab"), episode([0.5], "a"), episode([0, 0, 0], "aba"))]
    )


def test_there_is_one_file_for_each_name():
    files = {path.stem for path in Path(package.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_where_it_comes_from_and_survives_pickling(name):
    found = recipe(name)
    assert found.name == name
    assert "arXiv:" in found.source
    assert ("Measured" in found.status) != ("Not compared yet" in found.status)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.credit(example()), found.credit(example()))


PAID = [name for name in NAMES if recipe(name).credit is not no_credit]


@pytest.mark.parametrize("name", PAID)
def test_a_recipe_declares_the_history_that_it_reads(name):
    table = turn_table([group(episode([1.0], "a"), episode([0.0], "a"))], recipe(name).history)
    assert recipe(name).credit(table).tolist()[0] > 0


def test_the_default_comes_first():
    assert recipes()[0].name == "turn_rloo"
    assert [r.name for r in recipes()] == list(NAMES)


@pytest.mark.parametrize(
    ("wrong", "hint"), [("grop", "did you mean 'grpo'"), ("xyz", "there are: turn_rloo, grpo")]
)
def test_an_unknown_name_is_answered_with_the_nearest_or_all(wrong, hint):
    with pytest.raises(UnknownRecipe, match=hint):
        recipe(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_each_option_takes_its_own_default_and_no_text_for_another_kind(name):
    options = inspect.signature(getattr(import_module(f"{package.__name__}.{name}"), name))
    for option, how in options.parameters.items():
        assert recipe(name, **{option: how.default}).name == recipe(name).name
        with pytest.raises(ValueError, match=f"option '{option}' of recipe '{name}' takes .*'x'"):
            recipe(name, **{option: "x"})
        if type(how.default) in (int, float):
            with pytest.raises(ValueError, match=r"number.*, got True"):
                recipe(name, **{option: True})
    assert recipe("dapo", overlong=[8, 2])  # as JSON has it


SIGNED = {("turn_rloo", "alpha"), ("hgpo", "alpha")}
"""Exponents: below 0 they prefer short histories."""


@pytest.mark.parametrize("name", NAMES)
def test_no_number_below_its_range_is_taken(name):
    """A negative bound would clip every ratio to one side, a negative weight would unteach."""
    options = inspect.signature(getattr(import_module(f"{package.__name__}.{name}"), name))
    hints = {o: str(h.annotation) for o, h in options.parameters.items()}
    numbers = [option for option, hint in hints.items() if re.match("(int|float)( |$)", hint)]
    assert numbers or name == "rloo"
    said = inspect.getdoc(getattr(import_module(f"{package.__name__}.{name}"), name))
    assert not numbers or "Raises:\n    ValueError: a number" in said
    for option in numbers:
        wrong = [math.nan] if "float" in hints[option] else []
        wrong += [] if (name, option) in SIGNED else [-1]
        for value in wrong:
            with pytest.raises(ValueError, match=f"recipe '{name}' with .*{value}.*got {value}"):
                recipe(name, **{option: value})


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("dagger", {"first": 0.3}, r"first is at least 0\.6.*got 0\.3"),
        ("sod", {"by_batch": True, "floor": 0.5}, r"no use for floor=0\.5"),
        ("tcod_f2b", {"success": 0.2}, "name a start.*got 1"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(name, options, why):
    with pytest.raises(ValueError, match=why):
        recipe(name, **options)


def test_grpo_normalises_by_the_groups_sample_deviation():
    r = np.array([1.0, 0.5, 0.0])
    by_episode = (r - r.mean()) / (r.std(ddof=1) + 1e-6)
    for name in ("grpo", "dapo", "gspo", "cispo"):
        np.testing.assert_allclose(recipe(name).credit(example()), by_episode[[0, 0, 1, 2, 2, 2]])


def test_a_spread_of_noise_is_amplified_only_as_published():
    table = turn_table([group(episode([1.0], "a"), episode([1.0 + 1e-5], "a"))])
    assert np.abs(grpo().credit(table)).max() < 1e-3
    assert np.abs(grpo(floor=0.0).credit(table)).max() > 0.5


def test_dr_grpo_and_rloo_differ_by_g_over_g_minus_one():
    ours = dr_grpo().credit(example())
    np.testing.assert_allclose(ours, [0.5, 0.5, 0.0, -0.5, -0.5, -0.5])
    np.testing.assert_allclose(recipe("rloo").credit(example()), ours * 3 / 2)


def test_reinforce_pp_whitens_the_return_to_go_over_the_batch():
    to_go = np.array([1.0, 1.0, 0.5, 0.0, 0.0, 0.0])
    expected = (to_go - to_go.mean()) / to_go.std()
    np.testing.assert_allclose(reinforce_pp().credit(example()), expected, atol=1e-6)


def test_reinforce_pp_with_a_group_baseline_forgives_hard_tasks():
    easy, hard = ([episode([r], "a") for r in pair] for pair in ((1.0, 0.8), (0.0, 0.4)))
    table = turn_table([group(*easy), group(*hard)])
    centred = np.array([0.2, -0.2, -0.4, 0.4])
    got = reinforce_pp(group_baseline=True).credit(table)
    np.testing.assert_allclose(got, centred / centred.std(), atol=1e-6)


def test_gigpo_adds_episode_and_state_advantage():
    def scaled(x):
        return (x - x.mean()) / (x.std(ddof=1) + 1e-6)

    episodes = scaled(np.array([1.0, 0.5, 0.0]))[[0, 0, 1, 2, 2, 2]]
    in_a = scaled(np.array([0.95, 0.5, 0.0, 0.0]))  # rows 0, 2, 3, 5
    in_b = scaled(np.array([1.0, 0.0]))  # rows 1, 4
    steps = np.array([in_a[0], in_b[0], in_a[1], in_a[2], in_b[1], in_a[3]])
    np.testing.assert_allclose(gigpo().credit(example()), episodes + steps, atol=1e-5)
    doubled = gigpo(omega=2.0).credit(example())
    np.testing.assert_allclose(doubled, episodes + 2 * steps, atol=1e-5)


def test_gigpo_as_released_counts_an_episode_once_per_turn():
    over_turns = np.array([1.0, 1.0, 0.5, 0.0, 0.0, 0.0])
    expected = (over_turns - over_turns.mean()) / (over_turns.std(ddof=1) + 1e-6)
    got = gigpo(length_weighted=True, omega=0.0).credit(example())
    np.testing.assert_allclose(got, expected)


def test_gigpo_gives_no_state_credit_to_a_trajectory_that_only_meets_itself():
    table = turn_table([group(episode([0, 0, 1], "xyx"), episode([1.0], "z"))])
    np.testing.assert_array_equal(gigpo().credit(table), [0.0] * 4)  # both return 1


def test_hgpo_mixes_histories_by_their_length():
    def scaled(x):
        return (x - x.mean()) / (x.std() + 1e-6)

    in_a, in_b = scaled(np.array([0.95, 0.5, 0.0, 0.0])), scaled(np.array([1.0, 0.0]))
    # Row 1 and row 4 also share "a then b": (1 * A_0 + 2 * A_1) / 3, and both levels agree.
    expected = [in_a[0], in_b[0], in_a[1], in_a[2], in_b[1], in_a[3]]
    np.testing.assert_allclose(hgpo().credit(example()), expected, atol=1e-5)


def test_hgpo_as_released_drops_true_zeros():
    table = turn_table(
        [
            group(
                episode([0, 1.0], "ab"),
                episode([0, 3.0], "ab"),
                episode([0, 1.0], "cb"),
                episode([0, -1.0], "cb"),
            )
        ]
    )
    rows = 2 * np.arange(4) + 1  # all act in b, with returns 1, 3, 1, -1: mean 1
    fixed = hgpo(gamma=1.0).credit(table)[rows]
    released = hgpo(gamma=1.0, renormalise=nonzero).credit(table)[rows]
    np.testing.assert_allclose(fixed[0], -2 / 3, atol=1e-5)  # (1 * 0 + 2 * -1) / 3
    np.testing.assert_allclose(released[0], -1.0, atol=1e-5)
    np.testing.assert_allclose(fixed[1], released[1])


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_divided_credit_does_not_know_how_much_is_paid_and_plain_credit_does(gamma):
    table = example()
    paid = replace(table, reward_N=3 * table.reward_N)
    for divided, factor in ((False, 3), (True, 1)):
        credit = turn_rloo(gamma=gamma, divided=divided).credit
        assert np.abs(credit(table)).max() > 0.1
        np.testing.assert_allclose(credit(paid), factor * credit(table), atol=1e-4)


def test_turn_rloo_mixes_task_state_and_histories():
    got = turn_rloo().credit(example())
    task = np.array([0.75, 0.75, 0.0, -0.75, -0.75, -0.75])
    state = np.array([1 - 0.5 / 3, 1.0, 0.5 - 1 / 3, -0.75, -1.0, -0.75])
    past = np.array([0.0, 1.0, 0.0, 0.0, -1.0, 0.0])
    weight = np.array([0, 2, 0, 0, 2, 0])
    np.testing.assert_allclose(got, (task + state + weight * past) / (2 + weight))


def test_mt_grpo_pays_the_outcome_to_all_turns_and_a_turns_reward_to_those_before_it():
    table = turn_table([group(episode([0.5, 1], "ab"), episode([0, 0], "ab"))])
    np.testing.assert_allclose(mt_grpo().credit(table), [1.5, 1.0, -1.5, -1.0])
    np.testing.assert_allclose(mt_grpo(turn_weight=0).credit(table), [1, 1, -1, -1])
    lone = turn_table([group(episode([0.5, 1], "ab"))])
    assert not mt_grpo().credit(lone).any()


def test_dapo_asks_again_for_groups_that_tie_and_only_it():
    tied = group(episode([1.0], "a"), episode([0.5, 0.5], "ab"))
    mixed = group(episode([1.0], "a"), episode([0.0], "a"))
    crashed = group(episode([1.0], "a"), episode([0.0], "a", Outcome.INFRA_ERROR))
    for name in NAMES:
        keep = recipe(name).keep_group
        assert keep(mixed)
        assert keep(tied) == keep(crashed) == keep(group()) == (name != "dapo")


def test_dapo_punishes_overlong_episodes_when_told_the_limit():
    table = turn_table([group(episode([1.0], "a", tokens=2), episode([1.0], "a", tokens=9))])
    assert dapo().credit(table).tolist() == [0.0, 0.0]
    short, long = dapo(overlong=(10, 4)).credit(table)
    assert short > 0 > long


def test_gspo_judges_a_sequence_and_its_variant_a_turn():
    assert recipe("gspo").ratio is sequence_ratio and recipe("grpo").ratio is token_ratio
    assert gspo(ratio=turn_ratio, low=0.2, high=0.2).ratio is turn_ratio


@pytest.mark.parametrize("name", ["opd", "tcod_f2b"])
def test_distillation_with_the_reward_adds_the_advantages_of_both(name):
    alone, both, paid = recipe(name), recipe(name, reward=True), turn_rloo(history_turns=0)
    np.testing.assert_array_equal(both.credit(example()), paid.credit(example()))
    assert np.abs(paid.credit(example())).max() > 0 == np.abs(alone.credit(example())).max()
    rl_M, signal_M = np.array([0.5, -1.0, 0.0]), np.array([-2.0, 0.25, 3.0])
    assert both.distillation.mix(rl_M, signal_M, 0.5).tolist() == [-0.5, -0.875, 1.5]
    assert alone.distillation.mix(rl_M, signal_M, 0.5).tolist() == [-1.0, 0.125, 1.5]
    assert (both.aggregate, both.history) == (alone.aggregate, alone.history)


def test_sod_adds_the_credit_of_grpo_and_without_the_reward_none():
    np.testing.assert_array_equal(recipe("sod").credit(example()), grpo().credit(example()))
    assert np.abs(recipe("sod").credit(example())).max() > 0
    assert not recipe("sod", reward=False).credit(example()).any()


@pytest.mark.parametrize(("by_turn", "shares"), [(True, [0.5, 0.5]), (False, [0.75, 0.25])])
def test_in_dagger_each_label_counts_alike_or_each_token(by_turn, shares):
    turn_M = torch.tensor([0, 0, 0, 1])
    aggregate = recipe("dagger", by_turn=by_turn).aggregate
    weight_M = aggregate(torch.zeros_like(turn_M), turn_M, Totals(tokens=4, turns=2, trajs=1))
    assert [float(weight_M[turn_M == turn].sum()) for turn in (0, 1)] == shares
