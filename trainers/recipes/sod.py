"""SOD: step-wise on-policy distillation (arXiv:2605.07725 eq. 6-10).

    d_k = mean over turn k of |log pi_old - log T|
    w_1 = 1;  w_k = min((max(d_1, floor median d_1) + eps) / (d_k + eps), 1 + delta)
    A_t = A_GRPO + c w_k(t) (log T(y_t) - log pi_old(y_t))
    L   = token-mean of -min(rho A, clip(rho, 1 - .2, 1 + .28) A)

A wrong call pushes the later turns off what the teacher knows; a turn that has drifted further than
the first one of its episode is distilled less. Measured under such a teacher (docs/results.md) that
prevents the damage that OPD does, and gains nothing over the reward alone; under a teacher that
knows where a wrong call leads, it loses at OPD's rate what OPD gains.
"""

from __future__ import annotations

from turnwise.trainers import weights
from turnwise.trainers.distillation import Distillation
from turnwise.trainers.mixes import added, constant
from turnwise.trainers.ranges import at_least
from turnwise.trainers.recipe import Recipe, no_credit
from turnwise.trainers.recipes.grpo import grpo
from turnwise.trainers.signals import clipped, reverse_kl
from turnwise.trainers.surrogates import ppo, token_mean

FLOOR = 0.25


def sod(
    *,
    coefficient: float = 1.0,
    eps: float = 1e-6,
    delta: float = 0.2,
    floor: float = FLOOR,
    limit: float = 10.0,
    by_batch: bool = False,
    reward: bool = True,
    low: float = 0.2,
    high: float = 0.28,
) -> Recipe:
    """Return the recipe.

    Args:
        coefficient: c, of the distillation beside the reward.
        delta: a turn counts at most 1 + delta.
        floor: share of the batch's median d_1 that d_1 counts at least; 0 is as published. Not
            with by_batch.
        limit: holds the log-ratio of one odd token, nats.
        by_batch: compare with the mean d_1 of the batch and not with the trajectory's own.
        reward: add the advantage of GRPO; without, distillation alone.

    Raises:
        ValueError: a number is out of its range, or `by_batch` meets a `floor` of its own.
    """
    at_least(0, coefficient=coefficient)
    if by_batch and floor != FLOOR:
        raise ValueError(f"by_batch has no use for floor={floor:g}: leave one of them out")
    own = weights.sod(eps=eps, delta=delta, floor=floor)
    return Recipe(
        name="sod",
        source="arXiv:2605.07725 eq. 6-10",
        status="d_1 has a floor, a log-ratio is clipped, and a group's standard deviation has a "
        "floor of 1e-2: all three are ours. Measured (docs/results.md): with a teacher that has "
        "never seen the tools fail it doubles what the student solves, where OPD with or without "
        "GRPO, and the same weights made uniform or dealt at random, lose all of it; it is level "
        "with GRPO alone. With a teacher that knows the failures it is below OPD at rates of "
        "their own and at OPD's, and level with GRPO alone: the weights fall on what is not "
        "learnt yet, too.",
        credit=grpo().credit if reward else no_credit,
        distillation=Distillation(
            signal=clipped(reverse_kl, limit),
            weight=weights.batch_sod(eps=eps, delta=delta) if by_batch else own,
            mix=added,
            schedule=constant(coefficient),
        ),
        surrogate=ppo(low, high),
        aggregate=token_mean,
    )


RECIPE = sod()
