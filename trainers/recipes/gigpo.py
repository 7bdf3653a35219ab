"""GiGPO: arXiv:2505.10978, and its released core_gigpo.py.

    A(i,t) = A_E(i) + omega A_S(i,t)
    A_E    = (R_i - mean(R)) / F                            over the group's trajectories
    A_S    = (R_it - mean over turns in the same state) / F   R_it = sum_{s>=t} gamma^(s-t) r_is
    F      = std (ddof 1) + 1e-6, at least `floor`
    L      = token-mean of -min(rho A, clip(rho, .8, 1.2) A)  +  .01 k3(pi || ref)

Published defects, repaired here: an episode of many turns counted many times in A_E; a lone episode
got its raw reward as advantage; a trajectory that meets a state twice was its own peer group.

Left out: the published penalty of .1 on an invalid action, in the rewards of its turn and of its
trajectory. Rewards are the environment's alone here: one that wants the penalty charges it.

Measured where progress is paid turn by turn (docs/results.md): level with GRPO at first, above it
with three times the steps (at one rate in area alone); without the division by F it falls below
itself.
"""

from __future__ import annotations

from turnwise.trainers.advantages import Level, Scale, by_levels, mean, std, summed
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.surrogates import k3, ppo, token_mean
from turnwise.trainers.turns import anchor, outcome, reward_to_go

SCALE = std(1, 1e-6, 1e-2)


def gigpo(
    *,
    omega: float = 1.0,
    gamma: float = 0.95,
    scale: Scale = SCALE,
    kl_coefficient: float = 0.01,
    length_weighted: bool = False,
) -> Recipe:
    """Return the recipe; `scale=unscaled` is the published mean_norm.

    Args:
        omega: weight of the advantage within a state.
        length_weighted: the released code's episode statistics over turns
            (`compute_mean_std_cross_steps`), whose baseline is biased.

    Raises:
        ValueError: a number is out of its range.
    """
    episode = Level(returns=outcome, baseline=mean, scale=scale, once=not length_weighted)
    step = Level(returns=reward_to_go(gamma), keys=anchor, baseline=mean, scale=scale, weight=omega)
    return Recipe(
        name="gigpo",
        source="arXiv:2505.10978",
        status="Episode statistics by episode; 0 without a second trajectory; floor under the "
        "standard deviation. The published penalty of .1 on an invalid action is left out: "
        "rewards are the environment's. The sum of levels weighs turns with a peer group about "
        "twice. Measured where progress is paid turn by turn (docs/results.md): level with GRPO "
        "at first, above it (.57, .35) with three times the steps; at GiGPO's rate GRPO has .42, "
        "and GiGPO is above in area alone. Without the division by a standard deviation it has "
        ".39.",
        credit=by_levels(episode, step, combine=summed),
        surrogate=ppo(0.2, 0.2),
        aggregate=token_mean,
        kl=k3,
        kl_coefficient=kl_coefficient,
    )


RECIPE = gigpo()
