"""turn-RLOO: leave-one-trajectory-out baselines on returns-to-go, at every level that is present.

    A(i,t) = sum_l w_l (R_l(i,t) - mean_{rows of other trajectories in G_l(i,t)} R_l) / sum_l w_l
    levels: the task (R = episode return, w = 1), the same state (R = reward-to-go, w = 1),
            the same state after the same k = 1..K states (R = reward-to-go, w = (k+1)^alpha)
    L = token-mean of -min(rho A, clip(rho, 1 - .2, 1 + .28) A) * min(w, 2) * [no token w < 1e-4]

RLOO (arXiv:2402.14740) with the levels of GiGPO (arXiv:2505.10978) and HGPO (arXiv:2602.22817).
A level counts where its group holds at least two distinct trajectories, which the own action cannot
influence; the estimate is therefore unbiased for gamma = 1 (tests/test_unbiased.py). The token mean
then divides the whole batch by one number, its count of tokens: a scale, but a random one.

Measured where progress is paid turn by turn (docs/results.md): level with GRPO; without histories,
`gamma=.95` and `divided` bring it up to GiGPO.
"""

from __future__ import annotations

from functools import partial

from turnwise.trainers.advantages import Level, by_levels, std, unscaled
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.surrogates import Importance, both, ppo, token_mean, truncated, veto
from turnwise.trainers.turns import anchor, history, outcome, reward_to_go

IMPORTANCE = both(truncated(2.0), veto(1e-4))


def turn_rloo(
    *,
    history_turns: int = 2,
    alpha: float = 1.0,
    gamma: float = 1.0,
    divided: bool = False,
    low: float = 0.2,
    high: float = 0.28,
    importance: Importance = IMPORTANCE,
) -> Recipe:
    """Return the recipe with `history_turns` history levels of weight (k + 1)^alpha.

    Args:
        gamma: discount per turn. Below 1 every level, that of the task too, compares discounted
            rewards-to-go: far less variance where rewards come soon after the turn that earned
            them, and a bias towards near rewards.
        divided: divide each level by its group's standard deviation, at least .01, as GiGPO does:
            groups that hardly differ count as much as others, and the estimate is no longer
            unbiased.

    Raises:
        ValueError: a number is out of its range.
    """
    to_go, scale = reward_to_go(gamma), std(1, 1e-6, 1e-2) if divided else unscaled
    level = partial(Level, scale=scale)
    whole = level(returns=outcome, once=True) if gamma == 1 else level(returns=to_go)
    pasts = (
        level(returns=to_go, keys=history(k), weight=float(k + 1) ** alpha)
        for k in range(1, history_turns + 1)
    )
    return Recipe(
        name="turn_rloo",
        source="RLOO arXiv:2402.14740 at the levels of arXiv:2505.10978 and arXiv:2602.22817",
        status="Unbiased credit, as it stands; no division by a standard deviation. Measured where "
        "progress is paid turn by turn (docs/results.md): level with GRPO, with histories and "
        "without, and without also after three times the steps (at one rate below it in progress). "
        "There gamma=.95 and divided=True, which are biased, bring it above itself in area and "
        "level with GiGPO (.51 of success, .34 without). Level with one turn, as it should be.",
        credit=by_levels(whole, level(returns=to_go, keys=anchor), *pasts),
        history=history_turns,
        surrogate=ppo(low, high),
        importance=importance,
        aggregate=token_mean,
    )


RECIPE = turn_rloo()
