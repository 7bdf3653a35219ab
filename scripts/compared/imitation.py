"""Labels on the student's own states against demonstrations."""

from __future__ import annotations

from dataclasses import replace

from compared.labelled import (
    arms_of_dagger,
    arms_without_slips,
    dagger_pairs,
    pairs_of_ways,
    ways_of_dagger,
)
from compared.regimes import SHELTERED, SLIPPING, experiment

AROUND = (2e-3, 5e-3, 1e-2)
FEW = (
    "So few labels teach little. DAgger is .07 of progress and .02 of success above demonstrations "
    "with slips, and not told from those without; its rate is five times theirs. From the last "
    "round alone it unlearns."
)
MANY_LABELS = (
    "Now it matters where labels come from: DAgger and demonstrations with slips solve more than "
    "those without, keep far more progress, and are level with each other. An expert that slips "
    "shows the ways back, too. The student first ends highest (.64), which is told neither from "
    "DAgger's own way nor from demonstrations under slips; the last round alone is below DAgger's "
    "own way."
)

NOTHING_SLIPS = arms_without_slips(2000)
AT_ONE_RATE = replace(
    NOTHING_SLIPS[0],
    name=f"{NOTHING_SLIPS[0].name}, DAgger's rate",
    rate_of=NOTHING_SLIPS[1].name,
)

EXPERIMENTS = (
    experiment(
        name="dagger",
        title="DAgger: hands slip",
        claim="Do labels on the student's own states beat demonstrations?",
        short="More progress than from demonstrations without slips; level with those under slips.",
        finding="In progress: with as many labels each, DAgger keeps .12 more than demonstrations "
        "that were made without slips, and as much as those made under them. In success all three "
        "are level. Of its ways, at its rate: beta down to 0 is level with beta down to .6; the "
        "student first, for up to 8 turns, and the teacher after it ends above it (.38, .29), and "
        "level with demonstrations under slips; the last round alone is far below it (.04 of "
        "success, .24 less progress). An earlier page counted episodes and not labels, so that "
        "DAgger had a quarter more of them than its rivals. The same 160 updates are made of any "
        "number of labels. Rates of 5e-3 and 1e-2 lie within .02 for two of the three (.48, .56 "
        "for demonstrations with slips); 1e-2 is the highest of the grid.",
        env={**SLIPPING, "p_slip": 0.1},
        beginning=SHELTERED,
        arms=(*arms_of_dagger(2000), *ways_of_dagger(2000)),
        pairs=(*dagger_pairs(2000), *pairs_of_ways(2000)),
        budget=0,
        rates=AROUND,
    ),
    *(
        experiment(
            name=name,
            title=f"DAgger: hands slip, {labels:,} labels",
            claim="How many labels does it take?",
            short=short,
            finding=finding,
            env={**SLIPPING, "p_slip": 0.1},
            beginning=SHELTERED,
            arms=(*arms_of_dagger(labels), *ways_of_dagger(labels)),
            pairs=(*dagger_pairs(labels), *pairs_of_ways(labels)),
            budget=0,
            rates=AROUND,
        )
        for name, labels, short, finding in (
            (
                "dagger_few",
                500,
                "So few teach little; DAgger is a little above demonstrations with slips.",
                FEW,
            ),
            (
                "dagger_many",
                6000,
                "Above demonstrations made without slips, level with others.",
                MANY_LABELS,
            ),
        )
    ),
    experiment(
        name="dagger_null",
        title="DAgger, null: nothing slips",
        claim="Where the expert never leaves its way, labels elsewhere should not help.",
        short="Level in success; in progress at the edge of being above.",
        finding="In success they do not: level, at rates of their own and at one rate. In "
        "progress DAgger comes out .09 above at rates of their own, at the edge of the interval, "
        "and level at one rate. On dev tasks the demonstrations were far ahead (.95 against .77), "
        "so seeds differ by more than that.",
        env={**SLIPPING, "p_slip": 0.0},
        beginning=SHELTERED,
        arms=(*NOTHING_SLIPS, AT_ONE_RATE),
        pairs=(*dagger_pairs(2000)[1:2], (NOTHING_SLIPS[1].name, AT_ONE_RATE.name)),
        budget=0,
        rates=AROUND,
    ),
)
