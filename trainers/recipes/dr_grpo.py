"""Dr. GRPO: "GRPO done right", arXiv:2503.20783.

    A_i = R_i - mean(R)                                     over the group's trajectories
    L   = mean_i 1/max_tokens sum_j -min(rho A, clip(rho, .8, 1.2) A)

No standard deviation (it favours tasks that are nearly solved or nearly hopeless) and a constant in
place of the length (a long failure must not be cheaper per token than a short one).
"""

from __future__ import annotations

from turnwise.trainers.advantages import Level, by_levels, mean
from turnwise.trainers.ranges import above
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.surrogates import ppo, seq_sum
from turnwise.trainers.turns import outcome


def dr_grpo(*, clip: float = 0.2, max_tokens: float = 1024.0) -> Recipe:
    """Return the recipe.

    Args:
        max_tokens: the longest episode in sampled tokens; it only scales L.

    Raises:
        ValueError: a number is out of its range.
    """
    above(0, max_tokens=max_tokens)
    return Recipe(
        name="dr_grpo",
        source="arXiv:2503.20783",
        status="As published; a group of one gives 0. Not compared yet.",
        credit=by_levels(Level(returns=outcome, baseline=mean, once=True)),
        surrogate=ppo(clip, clip),
        aggregate=seq_sum(max_tokens),
    )


RECIPE = dr_grpo()
