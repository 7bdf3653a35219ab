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
        "branch, .09 after a failure), and where they fall is what matters: SOD doubles "
        "what it solves, while OPD, OPD + GRPO and the same weights made uniform or "
        "dealt at random lose all success and a third of the progress that they began "
        "with, at rates of their own. But SOD is level with GRPO alone: with such a "
        "teacher its weights take the harm away and the teacher adds nothing. OPD, OPD "
        "+ GRPO and GRPO took the lowest rate of the grid.",
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
        finding="Both rise well above their start. OPD + GRPO ends higher than SOD in five of "
        "six seeds, all but told from it (the interval of success ends at .00): with a "
        "teacher that is right after failures, too, weights of about .4 there hold back "
        "what is worth learning. So SOD's weights pay for themselves where the teacher "
        "has no support, and cost something where it has. The chosen rate is the lower "
        "one of two.",
        env=FAILING,
        beginning=BEGINNER,
        teachers={"robust": ROBUST},
        arms=tuple(SOD_ROBUST[name] for name in ("SOD", "OPD + GRPO")),
        pairs=SOD_PAIRS[1:2],
        plan=MANY,
        budget=48_000,
    ),
)
