"""GKD: on-policy distillation through a divergence over the vocabulary (arXiv:2306.13649).

    L = seq-mean-token-mean of D(T, pi)      D: jsd(beta), or any of turnwise.trainers.divergences

The student acts; the gradient flows through the divergence and not through the sampling.
"""

from __future__ import annotations

import math

from turnwise.trainers.distillation import Distillation
from turnwise.trainers.divergences import fkl, full, jsd, rkl
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.surrogates import ppo, seq_mean_token_mean


def gkd(*, beta: float = 0.5, entry_limit: float = math.inf) -> Recipe:
    """Return the recipe.

    Args:
        beta: 0 is the forward KL and 1 the reverse, as in the paper.
        entry_limit: each entry of the sum over the vocabulary counts at most so much.

    Raises:
        ValueError: a number is out of its range.
    """
    entries = {0.0: fkl, 1.0: rkl}.get(beta) or jsd(beta)
    return Recipe(
        name="gkd",
        source="arXiv:2306.13649 eq. 1, alg. 1 with lambda = 1",
        status="Every episode is the student's; to mix in the teacher's own, see dagger. Measured "
        "with beta=1 (docs/results.md, 12 stages of one skill): twice OPD's area under success, as "
        "tcod_f2b has, and .89 or more of success in each of six seeds, OPD in two.",
        distillation=Distillation(direct=full(entries, entry_limit=entry_limit)),
        surrogate=ppo(),
        aggregate=seq_mean_token_mean,
    )


RECIPE = gkd()
