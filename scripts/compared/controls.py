"""Controls: what is taken out of a method, or put into it, one thing at a time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from turnwise.trainers.advantages import Scale, std, unscaled
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.recipes.turn_rloo import turn_rloo
from turnwise.trainers.surrogates import token_mean
from turnwise.trainers.weights import ones, permuted, uniform_like


def unweighted(recipe: Recipe) -> Recipe:
    """OPD + GRPO: SOD without its weights."""
    return _weighted(recipe, ones)


def uniform(recipe: Recipe) -> Recipe:
    """SOD with the mean of its weights everywhere."""
    return _weighted(recipe, uniform_like(recipe.distillation.weight))


def shuffled(recipe: Recipe) -> Recipe:
    """SOD with its weights dealt to turns at random."""
    return _weighted(recipe, permuted(recipe.distillation.weight))


def _weighted(recipe: Recipe, weight: object) -> Recipe:
    return replace(recipe, distillation=replace(recipe.distillation, weight=weight))


def anchored(recipe: Recipe) -> Recipe:
    """Without the KL to the reference: no method of the comparison has one."""
    return replace(recipe, kl_coefficient=0.0)


def by_tokens(recipe: Recipe) -> Recipe:
    """GRPO whose loss is a mean over tokens, as that of the methods of turns is."""
    return replace(anchored(recipe), aggregate=token_mean)


def paid_by_the_turn(recipe: Recipe) -> Recipe:
    """SOD with the credit of turn_rloo in place of GRPO's."""
    return replace(recipe, credit=turn_rloo(history_turns=0).credit)


def divided(recipe: Recipe) -> Recipe:
    """Every level divided by its group's standard deviation, as in GiGPO.

    What `turn_rloo(divided=True)` is; rows were made before that was an option.
    """
    return _levels(recipe, std(1, 1e-6, 1e-2))


def undivided(recipe: Recipe) -> Recipe:
    """No level divided, and no KL to the reference."""
    return anchored(_levels(recipe, unscaled))


def _levels(recipe: Recipe, scale: Scale) -> Recipe:
    """The recipe's levels with another scale."""
    by, parts = recipe.credit.func, dict(recipe.credit.keywords)
    parts["levels"] = tuple(replace(level, scale=scale) for level in parts["levels"])
    return replace(recipe, credit=partial(by, **parts))
