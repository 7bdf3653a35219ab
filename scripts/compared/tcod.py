"""Temporal curricula against plain distillation, and what a curriculum must be told from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from compared.arms import PACE, TCOD, TCOD_PAIRS, TCOD_ROBUST, WHOLE_PAIRS, whole_vocabulary
from compared.regimes import (
    BEGINNER,
    CLEAN,
    CLEAN_STATIONARY,
    GENTLE,
    LONG,
    PHASED,
    ROBUST,
    ROBUST_STATIONARY,
    SHELTERED,
    WIDE,
    experiment,
)
from turnwise.trainers.contest import Arm


def backward(arms: Mapping[str, Arm]) -> tuple[Arm, ...]:
    """Return B2F at F2B's rate, with a slack of one turn and as published."""
    slacks = (("B2F, slack 1, F2B's rate", 1), ("B2F as published, F2B's rate", None))
    return tuple(
        replace(
            arms["B2F, slack 1"], name=name, options={"every": PACE, "slack": slack}, rate_of="F2B"
        )
        for name, slack in slacks
    )


def of_one_kind(arms: Mapping[str, Arm]) -> tuple[Arm, ...]:
    """Return what is compared where all stages are one skill."""
    return (
        *(arms[name] for name in ("OPD", "F2B")),
        *(arms[name] for name in ("OPD, tight turn limit", "OPD, constant cut T/4")),
        replace(arms["OPD"], name="OPD, F2B's rate", rate_of="F2B"),
        *backward(arms),
    )


SLACK, PUBLISHED = (each.name for each in backward(TCOD))
PAIRS_OF_ONE_KIND = (
    *TCOD_PAIRS[:1],
    ("F2B", "OPD, F2B's rate"),
    *TCOD_PAIRS[2:],
    *((name, "OPD, F2B's rate") for name in (SLACK, PUBLISHED)),
    ("F2B", SLACK),
    (SLACK, PUBLISHED),
)
SHELTERED_EIGHT = replace(SHELTERED, env={"stages": 8, "turns": 16})
"""Seen in a world of the same skill, a third shorter."""

EXPERIMENTS = (
    experiment(
        name="tcod_phased",
        title="TCOD: 12 stages in three phases, a clean teacher",
        claim="Does a temporal curriculum help where late skills cannot be learnt early?",
        short="A slow F2B is above OPD (.24, .09); a tight turn limit does as much.",
        finding="Yes, if it is slow: F2B that deepens every eighth step (the expert's length "
        "after a fifth of the budget) is above OPD at one rate in success, progress and area. At "
        "every fourth step it is above in progress alone, and at the rate that its dev seeds "
        "chose (.39 against .36 there) in nothing. A limit just above the expert's length does as "
        "much without a curriculum: above OPD, above F2B at its own rate, level with the slow one "
        "(.37 against .24), and B2F, whose slack of one turn is such a limit, is above OPD in "
        "progress. A constant cut never shows the second half and solves nothing. So it helps not "
        "to play on where one is lost, by either way; that the order of depths adds to it is not "
        "seen. Success is bimodal (.0 or .3 to .7): six seeds tell little more.",
        env=PHASED,
        beginning=BEGINNER,
        teachers={"clean": CLEAN},
        arms=(
            *TCOD.values(),
            replace(TCOD["F2B"], name="F2B, OPD's rate", rate_of="OPD"),
        ),
        pairs=(
            *TCOD_PAIRS,
            ("F2B, OPD's rate", "OPD"),
            ("F2B, half as fast", "OPD"),
            ("F2B, half as fast", "OPD, tight turn limit"),
        ),
        plan=WIDE,
        budget=48_000,
        rates=GENTLE,
    ),
    experiment(
        name="tcod_robust",
        title="TCOD: the three phases, a teacher that knows every way back",
        claim="Does the curriculum help a student whose teacher is never off its support?",
        short="Level with OPD at one rate: F2B, B2F and a tight limit; the constant cut is below.",
        finding="No: where the teacher is right off the path, too, F2B, B2F and a tight turn "
        "limit are level with OPD in success, progress and area; all but the constant cut, which "
        "never shows the second half, rise to .5 to .7 from .05. Two dev seeds gave all of them "
        "one rate, 1e-3. By the first of them alone OPD, B2F and the limit (with OPD's) had 3e-4: "
        "there (rows that are not kept) OPD ended at .29, and B2F (.54) and the limit (.48) were "
        "above it, as was F2B at 1e-3 (.64). So an earlier page's gain of F2B was its rate; at a "
        "rate too low to arrive, not to play on where one is lost helps.",
        env=PHASED,
        beginning=BEGINNER,
        teachers={"robust": ROBUST},
        arms=tuple(each for each in TCOD_ROBUST.values() if each.name != "F2B, half as fast"),
        pairs=TCOD_PAIRS,
        plan=WIDE,
        budget=48_000,
        rates=GENTLE,
    ),
    experiment(
        name="tcod_short",
        title="TCOD, null: 3 stages",
        claim="In a short task there is nothing to order.",
        short="F2B is level, as a null should be; at one rate B2F is below OPD (.76, .92).",
        finding="F2B is level with OPD, at either rate: both learn most of it (.83 to .93), as a "
        "null should have it. B2F with a slack of one turn is not: at one rate it ends at .76, "
        "below OPD (.92) in success and progress. It lets its student act for one turn more than "
        "the expert needs, where a way back takes two, and the test leaves room for that; whether "
        "this is why was not taken apart.",
        env={"stages": 3, "turns": 6, "phased": True, "progress": 1.0},
        beginning=BEGINNER,
        teachers={"robust": ROBUST},
        arms=(
            *(TCOD_ROBUST[name] for name in ("OPD", "F2B")),
            replace(TCOD_ROBUST["OPD"], name="OPD, F2B's rate", rate_of="F2B"),
            backward(TCOD_ROBUST)[0],
        ),
        pairs=(*TCOD_PAIRS[:1], *((name, "OPD, F2B's rate") for name in ("F2B", SLACK))),
        plan=WIDE,
        budget=24_000,
        rates=GENTLE,
    ),
    experiment(
        name="tcod_stationary",
        title="TCOD: 12 stages of one kind, a clean teacher",
        claim="The same where early and late skills are one skill.",
        short="F2B, B2F with slack 1, the full KL have about twice OPD's area; level at the end.",
        finding="It helps to get there sooner: F2B has twice OPD's area under success (.54 "
        "against .25), above it whether OPD has its own rate or F2B's. In success at the end it "
        "is level with OPD at either rate (.87 against .66 and .73): F2B ends at .8 to .9 in "
        "every seed, OPD in three of six, at either rate. B2F with a slack of one turn does as "
        "well as F2B (.89, area .45, above OPD's); as published, where the student may act up to "
        "the limit, it is level with OPD (.60, area .19), and below slack 1 in area. A tight turn "
        "limit is level with F2B; it fails in one seed and ends at half in another. The constant "
        "cut is below OPD in success. The KL itself over the vocabulary, in place of that of one "
        "sampled token, does as much for OPD as F2B (.94, area .58, above OPD's), and vOPD's "
        "baseline nothing that shows. OPD's rate, which both of these and the limit take, is the "
        "highest of the grid, 3e-3.",
        env=LONG,
        beginning=SHELTERED_EIGHT,
        teachers={"clean": CLEAN_STATIONARY},
        arms=(*of_one_kind(TCOD), *whole_vocabulary("clean")),
        pairs=(*PAIRS_OF_ONE_KIND, *WHOLE_PAIRS),
        plan=WIDE,
        budget=48_000,
        rates=GENTLE,
    ),
    experiment(
        name="tcod_stationary_robust",
        title="TCOD: 12 stages of one kind, a teacher that knows every way back",
        claim="The same where the teacher is right off the path, too.",
        short="F2B has twice OPD's area at one rate, a tight limit as much; level at the end.",
        finding="It helps to get there sooner, as with the clean teacher: F2B has .58 of area "
        "under success where OPD has .22 at a rate of its own and .29 at F2B's, above either; a "
        "tight turn limit has as much (.53), without a curriculum. At the end these solve about "
        ".9 (.89, .88, .94) and are level. B2F with a slack of one turn ends at .93, above the "
        "published form (.76) in success, progress and area. The constant cut, a fourth of the "
        "limit and half of the task, ends at .26 (one seed at .79), below OPD in success and "
        "progress. At F2B's rate, 3e-3, OPD fails in one seed of six.",
        env=LONG,
        beginning=SHELTERED_EIGHT,
        teachers={"robust": ROBUST_STATIONARY},
        arms=of_one_kind(TCOD_ROBUST),
        pairs=PAIRS_OF_ONE_KIND,
        plan=WIDE,
        budget=48_000,
        rates=GENTLE,
    ),
)
