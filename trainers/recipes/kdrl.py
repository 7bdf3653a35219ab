"""KDRL: reward and distillation in one loss (arXiv:2506.02208).

    L = L_GRPO + c(n) seq-mean-token-mean of (log pi - log T)^2 / 2       c falls linearly

On the student's own tokens the square has the gradient of KL(pi || T).
"""

from __future__ import annotations

from dataclasses import replace

from turnwise.trainers.distillation import Distillation
from turnwise.trainers.divergences import k2
from turnwise.trainers.mixes import linear
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.recipes.grpo import grpo


def kdrl(*, first: float = 0.2, last: float = 0.002, over: float = 1.0) -> Recipe:
    """Return the recipe.

    Args:
        first: c at the start.
        last: c at the end, and after it.
        over: share of the run in which c falls.

    Raises:
        ValueError: a number is out of its range.
    """
    return replace(
        grpo(),
        name="kdrl",
        source="arXiv:2506.02208; c as in a re-implementation",
        status="Distils every attempt; the masked variants are `route`s. Not compared yet.",
        distillation=Distillation(direct=k2, schedule=linear(first, last, over)),
        kl_coefficient=0.0,
    )


RECIPE = kdrl()
