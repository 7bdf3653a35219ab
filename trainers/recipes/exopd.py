"""ExOPD: distillation towards an extrapolated teacher (G-OPD, arXiv:2602.12125).

    A_t = factor (log T - log R0) - (log pi_old - log R0)      R0: the student before the run
    L   = token-mean of -min(w, 5) rho A;  no reward

The target is R0^(1 - factor) T^factor / Z: beyond the teacher, in the direction in which it differs
from where the student began. Too large a factor leaves the region in which the correction is safe.
"""

from __future__ import annotations

from turnwise.trainers.distillation import Distillation
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.signals import clipped, tilted
from turnwise.trainers.surrogates import token_mean, truncated, weight_clip


def exopd(*, factor: float = 1.25, limit: float = 10.0) -> Recipe:
    """Return the recipe.

    Args:
        factor: 1 is plain distillation, below 1 stops short of the teacher.

    Raises:
        ValueError: a number is out of its range.
    """
    return Recipe(
        name="exopd",
        source="arXiv:2602.12125",
        status="The clip of the advantage is ours; reward correction by the teacher's own base is "
        "left out. "
        "Not compared yet.",
        distillation=Distillation(signal=clipped(tilted(factor), limit), needs=("reference",)),
        surrogate=weight_clip(),
        importance=truncated(5.0),
        aggregate=token_mean,
    )


RECIPE = exopd()
