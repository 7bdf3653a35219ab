"""MT-GRPO for any number of turns: an outcome's credit, and that of the rewards on the way.

    A(i,t) = (R_i - mean_{j!=i} R_j)  +  lambda (r_it - mean of the others' r)
    R_i: the reward of the last turn;  r_it = sum of the rewards of the turns s >= t before the last
    others: the other attempts' turns of the same index, else all of their turns
    L = token-mean of -min(rho A, clip(rho, .8, 1.2) A)

arXiv:2505.11821 has two turns, a call and an answer, and normalises each turn's own reward by the
group's turns of the same index. With turns that vary in number, that pays or charges every further
turn and can flip the sign of the gradient (tests/test_unbiased.py); so the baseline is subtracted
from the rewards to go, and leaves the own trajectory out.
"""

from __future__ import annotations

from turnwise.trainers.advantages import Level, by_levels, finest, plus
from turnwise.trainers.ranges import at_least
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.surrogates import ppo, token_mean
from turnwise.trainers.turns import final_reward, rewards_on_the_way, turn


def mt_grpo(*, turn_weight: float = 1.0, clip: float = 0.2) -> Recipe:
    """Return the recipe.

    Args:
        turn_weight: lambda; 1 is the estimate of the whole return.

    Raises:
        ValueError: a number is out of its range.
    """
    at_least(0, turn_weight=turn_weight)
    all_turns = Level(returns=rewards_on_the_way)
    same_index = Level(returns=rewards_on_the_way, keys=turn)
    turns = by_levels(all_turns, same_index, combine=finest)
    return Recipe(
        name="mt_grpo",
        source="arXiv:2505.11821 eq. 6-7, two turns",
        status="Rewards to go and leave-one-out baselines in place of normalised turn rewards, "
        "no standard deviation: unbiased for turn_weight=1, which the published form is not. "
        "Not compared yet.",
        credit=plus((1.0, by_levels(Level(returns=final_reward, once=True))), (turn_weight, turns)),
        surrogate=ppo(clip, clip),
        aggregate=token_mean,
    )


RECIPE = mt_grpo()
