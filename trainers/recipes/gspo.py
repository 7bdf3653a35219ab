"""GSPO: arXiv:2507.18071 eq. 5-7, in the token form of eq. 13.

s_i = exp(mean_j log rho_j) over the trajectory;   s_ij = sg[s_i] pi(j) / sg[pi(j)]
A_i = (R_i - mean(R)) / (max(std(R), floor) + 1e-6)     over the group's trajectories, ddof 1
L   = mean_i 1/|o_i| sum_j -min(s_ij A, clip(s_ij, 1 - 3e-4, 1 + 4e-4) A)
"""

from __future__ import annotations

from turnwise.trainers.advantages import Level, by_levels, mean, std
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.surrogates import Ratio, ppo, seq_mean_token_mean, sequence_ratio
from turnwise.trainers.turns import outcome


def gspo(
    *,
    ratio: Ratio = sequence_ratio,
    low: float = 3e-4,
    high: float = 4e-4,
    floor: float = 1e-2,
) -> Recipe:
    """Return the recipe; `gspo(ratio=turn_ratio, low=.2, high=.2)` is SO-GRPO (arXiv:2511.20718).

    `floor=0.0` is the published scale of the advantage.

    Raises:
        ValueError: a number is out of its range.
    """
    return Recipe(
        name="gspo",
        source="arXiv:2507.18071 eq. 5-7, 13",
        status="Floor under the standard deviation; a group of one gives 0. Not compared yet.",
        credit=by_levels(
            Level(returns=outcome, baseline=mean, scale=std(1, 1e-6, floor), once=True)
        ),
        ratio=ratio,
        surrogate=ppo(low, high),
        aggregate=seq_mean_token_mean,
    )


RECIPE = gspo()
