"""OPD: on-policy distillation by the sampled reverse KL (arXiv:2306.13649, tinker-cookbook).

    A_t = log T(y_t) - log pi_old(y_t), held within +-limit nats
    L   = seq-mean-token-mean of -min(rho A, clip(rho, 1 - .2, 1 + .28) A);  no reward

With `reward` A_t also has the advantage of turn_rloo: teacher and reward in the same updates. The
student acts, the teacher scores its very tokens. With gamma = 0 the expected gradient is that of
KL(pi || T) at each position, the prefix held fixed; it is not that of the whole sequence.
"""

from __future__ import annotations

from dataclasses import replace

from turnwise.trainers.distillation import Distillation
from turnwise.trainers.mixes import added
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.recipes.turn_rloo import turn_rloo
from turnwise.trainers.signals import clipped, reverse_kl
from turnwise.trainers.surrogates import ppo, seq_mean_token_mean


def opd(
    *, limit: float = 10.0, low: float = 0.2, high: float = 0.28, reward: bool = False
) -> Recipe:
    """Return the recipe.

    Args:
        limit: holds the log-ratio of one odd token, nats.
        reward: add the advantage of turn_rloo (without histories).

    Raises:
        ValueError: a number is out of its range.
    """
    taught = Recipe(
        name="opd",
        source="arXiv:2306.13649 with the sampled reverse KL of tinker-cookbook",
        status="The clip of the log-ratio is ours; every trajectory counts alike, so that long "
        "episodes do not crowd out short ones. Measured (docs/results.md): under a teacher that "
        "has never seen a failure or a side branch, a student loses all that it solves and a third "
        "of its progress, while the KL falls; watch success, and KL by kind of turn.",
        distillation=Distillation(signal=clipped(reverse_kl, limit)),
        surrogate=ppo(low, high),
        aggregate=seq_mean_token_mean,
    )
    return with_reward(taught) if reward else taught


def with_reward(taught: Recipe) -> Recipe:
    """Return a recipe of distillation that learns from the reward, too, by turn_rloo's credit."""
    paid = turn_rloo(history_turns=0)
    assert taught.distillation is not None
    both = replace(taught.distillation, mix=added)
    return replace(taught, credit=paid.credit, importance=paid.importance, distillation=both)


RECIPE = opd()
