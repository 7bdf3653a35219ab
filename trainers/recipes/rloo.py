"""RLOO: "Back to Basics", arXiv:2402.14740.

A_i = R_i - mean_{j != i} R_j  =  G/(G-1) (R_i - mean(R))       over the group's trajectories
L   = mean_i sum_j -A_i log pi(j)                               no ratio, no clip: on-policy
"""

from __future__ import annotations

from turnwise.trainers.advantages import Level, by_levels
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.surrogates import Surrogate, policy_gradient, seq_sum
from turnwise.trainers.turns import outcome


def rloo(*, surrogate: Surrogate = policy_gradient) -> Recipe:
    """Return the recipe; pass `surrogate=ppo(0.2, 0.2)` for several steps on one batch."""
    return Recipe(
        name="rloo",
        source="arXiv:2402.14740",
        status="As published, without the KL penalty in the reward; a group of one gives 0. "
        "Not compared yet.",
        credit=by_levels(Level(returns=outcome, once=True)),
        surrogate=surrogate,
        aggregate=seq_sum(1.0),
    )


RECIPE = rloo()
