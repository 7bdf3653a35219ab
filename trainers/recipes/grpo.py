"""GRPO: DeepSeekMath, arXiv:2402.03300 eq. 3, outcome supervision.

A_i = (R_i - mean(R)) / (max(std(R), floor) + 1e-6)     over the group's trajectories, ddof 1
L   = mean_i 1/|o_i| sum_j -min(rho A, clip(rho, .8, 1.2) A)  +  beta k3(pi || ref)
"""

from __future__ import annotations

from turnwise.trainers.advantages import Level, by_levels, mean, std
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.surrogates import k3, ppo, seq_mean_token_mean
from turnwise.trainers.turns import outcome


def grpo(*, clip: float = 0.2, kl_coefficient: float = 0.04, floor: float = 1e-2) -> Recipe:
    """Return the recipe; `floor=0.0` is the published scale, which amplifies tiny spreads.

    Raises:
        ValueError: a number is out of its range.
    """
    return Recipe(
        name="grpo",
        source="arXiv:2402.03300 eq. 3",
        status="Floor under the standard deviation; a group of one gives 0. The mean includes the "
        "own return, which scales the gradient by (G-1)/G. Measured (docs/results.md) beside sod, "
        "turn_rloo, gigpo and hgpo; with a mean over tokens level with itself.",
        credit=by_levels(
            Level(returns=outcome, baseline=mean, scale=std(1, 1e-6, floor), once=True)
        ),
        surrogate=ppo(clip, clip),
        aggregate=seq_mean_token_mean,
        kl=k3,
        kl_coefficient=kl_coefficient,
    )


RECIPE = grpo()
