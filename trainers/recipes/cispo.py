"""CISPO: MiniMax-M1, arXiv:2506.13585 eq. 4-5.

    A_i = (R_i - mean(R)) / (max(std(R), floor) + 1e-6)     over the group's trajectories, ddof 1
    L   = token-mean of -sg[min(rho, bound)] A log pi

The weight is bounded, not the surrogate: every token keeps a gradient. There is no lower bound.
"""

from __future__ import annotations

from turnwise.trainers.advantages import Level, by_levels, mean, std
from turnwise.trainers.ranges import above
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.surrogates import token_mean, weight_clip
from turnwise.trainers.turns import outcome


def cispo(*, bound: float = 5.0, floor: float = 1e-2) -> Recipe:
    """Return the recipe.

    Args:
        bound: 1 + eps_high, 5 as in ScaleRL (arXiv:2510.13786).

    Raises:
        ValueError: a number is out of its range.
    """
    above(0, bound=bound)
    return Recipe(
        name="cispo",
        source="arXiv:2506.13585 eq. 4-5",
        status="Floor under the standard deviation; a group of one gives 0. The paper leaves the "
        "bound open. "
        "Not compared yet.",
        credit=by_levels(
            Level(returns=outcome, baseline=mean, scale=std(1, 1e-6, floor), once=True)
        ),
        surrogate=weight_clip((0.0, bound), (0.0, bound)),
        aggregate=token_mean,
    )


RECIPE = cispo()
