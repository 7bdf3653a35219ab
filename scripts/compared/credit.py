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
        short="GiGPO (.57) and HGPO (.42) are above GRPO (.35); turn_rloo is level.",
        finding="Yes: with three times the steps GiGPO ends .22 above GRPO and HGPO .08, both "
        "above in success, progress and area; turn_rloo, without histories, is level with it. "
        "HGPO has GRPO's rate; GiGPO's is another, and on dev tasks GRPO was level at both (.62, "
        ".61). GiGPO and HGPO differ from turn_rloo in several ways (a discount of .95, a group's "
        "standard deviation to divide by, a mean that holds the own return, how levels are "
        "weighed); which of them counts was not taken apart.",
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
