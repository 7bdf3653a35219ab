"""Step-wise weights against none, uniform and permuted ones."""

from __future__ import annotations

from compared.arms import SOD, SOD_PAIRS, SOD_ROBUST
from compared.regimes import BEGINNER, CLEAN, FAILING, GENTLE, MANY, ROBUST, experiment

EXPERIMENTS = (
    experiment(
        name="sod_clean",
        title="SOD: tools fail, and the teacher has never seen it",
        claim="Do step-wise weights help where the teacher has no support after failures?",
        finding="The weights fall where they should (about .4 on the path, .01 in a side "
        "branch, .09 after a failure), and where they fall is what matters: SOD doubles what it "
        "solves, while OPD, OPD + GRPO and the same weights made uniform or dealt at random "
        "lose all success and a third of the progress that they began with, at rates of their "
        "own. But SOD is level with GRPO alone: with such a teacher its weights take the harm "
        "away and the teacher adds nothing. OPD, OPD + GRPO and GRPO took the lowest rate of "
        "the grid.",
        env=FAILING,
        beginning=BEGINNER,
        teachers={"clean": CLEAN},
        arms=tuple(SOD.values()),
        pairs=SOD_PAIRS,
        plan=MANY,
        budget=48_000,
        rates=GENTLE,
    ),
    experiment(
        name="sod_robust",
        title="SOD reversed: the teacher knows the failures",
        claim="Do the weights hurt where the teacher is right after failures, too?",
        finding="Yes, a little. SOD is below OPD in success and progress, and in progress below "
        "OPD + GRPO and below both its controls, which have its rate and its mean weight: what "
        "the weights (.4 on the path, .3 after a failure) take away there was worth learning, "
        "and uniform or shuffled ones take away less of it. It is level with GRPO alone: again "
        "the teacher adds nothing under these weights, while without them it adds .09 (OPD, at "
        "its own rate of 1e-3). So SOD's weights pay for themselves where the teacher has no "
        "support, and cost something where it has.",
        env=FAILING,
        beginning=BEGINNER,
        teachers={"robust": ROBUST},
        arms=tuple(SOD_ROBUST.values()),
        pairs=(*SOD_PAIRS, ("OPD + GRPO", "OPD")),
        plan=MANY,
        budget=48_000,
        rates=GENTLE,
    ),
)
