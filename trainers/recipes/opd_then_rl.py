"""OPD-then-RL: the teacher first, then the reward, with a hard switch (StringNLPLAB/opd-rlvr).

    A_t = log T - log pi_old      until success has reached its plateau (or step `switch`)
    A_t = A_turn-RLOO             from then on, for good
    L   = token-mean of -min(rho A, clip(rho, 1 - .2, 1 + .28) A)

The switch looks at the success of the attempts, not at the distance to the teacher: the distance
says how well the student imitates and not whether there is anything left to gain from it.
"""

from __future__ import annotations

from dataclasses import replace

from turnwise.trainers.distillation import Distillation
from turnwise.trainers.mixes import convex, until, until_plateau
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.recipes.turn_rloo import turn_rloo
from turnwise.trainers.signals import clipped, reverse_kl


def opd_then_rl(
    *,
    switch: int | None = None,
    patience: int = 5,
    gain: float = 0.01,
    limit: float = 10.0,
    history_turns: int = 2,
    gamma: float = 1.0,
) -> Recipe:
    """Return the recipe.

    Args:
        switch: the step at which to switch; None waits for the plateau.
        patience: steps of the mean that must rise.
        gain: by so much over the best one before; else the plateau is reached.
        gamma: of the reward's credit; see turn_rloo.

    Raises:
        ValueError: a number is out of its range.
    """
    when = until(switch) if switch is not None else until_plateau(patience, gain)
    reward = turn_rloo(history_turns=history_turns, gamma=gamma)
    return replace(
        reward,
        name="opd_then_rl",
        source="StringNLPLAB/opd-rlvr; credit of turn_rloo, arXiv:2402.14740",
        status="The plateau is that of the training attempts' success, for want of a validation "
        "run in between. "
        "Not compared yet.",
        distillation=Distillation(signal=clipped(reverse_kl, limit), mix=convex, schedule=when),
    )


RECIPE = opd_then_rl()
