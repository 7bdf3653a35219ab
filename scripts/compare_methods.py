"""Which method helps in which regime: every comparison of docs/results.md, from nothing.

    python scripts/compare_methods.py                  all of it; goes on where it was stopped
    python scripts/compare_methods.py --only tcod_phased sod_clean --seeds 3 --budget 0.5
    python scripts/compare_methods.py --page-only      docs/results.md again, from docs/results

Tiny transformers and their larger teachers are made on the spot; nothing is downloaded. Every run
is cached by a hash of its settings in `--out`.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import tyro

from turnwise.trainers.contest import Arm, Experiment, Models, School
from turnwise.trainers.equal_start import StartPlan
from turnwise.trainers.guard import Guard
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.results_page import write_page
from turnwise.trainers.suite import Suite, run_suite, scaled
from turnwise.trainers.weights import ones, permuted, uniform_like

SHAPE = {"heads": 4, "kv_heads": 2, "head_dim": 16}
MODELS = Models(
    student={"hidden": 48, "layers": 2, "ffn": 96, **SHAPE},
    teacher={"hidden": 80, "layers": 2, "ffn": 160, **SHAPE},
)
LONG = {"stages": 12, "turns": 24, "progress": 1.0}
PHASED = {**LONG, "phased": True}
FAILING = {"stages": 8, "turns": 16, "phased": True, "p_fail": 0.15, "progress": 1.0}
SLIPPING = {"stages": 8, "turns": 16, "phased": True, "p_slip": 0.05, "progress": 1.0}

KNOWS = StartPlan(target=0.97, tolerance=0.05, steps=500, learning_rate=4e-3, check_below=0.05)
CLEAN = School(env=PHASED, start=KNOWS)
"""Knows the way, and nothing else: it has never seen a failure or a side branch."""
CLEAN_STATIONARY = School(env=LONG, start=KNOWS)
ROBUST = School(
    env={**PHASED, "turns": 48, "p_fail": 0.15, "p_slip": 0.1},
    start=replace(KNOWS, target=0.85, check_below=0.15, steps=1000),
    noise=0.12,
)
"""Taught where tools fail and hands slip, beside actions of chance: it knows every way back. It has
twice the turns, for in as few as the methods have, seven of eight of such demonstrations end too
soon to be shown."""


def begins(target: float, **env: object) -> School:
    """Return how a student is brought to this progress: it has seen failures and ways back."""
    return School(env={**env, "p_fail": 0.15}, start=StartPlan(target=target), noise=0.1)


BEGINNER = begins(0.5, **PHASED)
"""Where all begin whose world has phases."""
SKILLED = begins(0.8, **PHASED)
"""Where reward comes at the end alone: a beginner meets it in one attempt of twenty."""
SHELTERED = School(
    env={"stages": 8, "turns": 16, "phased": True}, start=StartPlan(target=0.4), demos=800
)
"""Has seen the expert's way alone, as most demonstrations show it."""


# Controls: what is taken out of a method, one thing at a time.


def unweighted(recipe: Recipe) -> Recipe:
    """OPD + GRPO: SOD without its weights."""
    return _weighted(recipe, ones)


def uniform(recipe: Recipe) -> Recipe:
    """SOD with the mean of its weights everywhere."""
    return _weighted(recipe, uniform_like(recipe.distillation.weight))


def shuffled(recipe: Recipe) -> Recipe:
    """SOD with its weights dealt to turns at random."""
    return _weighted(recipe, permuted(recipe.distillation.weight))


def _weighted(recipe: Recipe, weight: object) -> Recipe:
    return replace(recipe, distillation=replace(recipe.distillation, weight=weight))


def anchored(recipe: Recipe) -> Recipe:
    """Without the KL to the reference: no method of the comparison has one."""
    return replace(recipe, kl_coefficient=0.0)


PACE = 4
"""Training steps per further turn: 24 turns are whole after two thirds of 48,000 steps."""


def arms_of_tcod(teacher: str) -> dict[str, Arm]:
    """Return OPD, its curricula, and what a curriculum must be told from."""
    arm = partial(Arm, teacher=teacher, rate_of="OPD")
    own = partial(Arm, teacher=teacher)
    arms = (
        own(name="OPD", method="opd"),
        own(name="F2B", method="tcod_f2b", options={"every": PACE}),
        arm(name="OPD, tight turn limit", method="opd", env={"turns": 13}),
        arm(name="OPD, constant cut T/4", method="opd", plan={"max_turns": 6}),
        own(name="B2F, slack 1", method="tcod_b2f", options={"every": PACE}),
    )
    return {each.name: each for each in arms}


TCOD_PAIRS = (
    ("F2B", "OPD"),
    ("B2F, slack 1", "OPD"),
    ("OPD, tight turn limit", "OPD"),
    ("OPD, constant cut T/4", "OPD"),
    ("F2B", "OPD, tight turn limit"),
    ("F2B", "OPD, constant cut T/4"),
)
SOD_PAIRS = (
    ("SOD", "OPD"),
    ("SOD", "OPD + GRPO"),
    ("SOD", "uniform weights"),
    ("SOD", "permuted weights"),
    ("SOD", "GRPO"),
)
CREDIT_PAIRS = (("turn_rloo", "GRPO"), ("GiGPO", "GRPO"), ("HGPO", "GRPO"))

RL = {"tasks_per_step": 4, "group_size": 4}
MANY = {"tasks_per_step": 8, "group_size": 8}
"""For budgets in which a method rises well above its start: 48,000 steps make some 100 updates."""
WIDE = {"tasks_per_step": 8, "group_size": 2}
GRPO = Arm(name="GRPO", method="grpo", change=anchored)
TURN_RLOO = Arm(name="turn_rloo", method="turn_rloo", options={"history_turns": 0})
CREDIT = (
    GRPO,
    TURN_RLOO,
    Arm(name="GiGPO", method="gigpo", change=anchored),
    Arm(name="HGPO", method="hgpo"),
)


def arms_of_sod(teacher: str) -> dict[str, Arm]:
    """Return SOD, what it is made of, and its controls."""
    control = partial(Arm, method="sod", teacher=teacher, rate_of="SOD")
    arms = (
        Arm(name="SOD", method="sod", teacher=teacher),
        control(name="OPD + GRPO", change=unweighted),
        GRPO,
        control(name="uniform weights", change=uniform),
        control(name="permuted weights", change=shuffled),
        control(name="OPD", change=unweighted, options={"reward": False}),
    )
    return {each.name: each for each in arms}


PIPELINE = "bridge, F2B + turn_rloo, turn_rloo"
ATTENTIVE = Guard(every=1 / 16, patience=2)
"""Of the bridge: it teaches within a few rounds."""


def bridge(teacher: str) -> Arm:
    """Return who learns the teacher's distributions where the teacher acts; it ends its answers."""
    return Arm(
        name="bridge",
        method="dagger",
        options={"first": 1.0, "least": 1.0, "white_box": True, "batch": 24},
        teacher=teacher,
        plan={"learning_rate": 3e-3, "updates_per_step": 20, "max_new_tokens": 3},
        rate_of=PIPELINE,
    )


def pipeline(teacher: str) -> tuple[Arm, ...]:
    """Return the default pipeline's last three stages, and its parts alone."""
    alone = Arm(name="F2B", method="tcod_f2b", options={"every": 1}, teacher=teacher)
    paid = replace(alone, options={"every": 1, "reward": True}, then=TURN_RLOO)
    paid = replace(paid, guard=replace(ATTENTIVE, settle=0.15))
    whole = replace(bridge(teacher), name=PIPELINE, then=paid, guard=ATTENTIVE, rate_of="")
    return whole, alone, TURN_RLOO


def imitation(name: str, method: str, labels: int, slip: bool = True, **options: object) -> Arm:
    """Return an arm of about so many labels in 4 rounds, 160 updates in all."""
    return Arm(
        name=f"{name}, {labels} labels",
        method=method,
        options={"batch": 24, **options},
        env={} if slip else {"p_slip": 0.0},
        plan={
            "steps": 4,
            "tasks_per_step": round(labels / 4 / 2 / 10),
            "group_size": 2,
            "updates_per_step": 40,
        },
    )


WITHOUT, WITH = "SFT, demonstrations without slips", "SFT, demonstrations with slips"
DAGGER = "DAgger, beta to .6"


def arms_of_dagger(labels: int) -> tuple[Arm, ...]:
    """Return DAgger and demonstrations, with and without the slips that it is tested under."""
    return (
        imitation(WITHOUT, "sft", labels, slip=False),
        imitation(WITH, "sft", labels),
        imitation(DAGGER, "dagger", labels),
    )


def dagger_pairs(labels: int) -> tuple[tuple[str, str], ...]:
    """Return DAgger against both kinds of demonstrations, and these against each other."""
    pairs = ((DAGGER, WITHOUT), (DAGGER, WITH), (WITH, WITHOUT))
    return tuple((f"{one}, {labels} labels", f"{other}, {labels} labels") for one, other in pairs)


FEW = (
    "So few labels teach little. DAgger keeps more progress than either kind of demonstrations; "
    "success is near nothing everywhere."
)
MANY_LABELS = (
    "Four seeds. Demonstrations with slips are ahead of those without, and DAgger is level with "
    "both: an expert that slips shows the ways back, too."
)

TCOD, TCOD_ROBUST = arms_of_tcod("clean"), arms_of_tcod("robust")
SOD, SOD_ROBUST = arms_of_sod("clean"), arms_of_sod("robust")
experiment = partial(Experiment, models=MODELS, tests=96, rates=(1e-3, 3e-3))

GENTLE = (3e-4, 1e-3, 3e-3)
"""Where a teacher takes part: of two rates the lower was always chosen."""

EXPERIMENTS = (
    experiment(
        name="tcod_phased",
        title="TCOD: 12 stages in three phases, a clean teacher",
        claim="Does a temporal curriculum help where late skills cannot be learnt early?",
        finding="Four seeds. Where attempts cannot last longer than the task takes, the student "
        "learns the way in three of four: by a turn limit just above the expert's length, "
        "and by B2F, whose slack of one turn is such a limit. Both are above plain OPD in "
        "progress; success is so bimodal (.01 or .5 to .7) that four seeds do not tell it "
        "apart. F2B shows the whole task after two thirds of the budget, and then spends "
        "as many turns off the path as OPD, with which it is level. A constant cut never "
        "shows the last third, and solves nothing. So nothing here speaks for the order "
        "of a curriculum: what helps is not to play on where one is lost. Of three rates "
        "B2F and OPD took the middle one, F2B the lowest, all by one dev seed.",
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
        name="sod_clean",
        title="SOD: tools fail, and the teacher has never seen it",
        claim="Do step-wise weights help where the teacher has no support after failures?",
        finding="The weights fall where they should (about .4 on the path, .01 in a side branch, "
        ".08 after a failure), and where they fall is what matters: SOD keeps the "
        "student's progress, while OPD, OPD + GRPO and the same weights made uniform or "
        "dealt at random lose more than a third of it. But SOD does not rise above its "
        "start and is level with GRPO alone: with such a teacher it limits the damage and "
        "gains nothing. The chosen rate is the lowest of the grid.",
        env=FAILING,
        beginning=BEGINNER,
        teachers={"clean": CLEAN},
        arms=tuple(SOD.values()),
        pairs=SOD_PAIRS,
        plan=RL,
        budget=6_000,
    ),
    experiment(
        name="pipeline_clean",
        title="Pipeline: distillation while it helps, then the reward; a clean teacher",
        claim="Is leaving the teacher on success never worse than the best single method?",
        finding="It is level with the best single method, though what it spends on looking costs "
        "it area under success: it leaves such a teacher at the first look in every seed, "
        "after a sixth of the budget, with the weights of the start. F2B, which stays, "
        "loses half its progress and all success. The guard looks at success and "
        "progress: by success alone, which starts at .07, three of six seeds stayed with "
        "the teacher for 78 % of the budget.",
        env=FAILING,
        beginning=BEGINNER,
        teachers={"clean": CLEAN},
        arms=(*pipeline("clean"), SOD["SOD"], GRPO),
        pairs=tuple((PIPELINE, rival) for rival in ("F2B", "turn_rloo", "SOD", "GRPO")),
        plan=MANY,
        budget=48_000,
    ),
    experiment(
        name="turn_credit",
        title="Turn-level credit: progress is paid turn by turn",
        claim="Does credit by the turn beat GRPO's by the trajectory, where turns are paid?",
        finding="All four rise well above their start. HGPO is above GRPO in progress and, "
        "though not told from it in success, higher in each of six seeds; GiGPO is level with "
        "GRPO, and turn_rloo level in success and .01 below in progress. So credit by the turn "
        "alone brings nothing here that can be seen at this size. The chosen rate is the lower "
        "one of two.",
        env=SLIPPING,
        beginning=BEGINNER,
        arms=CREDIT,
        pairs=CREDIT_PAIRS,
        plan=MANY,
        budget=48_000,
    ),
    experiment(
        name="sod_robust",
        title="SOD reversed: the teacher knows the failures",
        claim="Do the weights hurt where the teacher is right after failures, too?",
        finding="Both rise well above their start. OPD + GRPO ends higher than SOD in five of six "
        "seeds, all but told from it (the interval of success ends at .00): with a "
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
    experiment(
        name="pipeline_robust",
        title="Pipeline with a teacher that knows the failures",
        claim="Does it beat every single method?",
        finding="Five seeds. It is level with F2B alone and with OPD + GRPO, and far above the "
        "reward alone (turn_rloo). It never left such a teacher within the budget, so "
        "that it is F2B with the reward beside it; that brings nothing that can be seen, "
        "though it came out higher on both dev seeds (.59 and .78, where F2B had .51 and "
        ".72). So the pipeline does not beat every single method: it is not worse than "
        "the best one, with either teacher, and that no single method is.",
        env=FAILING,
        beginning=BEGINNER,
        teachers={"robust": ROBUST},
        arms=(*pipeline("robust"), bridge("robust"), replace(SOD_ROBUST["OPD + GRPO"], rate_of="")),
        pairs=tuple((PIPELINE, rival) for rival in ("F2B", "turn_rloo", "OPD + GRPO", "bridge")),
        plan=MANY,
        budget=48_000,
        rates=GENTLE,
    ),
    experiment(
        name="dagger",
        title="DAgger: hands slip",
        claim="Do labels on the student's own states beat demonstrations?",
        finding="At 2,000 labels DAgger is level with demonstrations that were made under the "
        "same slips; both keep more progress than demonstrations without slips, which "
        "reach as much success. The same 160 updates are made of any number of labels.",
        env={**SLIPPING, "p_slip": 0.1},
        beginning=SHELTERED,
        arms=arms_of_dagger(2000),
        pairs=dagger_pairs(2000),
        budget=0,
        rates=(5e-3,),
    ),
    *(
        experiment(
            name=name,
            title=f"DAgger: hands slip, {labels:,} labels",
            claim="How many labels does it take?",
            finding=finding,
            env={**SLIPPING, "p_slip": 0.1},
            beginning=SHELTERED,
            arms=arms_of_dagger(labels),
            pairs=dagger_pairs(labels),
            budget=0,
            rates=(5e-3,),
        )
        for name, labels, finding in (("dagger_few", 500, FEW), ("dagger_many", 6000, MANY_LABELS))
    ),
    experiment(
        name="tcod_robust",
        title="TCOD: the three phases, a teacher that knows every way back",
        claim="Does the curriculum help a student whose teacher is never off its support?",
        finding="Both rise above their start and are not told from each other: with a teacher "
        "that knows every way back there is nothing for a curriculum to mend. The budget "
        "is small (44 and 66 updates), and the chosen rate is the lowest of the grid.",
        env=PHASED,
        beginning=BEGINNER,
        teachers={"robust": ROBUST},
        arms=tuple(TCOD_ROBUST[name] for name in ("OPD", "F2B")),
        pairs=TCOD_PAIRS[:1],
        plan=WIDE,
        budget=48_000,
        rates=GENTLE,
    ),
    experiment(
        name="turn_credit_outcome",
        title="Turn-level credit, null: the end alone is paid",
        claim="Without rewards on the way there should be no difference.",
        env={**SLIPPING, "progress": 0.0},
        beginning=SKILLED,
        arms=CREDIT[:2],
        pairs=CREDIT_PAIRS[:1],
        plan=MANY,
        budget=48_000,
        rates=(3e-4, 1e-3),
    ),
    experiment(
        name="tcod_short",
        title="TCOD, null: 3 stages",
        claim="In a short task there is nothing to order.",
        finding="Level, as a null should be; in the area under success F2B is a little below. "
        "Both lose most of what the student could do: the clean teacher has never seen a "
        "side branch, however short the task.",
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
    experiment(
        name="dagger_null",
        title="DAgger, null: nothing slips",
        claim="Where the expert never leaves its way, labels elsewhere should not help.",
        finding="They do not: level with demonstrations over six seeds, in success, progress and "
        "AUC, as a null should be.",
        env={**SLIPPING, "p_slip": 0.0},
        beginning=SHELTERED,
        arms=arms_of_dagger(2000)[1:],
        pairs=dagger_pairs(2000)[1:2],
        budget=0,
        rates=(5e-3,),
    ),
    experiment(
        name="turn_credit_one_turn",
        title="Turn-level credit, null: one turn",
        claim="With one turn there is one credit.",
        finding="Level, as a null should be. The start is nearly right already, and both lose a "
        "little of it at this rate.",
        env={"stages": 1, "turns": 1, "phased": True, "progress": 1.0},
        beginning=BEGINNER,
        arms=CREDIT[:2],
        pairs=CREDIT_PAIRS[:1],
        plan=RL,
        budget=1_500,
        rates=(1e-3,),
    ),
)


@dataclass(frozen=True)
class Choice:
    """Which part of the comparison to run."""

    out: Path = Path("runs/compare")
    """Models and results by key."""
    only: tuple[str, ...] = ()
    """Names of experiments; by default all."""
    seeds: int = 6
    """Test seeds."""
    dev_seeds: int = 2
    """Seeds on which learning rates are chosen."""
    budget: float = 1.0
    """Factor of every budget."""
    jobs: int = 2
    """Processes at once."""
    results: Path = Path("docs/results")
    page: Path = Path("docs/results.md")
    page_only: bool = False
    """Write the page from the results that are there."""


def main(choice: Choice) -> None:
    """Run what was chosen, then write the page from all results that are there."""
    names = {each.name for each in EXPERIMENTS}
    if unknown := set(choice.only) - names:
        raise SystemExit(f"no experiment {sorted(unknown)}; there are: {', '.join(sorted(names))}")
    chosen = [each for each in EXPERIMENTS if not choice.only or each.name in choice.only]
    if choice.budget != 1.0:
        chosen = [scaled(each, choice.budget) for each in chosen]
    if not choice.page_only:
        suite = Suite(
            out=choice.out,
            results=choice.results,
            seeds=range(choice.seeds),
            dev_seeds=range(100, 100 + choice.dev_seeds),
            jobs=choice.jobs,
        )
        run_suite(chosen, suite)
    write_page(EXPERIMENTS, choice.results, choice.page)


if __name__ == "__main__":
    main(tyro.cli(Choice))
