"""OPD: on-policy distillation by the sampled reverse KL (arXiv:2306.13649, tinker-cookbook).

    A_t = log T(y_t) - log pi_old(y_t), held within +-limit nats
    L   = seq-mean-token-mean of -min(rho A, clip(rho, 1 - .2, 1 + .28) A);  no reward

The student acts, the teacher scores its very tokens. With gamma = 0 the expected gradient is that
of KL(pi || T) at each position, the prefix held fixed; it is not that of the whole sequence.
"""

from __future__ import annotations

from turnwise.trainers.distillation import Distillation
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.signals import clipped, reverse_kl
from turnwise.trainers.surrogates import ppo, seq_mean_token_mean


def opd(*, limit: float = 10.0, low: float = 0.2, high: float = 0.28) -> Recipe:
    """Return the recipe; `limit` holds the log-ratio of one odd token."""
    return Recipe(
        name="opd",
        source="arXiv:2306.13649 with the sampled reverse KL of tinker-cookbook",
        status="The clip of the log-ratio is ours; every trajectory counts alike, so that long "
        "episodes do not crowd out short ones. Measured (docs/results.md): under a teacher that "
        "has never seen a failure or a side branch, a competent student unlearns its ways back "
        "within a few updates, while the KL falls; watch success, and KL by kind of turn.",
        distillation=Distillation(signal=clipped(reverse_kl, limit)),
        surrogate=ppo(low, high),
        aggregate=seq_mean_token_mean,
    )


RECIPE = opd()
