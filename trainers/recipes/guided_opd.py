"""Guided OPD: the teacher acts first often, then less, then never (arXiv:2606.15912).

    b_t ~ Bernoulli(beta_s) by the turn; beta_s falls from 1 to 0 along half a cosine, over 80% of s
    L = [sum_{t: b_t = 1} sum_j -log pi(a_j)  +  sum_{t: b_t = 0} sum_j -S(rho_j, A_j)] / tokens
    A_j = log T(a_j) - log pi_old(a_j), held within +-limit nats

The teacher's turns are imitated, the student's own are distilled by the reverse KL. No turn is
asked for twice: the teacher samples its own turns and scores the student's.
"""

from __future__ import annotations

from turnwise.agents.labels import own_turns
from turnwise.trainers.distillation import Distillation
from turnwise.trainers.imitation import Imitation, by_chance, last
from turnwise.trainers.mixes import cosine
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.signals import clipped, reverse_kl
from turnwise.trainers.surrogates import ppo, token_mean


def guided_opd(
    *,
    over: float = 0.8,
    limit: float = 10.0,
    batch: int = 16,
    temperature: float = 1.0,
    low: float = 0.2,
    high: float = 0.28,
) -> Recipe:
    """Return the recipe.

    Args:
        over: share of the run after which the student acts alone.
        limit: holds the log-ratio of one odd token, nats.
        batch: episodes of an update; a round has `updates_per_step` of them.
        temperature: at which the teacher acts.

    Raises:
        ValueError: a number is out of its range.
    """
    return Recipe(
        name="guided_opd",
        source="arXiv:2606.15912",
        status="The clip of the log-ratio is ours. A turn that the environment calls malformed is "
        "imitated by nobody; it is not dropped from the student's side. "
        "Not compared yet.",
        distillation=Distillation(signal=clipped(reverse_kl, limit)),
        surrogate=ppo(low, high),
        imitation=Imitation(
            roll_in=by_chance(cosine(1.0, 0.0, over)),
            wanted=own_turns,
            keep=last,
            distinct=False,
            batch=batch,
            temperature=temperature,
        ),
        aggregate=token_mean,
    )


RECIPE = guided_opd()
