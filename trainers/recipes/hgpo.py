"""HGPO: arXiv:2602.22817.

    C_k(s_t) = (s_{t-k}, ..., s_t),  k = 0..K:  the same state after the same k states
    A_k(i,t) = (R_it - mean) / (std + 1e-6)                 over the turns with the same C_k, ddof 0
    A(i,t)   = sum_k w_k A_k / sum_k w_k,  w_k = (k + 1)^alpha,  over the levels present
    R_it     = sum_{s>=t} gamma^(s-t) r_is
    L        = token-mean of -min(rho A, clip(rho, .8, 1.2) A)

The released code renormalises over levels whose advantage is not 0, so that whether a level counts
depends on the own return; here it counts where at least two trajectories meet.

Measured where progress is paid turn by turn (docs/results.md): level with GRPO at first, and above
it with three times the steps.
"""

from __future__ import annotations

from turnwise.trainers.advantages import Combine, Level, by_levels, mean, renormalised, std
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.surrogates import ppo, token_mean
from turnwise.trainers.turns import anchor, history, reward_to_go


def hgpo(
    *,
    history_turns: int = 2,
    alpha: float = 1.0,
    gamma: float = 0.95,
    floor: float = 1e-2,
    renormalise: Combine = renormalised,
) -> Recipe:
    """Return the recipe; `hgpo(renormalise=nonzero, floor=0.0)` is the released code.

    Raises:
        ValueError: a number is out of its range.
    """
    keys = [anchor, *(history(k) for k in range(1, history_turns + 1))]
    levels = (
        Level(
            returns=reward_to_go(gamma),
            keys=key,
            baseline=mean,
            scale=std(0, 1e-6, floor),
            weight=float(k + 1) ** alpha,
        )
        for k, key in enumerate(keys)
    )
    return Recipe(
        name="hgpo",
        source="arXiv:2602.22817",
        status="Renormalised over levels that hold two trajectories, not over nonzero advantages; "
        "floor under the standard deviation. Measured where progress is paid turn by turn "
        "(docs/results.md): level with GRPO at first, and above it (.42, .35) with three times the "
        "steps.",
        credit=by_levels(*levels, combine=renormalise),
        history=history_turns,
        surrogate=ppo(0.2, 0.2),
        aggregate=token_mean,
    )


RECIPE = hgpo()
