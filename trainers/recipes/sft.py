"""SFT: supervised fine-tuning on the teacher's own solved episodes.

    D = the teacher's turns in episodes that it solved, all rounds
    L = -1/M sum_j log pi(a_j | history)        over the M tokens of those turns

Cross-entropy on states that the teacher visits: p_s = d_T, p_a = T, w = 1. The student never acts,
so nothing is learnt about the states that its own errors lead to; that is what `dagger` adds.
"""

from __future__ import annotations

from turnwise.agents.labels import own_turns
from turnwise.trainers.imitation import Imitation, solved, teacher_alone
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.surrogates import token_mean


def sft(*, batch: int = 16, temperature: float = 1.0) -> Recipe:
    """Return the recipe.

    Args:
        batch: episodes of an update.
        temperature: at which a neural teacher acts.

    Raises:
        ValueError: a number is out of its range.
    """
    return Recipe(
        name="sft",
        source="the SFT baseline of arXiv:2605.12913",
        status="The teacher demonstrates anew each round and all rounds are kept; equal actions in "
        "equal states count once. Measured (docs/results.md) beside dagger.",
        imitation=Imitation(
            roll_in=teacher_alone,
            wanted=own_turns,
            learn_from=solved,
            batch=batch,
            temperature=temperature,
        ),
        aggregate=token_mean,
    )


RECIPE = sft()
