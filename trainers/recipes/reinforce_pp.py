"""REINFORCE++: arXiv:2501.03262.

    A(i,t) = (R_it - mean) / (std + 1e-8)     R_it the reward-to-go (gamma 1), mean and std over the
                                              sampled tokens of the whole batch
    L      = token-mean of -min(rho A, clip(rho, .8, 1.2) A)  +  beta k2(pi || ref)

The published form subtracts beta * k1 from each token's reward. Here the KL is a term of the loss:
on-policy the gradient of k2 is the gradient of that penalty on the token that incurs it.
"""

from __future__ import annotations

from turnwise.trainers.advantages import Level, by_levels, leave_one_out, no_baseline, whitened
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.surrogates import k2, ppo, token_mean
from turnwise.trainers.turns import batch, reward_to_go, trajectory


def reinforce_pp(
    *, clip: float = 0.2, kl_coefficient: float = 0.01, group_baseline: bool = False
) -> Recipe:
    """Return the recipe.

    Args:
        group_baseline: the published variant for several attempts per task: the group's mean is
            taken without the own trajectory, and whitened as before.

    Raises:
        ValueError: a number is out of its range.
    """
    level = (
        Level(returns=reward_to_go(1.0), keys=trajectory, baseline=leave_one_out, once=True)
        if group_baseline
        else Level(returns=reward_to_go(1.0), keys=batch, baseline=no_baseline)
    )
    return Recipe(
        name="reinforce_pp",
        source="arXiv:2501.03262",
        status="KL in the loss (k2), not in the reward. Returns run over turns, so tokens that "
        "are not trained on cannot cut them. A batch of one trajectory gives 0. "
        "Not compared yet.",
        credit=whitened(by_levels(level)),
        surrogate=ppo(clip, clip),
        aggregate=token_mean,
        kl=k2,
        kl_coefficient=kl_coefficient,
    )


RECIPE = reinforce_pp()
