"""DAgger for agents: the teacher's action at every state that a mixture visits (arXiv:2605.12913).

    b_t ~ Bernoulli(beta_i): the teacher takes the turn, else the student; i = 1, 2, .. the round
    beta_i = max(.6, 1 - .2 (i - 1))
    D_i = D_{i-1} + {(s_t, a_t ~ T(.|s_t))}, whoever acted at s_t            (Ross et al., 2011)
    L = -E_{(s, a) ~ D_i} sum_j log pi(a_j | s, a_<j) / |D_i| in tokens      (eq. 12-13)

Eq. 9 as `student_first`: the student plays kappa ~ U{0..K_i} turns and the teacher the others,
which visits chains of errors; by chance at beta .6 five in a row are met once in a hundred times.

Measured where hands slip (docs/results.md), with as many labels each: from 2,000 on level with
demonstrations made under slips, above those made without in progress, at 6,000 in success.
"""

from __future__ import annotations

from turnwise.trainers.divergences import fkl, full
from turnwise.trainers.imitation import Imitation, by_chance, either, student_first, union, window
from turnwise.trainers.mixes import falling, through
from turnwise.trainers.ranges import at_least, shares
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.surrogates import token_mean, turn_mean


def dagger(
    *,
    first: float = 1.0,
    fall: float = 0.2,
    least: float = 0.6,
    handoff: float = 0.0,
    always_handoff: bool = False,
    rounds: int = 0,
    cap: int | None = None,
    white_box: bool = False,
    by_turn: bool = False,
    batch: int = 16,
    temperature: float = 1.0,
) -> Recipe:
    """Return the recipe.

    Args:
        first: beta of the first round.
        fall: how much beta falls from round to round.
        least: what it falls to.
        handoff: K in the last round, growing from 0 in the first; above 0, half of the episodes
            are played by the student first.
        always_handoff: the student goes first in all of them; `handoff` is at least 1 then.
        rounds: keep so many of the newest rounds; 0 keeps all.
        cap: labels of an episode, at most.
        white_box: the forward KL to a neural teacher's distributions in place of its samples.
        by_turn: every label counts alike, not every token.
        batch: episodes of an update.
        temperature: at which a neural teacher acts and labels; 0 varies less and knows one mode.

    Raises:
        ValueError: a number is out of its range, or `first` is below `least`, or
            `always_handoff` has no `handoff`.
    """
    shares(first=first, fall=fall, least=least)
    at_least(0, handoff=handoff, rounds=rounds)
    if always_handoff and handoff < 1:
        raise ValueError(
            f"always_handoff has the student play up to `handoff` turns first, got {handoff:g}: "
            "name at least 1, or leave always_handoff out"
        )
    chance, late = by_chance(falling(first, fall, least)), student_first(through(0.0, handoff))
    return Recipe(
        name="dagger",
        source="arXiv:2605.12913 eq. 9, 12-13",
        status="All rounds are kept, where the paper says both that and the last one; equal "
        "labels of equal states count once. Beta has a floor, as published, so the last states "
        "are still a mixture's. Measured where hands slip (docs/results.md), with as many labels "
        "each: from 2,000 on level with demonstrations made under slips, and above those made "
        "without in progress, at 6,000 in success; at 500 all teach little. The student first "
        "(handoff=8, always_handoff) is above beta to .6 at 2,000 labels; the last round alone is "
        "far below. White-box, with a teacher that takes every turn, it is the pipeline's bridge: "
        ".85 under a teacher that solves .9, where no method that learns from its own attempts "
        "solved a fourth; .46 under one that solves .49, as much as OPD + GRPO.",
        imitation=Imitation(
            roll_in=late if always_handoff else either(chance, late) if handoff else chance,
            keep=window(rounds) if rounds else union,
            cap=cap,
            direct=full(fkl) if white_box else None,
            batch=batch,
            temperature=temperature,
        ),
        aggregate=turn_mean if by_turn else token_mean,
    )


RECIPE = dagger()
