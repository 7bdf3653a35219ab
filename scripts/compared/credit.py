"""Credit by the turn against credit by the trajectory."""

from __future__ import annotations

from dataclasses import replace

from compared.arms import (
    CREDIT,
    CREDIT_APART,
    CREDIT_APART_PAIRS,
    CREDIT_PAIRS,
    GRPO,
    HISTORIES,
    TOKEN_MEAN,
)
from compared.regimes import BEGINNER, GENTLE, MANY, RL, SKILLED, SLIPPING, begins, experiment

ONE_TURN = {"stages": 1, "turns": 1, "phased": True, "progress": 1.0}

EXPERIMENTS = (
    experiment(
        name="turn_credit",
        title="Turn-level credit: progress is paid turn by turn",
        claim="Does credit by the turn beat GRPO's by the trajectory, where turns are paid?",
        short="turn_rloo, GiGPO and HGPO are level with GRPO at 48,000 steps.",
        finding="All rise well above their start, and none is told from GRPO, in success, "
        "progress or area: HGPO and GiGPO end .03 higher, turn_rloo .01 and turn_rloo with the "
        "histories of the recipe .05 lower (at its own rate, 3e-4; all others have 1e-3). So "
        "credit by the turn brings nothing here that can be seen at this size. An earlier run on "
        "another machine had HGPO above GRPO in progress by .035; here it is .01, and level.",
        env=SLIPPING,
        beginning=BEGINNER,
        arms=(*CREDIT, HISTORIES),
        pairs=(*CREDIT_PAIRS, (HISTORIES.name, "GRPO"), (HISTORIES.name, "turn_rloo")),
        plan=MANY,
        budget=48_000,
        rates=GENTLE,
    ),
    experiment(
        name="turn_credit_long",
        title="Turn-level credit: the same, at three times the budget",
        claim="Does it tell where there is time to rise further?",
        short="GiGPO (.57) and HGPO (.42) above GRPO (.35); at one rate GiGPO in area alone.",
        finding="Yes: with three times the steps GiGPO ends .22 above GRPO and HGPO .08, both "
        "above in success, progress and area; turn_rloo, without histories, is level with it. "
        "HGPO has GRPO's rate; GiGPO's is three times as high, and there GRPO ends at .42, so "
        "that GiGPO is told from it in area alone, and turn_rloo is below it in progress. That "
        "GRPO's loss is a mean over episodes first does not hold it back: with the mean over "
        "tokens of the others it is level with itself. Taken apart at GiGPO's rate: without "
        "division by a group's standard deviation, which GRPO has, too, GiGPO falls from .57 to "
        ".39, below itself. Plain turn_rloo ends at .34; with that division .43, with GiGPO's "
        "discount of .95 at .35, neither told from it; with both at .51, above itself in area, "
        "and level with GiGPO. Beside the discount the division adds .17 of success [.04, .29]. "
        "So the two belong together: rewards that come soon, in groups that weigh alike however "
        "little they differ; the baseline, and how levels are weighed, do not show. These arms "
        "were looked at on test seeds, and have GiGPO's rate: no tuned methods.",
        env=SLIPPING,
        beginning=BEGINNER,
        arms=(*CREDIT, *CREDIT_APART, TOKEN_MEAN),
        pairs=(
            *CREDIT_PAIRS,
            *((name, TOKEN_MEAN.name) for name in ("GiGPO", "HGPO", "GRPO")),
            *CREDIT_APART_PAIRS,
        ),
        plan=MANY,
        budget=144_000,
        rates=(3e-4, 1e-3),
    ),
    experiment(
        name="turn_credit_outcome",
        title="Turn-level credit, null: the end alone is paid",
        claim="Without rewards on the way there should be no difference, at one rate.",
        short="Level, as a null should be.",
        finding="There is none: at one rate all four double what they solve, and turn_rloo, GiGPO "
        "and HGPO are level with GRPO in success, progress and area, as a null should be.",
        env={**SLIPPING, "progress": 0.0},
        beginning=SKILLED,
        arms=(GRPO, *(replace(arm, rate_of="GRPO") for arm in CREDIT[1:])),
        pairs=CREDIT_PAIRS,
        plan=MANY,
        budget=48_000,
        rates=(3e-4, 1e-3),
    ),
    experiment(
        name="turn_credit_one_turn",
        title="Turn-level credit, null: one turn",
        claim="With one turn there is one credit.",
        short="Level, as a null should be.",
        finding="All level with GRPO in success and area, as a null should be: all rise from .67 "
        "to above .9. (They begin at half of the tasks where they were taught.)",
        env=ONE_TURN,
        beginning=begins(0.5, **ONE_TURN),
        arms=CREDIT,
        pairs=CREDIT_PAIRS,
        plan=RL,
        budget=1_500,
        rates=(3e-4, 1e-3),
    ),
)
