"""TCOD forward to backward: distil the first turns, then ever deeper (arXiv:2604.24005 eq. 3-4).

    depth(n) = min(start + k(n), Tmax), k(n) = floor(n / c)          the episode is cut there
    A_t = log T(y_t) - log pi_old(y_t), held within +-limit nats;  no reward
    L   = seq-mean-token-mean of -min(rho A, clip(rho, 1 - .2, 1 + .28) A)

A student that has erred early spends the rest of a long episode where its teacher knows nothing. It
is not let that far before it has learnt the turns before. Two controls tell whether the order of
depths matters, or only that episodes are short: `curriculum=constant_cut(turns)`, and opd with
`max_turns` close to what the task takes. Measured (docs/results.md): under a teacher that does not
know the ways back F2B is above OPD at the same rate if it deepens slowly (the expert's length after
a fifth of the budget), and such a limit does as much; under one that does, they end level.
"""

from __future__ import annotations

from dataclasses import replace

from turnwise.trainers.curriculum import f2b, paced
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.recipes.opd import opd


def tcod_f2b(
    *,
    every: int = 6,
    most: int | None = None,
    start: int = 1,
    drift: float | None = None,
    success: float | None = None,
    window: int = 3,
    limit: float = 10.0,
    reward: bool = False,
) -> Recipe:
    """Return the recipe.

    Args:
        every: c, training steps per further turn: 6 on ALFWorld and ScienceWorld, 4 on WebShop.
        most: Tmax; None is the environment's own limit.
        start: turns at the first step.
        drift: one more turn whenever |log pi - log T| in the last third of an episode's turns is
            below this, nats, in the mean over `window` steps; in place of `every`.
        success: one more turn whenever the mean success over `window` steps is at least this;
            likewise, and not with `drift`. It needs a `start` of some turns, within which tasks
            can be solved: an attempt that is cut has no success, and the gate would never open.
        limit: holds the log-ratio of one odd token, nats.
        reward: learn from what the turns that are played earn, too, by turn_rloo's credit: for
            environments that pay on the way, since an attempt that is cut never sees the end.

    Raises:
        ValueError: a number is out of its range, or there are two gates, or one by success
            with a start of one turn.
    """
    pace = paced(every, drift, success, window)
    if success is not None and start < 2:
        raise ValueError(
            f"success={success:g} waits for attempts that succeed, and one that is cut after its "
            f"first turn has not: name a start in which some tasks are solved, got {start}"
        )
    return replace(
        opd(limit=limit, reward=reward),
        name="tcod_f2b",
        source="arXiv:2604.24005 eq. 3-4; ALFWorld's settings in kokolerk/TCOD",
        status="Reverse KL as in the code, not KL(T || pi) as in the paper; one row per episode, "
        "none from older steps; the clip of the log-ratio is ours. Measured (docs/results.md, 12 "
        "stages): with a teacher that knows the ways back, level with OPD; with one that "
        "does not, above it, if the expert's length is reached after a fifth of the budget and "
        "not after a tenth. OPD with a turn limit just above that length did as much and is what "
        "to try first. Where all stages are one skill it has twice OPD's area under success at one "
        "rate, with either teacher, and is level with it at the end; so is, there, that limit. On "
        "BabyAI above OPD (.69, .59).",
        curriculum=f2b(pace, most, start),
    )


RECIPE = tcod_f2b()
