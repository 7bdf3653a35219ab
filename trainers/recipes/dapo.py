"""DAPO: arXiv:2503.14476 eq. 8-13.

A_i = (R_i - mean(R)) / (max(std(R), floor) + 1e-6)     over the group's trajectories, ddof 1
L   = token-mean of -min(rho A, clip(rho, 1 - .2, 1 + .28) A);  no KL
groups in which every attempt earned the same are sampled again (dynamic sampling)
"""

from __future__ import annotations

from turnwise.trainers.advantages import Level, by_levels, mean, std
from turnwise.trainers.recipe import Recipe, mixed_rewards
from turnwise.trainers.surrogates import ppo, token_mean
from turnwise.trainers.turns import outcome, shortened


def dapo(
    *,
    low: float = 0.2,
    high: float = 0.28,
    floor: float = 1e-2,
    overlong: tuple[int, int] | None = None,
) -> Recipe:
    """Return the recipe.

    Args:
        overlong: (limit, buffer) adds the soft punishment of eq. 13; both in sampled tokens of an
            episode.

    Raises:
        ValueError: a number is out of its range.
    """
    returns = outcome if overlong is None else shortened(outcome, *overlong)
    return Recipe(
        name="dapo",
        source="arXiv:2503.14476 eq. 8-13",
        status="Dynamic sampling asks for unequal rewards, which is 0 < #correct < G when rewards "
        "are binary. Overlong punishment is off unless its limits are given. "
        "Not compared yet.",
        credit=by_levels(
            Level(returns=returns, baseline=mean, scale=std(1, 1e-6, floor), once=True)
        ),
        surrogate=ppo(low, high),
        aggregate=token_mean,
        keep_group=mixed_rewards,
    )


RECIPE = dapo()
