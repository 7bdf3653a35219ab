"""Temporal curricula against plain distillation, and what a curriculum must be told from."""

from __future__ import annotations

from dataclasses import replace

from compared.arms import TCOD, TCOD_PAIRS, TCOD_ROBUST
from compared.regimes import (
    BEGINNER,
    CLEAN,
    CLEAN_STATIONARY,
    GENTLE,
    LONG,
    PHASED,
    ROBUST,
    SHELTERED,
    WIDE,
    experiment,
)

EXPERIMENTS = (
    experiment(
        name="tcod_phased",
        title="TCOD: 12 stages in three phases, a clean teacher",
        claim="Does a temporal curriculum help where late skills cannot be learnt early?",
        finding="Four seeds. Where attempts cannot last longer than the task takes, the student "
        "learns the way in three of four: by a turn limit just above the expert's "
        "length, and by B2F, whose slack of one turn is such a limit. Both are above "
        "plain OPD in progress; success is so bimodal (.01 or .5 to .7) that four seeds "
        "do not tell it apart. F2B shows the whole task after two thirds of the budget, "
        "and then spends as many turns off the path as OPD, with which it is level. A "
        "constant cut never shows the last third, and solves nothing. So nothing here "
        "speaks for the order of a curriculum: what helps is not to play on where one "
        "is lost. Of three rates B2F and OPD took the middle one, F2B the lowest, all "
        "by one dev seed.",
        env=PHASED,
        beginning=BEGINNER,
        teachers={"clean": CLEAN},
        arms=tuple(TCOD.values()),
        pairs=TCOD_PAIRS,
        plan=WIDE,
        budget=48_000,
        rates=GENTLE,
    ),
    experiment(
        name="tcod_robust",
        title="TCOD: the three phases, a teacher that knows every way back",
        claim="Does the curriculum help a student whose teacher is never off its support?",
        finding="F2B ends above OPD in success and in progress, higher in five of six seeds and "
        "equal in one: here the curriculum helps, though the teacher is right off the "
        "path, too. It makes more updates of the same steps (372 and 261), for its "
        "episodes are short at first. One dev seed gave OPD the lower rate (.62 against "
        ".57 at F2B's), which may cost it something.",
        env=PHASED,
        beginning=BEGINNER,
        teachers={"robust": ROBUST},
        arms=(
            *(TCOD_ROBUST[name] for name in ("OPD", "F2B")),
            replace(TCOD_ROBUST["OPD"], name="OPD, F2B's rate", rate_of="F2B"),
        ),
        pairs=(*TCOD_PAIRS[:1], ("F2B", "OPD, F2B's rate")),
        plan=WIDE,
        budget=48_000,
        rates=GENTLE,
    ),
    experiment(
        name="tcod_short",
        title="TCOD, null: 3 stages",
        claim="In a short task there is nothing to order.",
        finding="These rows are of a clean teacher and 3,000 steps; those of a robust one and "
        "24,000 are still to be run. Level, as a null should be; in the area under "
        "success F2B is a little below. Both lose most of what the student could do: "
        "the clean teacher has never seen a side branch, however short the task.",
        env={"stages": 3, "turns": 6, "phased": True, "progress": 1.0},
        beginning=BEGINNER,
        teachers={"robust": ROBUST},
        arms=tuple(TCOD_ROBUST[name] for name in ("OPD", "F2B")),
        pairs=TCOD_PAIRS[:1],
        plan=WIDE,
        budget=24_000,
        rates=GENTLE,
    ),
    experiment(
        name="tcod_stationary",
        title="TCOD: 12 stages of one kind, a clean teacher",
        claim="The same where early and late skills are one skill.",
        env=LONG,
        beginning=replace(SHELTERED, env={"stages": 8, "turns": 16}),
        teachers={"clean": CLEAN_STATIONARY},
        arms=tuple(TCOD[name] for name in ("OPD", "F2B", "OPD, constant cut T/4")),
        pairs=TCOD_PAIRS[:1] + TCOD_PAIRS[3:4] + TCOD_PAIRS[5:],
        plan=WIDE,
        budget=48_000,
        rates=GENTLE,
    ),
)
