"""Step-wise weights against none, uniform and permuted ones."""

from __future__ import annotations

from dataclasses import replace

from compared.arms import SOD, SOD_PAIRS, SOD_ROBUST, TOKEN_MEAN
from compared.controls import paid_by_the_turn
from compared.regimes import BEGINNER, CLEAN, FAILING, GENTLE, MANY, ROBUST, experiment
from turnwise.trainers.contest import Arm

AT = ("OPD", "OPD + GRPO")
"""Compared at SOD's rate, too: theirs came out three times as high."""


def by_the_turn(sod: Arm) -> Arm:
    """Return SOD with turn_rloo's credit, at SOD's rate."""
    return replace(sod, name="SOD, turn_rloo's credit", change=paid_by_the_turn, rate_of="SOD")


MORE_PAIRS = (*SOD_PAIRS, ("SOD", TOKEN_MEAN.name), ("SOD, turn_rloo's credit", "SOD"))

EXPERIMENTS = (
    experiment(
        name="sod_clean",
        title="SOD: tools fail, and the teacher has never seen it",
        claim="Do step-wise weights help where the teacher has no support after failures?",
        short="SOD prevents the damage that OPD does, and is level with the reward alone.",
        finding="The weights fall where they should (about .4 on the path, .01 in a side branch, "
        ".06 after a failure), and where they fall is what matters: SOD doubles what it solves, "
        "while OPD, OPD + GRPO and the same weights made uniform or dealt at random lose all "
        "success and a third of the progress that they began with (OPD and OPD + GRPO at rates of "
        "their own, the weights at SOD's). But SOD is level with GRPO alone, also where that has "
        "SOD's mean over tokens: with such a teacher its weights take the harm away and the "
        "teacher adds nothing. With turn_rloo's credit in place of GRPO's it is below itself "
        "(.06), perhaps because that credit is not divided by a group's spread and so weighs less "
        "beside the teacher: another coefficient was not tried. OPD, OPD + GRPO and GRPO took the "
        "lowest rate of the grid.",
        env=FAILING,
        beginning=BEGINNER,
        teachers={"clean": CLEAN},
        arms=(*SOD.values(), TOKEN_MEAN, by_the_turn(SOD["SOD"])),
        pairs=MORE_PAIRS,
        plan=MANY,
        budget=48_000,
        rates=GENTLE,
    ),
    experiment(
        name="sod_robust",
        title="SOD reversed: the teacher knows the failures",
        claim="Do the weights hurt where the teacher is right after failures, too?",
        short="Below OPD at rates of their own and at OPD's, 1e-3; level with it at SOD's, 3e-4.",
        finding="Yes. At rates of their own SOD (.11) is below OPD (.20) in success and progress, "
        "and below OPD + GRPO (.21) in progress. At OPD's rate, 1e-3, it is below OPD in success, "
        "progress and area, and below OPD + GRPO in progress and area. At its own, 3e-4, at which "
        "nobody gets far, it is level with OPD, and in progress .02 below OPD + GRPO and its own "
        "weights made uniform or dealt at random. The weights (.4 on the path, .3 after a "
        "failure) fall on what is not learnt yet as on what a teacher does not know. OPD is above "
        "GRPO alone (.12); SOD is level with it, also where GRPO has SOD's mean over tokens; with "
        "turn_rloo's credit SOD is level with itself. So SOD's weights pay for themselves where "
        "the teacher has no support, and cost what it could have taught where it has.",
        env=FAILING,
        beginning=BEGINNER,
        teachers={"robust": ROBUST},
        arms=(
            *SOD_ROBUST.values(),
            *(replace(SOD_ROBUST[name], name=f"{name}, SOD's rate", rate_of="SOD") for name in AT),
            replace(SOD_ROBUST["SOD"], name="SOD, OPD's rate", rate_of="OPD"),
            TOKEN_MEAN,
            by_the_turn(SOD_ROBUST["SOD"]),
        ),
        pairs=(
            *MORE_PAIRS,
            *(("SOD", f"{name}, SOD's rate") for name in AT),
            *(("SOD, OPD's rate", name) for name in AT),
            ("OPD", "GRPO"),
            ("OPD + GRPO", "OPD"),
        ),
        plan=MANY,
        budget=48_000,
        rates=GENTLE,
    ),
)
