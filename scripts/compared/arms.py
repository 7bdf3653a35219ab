"""What is compared: methods, the controls without which they say nothing, and pipelines of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from turnwise.trainers.advantages import Scale, std, unscaled
from turnwise.trainers.contest import Arm
from turnwise.trainers.guard import Guard
from turnwise.trainers.recipe import Recipe
from turnwise.trainers.recipes.turn_rloo import turn_rloo
from turnwise.trainers.surrogates import token_mean
from turnwise.trainers.weights import ones, permuted, uniform_like

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


def by_tokens(recipe: Recipe) -> Recipe:
    """GRPO whose loss is a mean over tokens, as that of the methods of turns is."""
    return replace(anchored(recipe), aggregate=token_mean)


def paid_by_the_turn(recipe: Recipe) -> Recipe:
    """SOD with the credit of turn_rloo in place of GRPO's."""
    return replace(recipe, credit=turn_rloo(history_turns=0).credit)


def divided(recipe: Recipe) -> Recipe:
    """Every level divided by its group's standard deviation, as in GiGPO."""
    return _levels(recipe, std(1, 1e-6, 1e-2))


def undivided(recipe: Recipe) -> Recipe:
    """No level divided, and no KL to the reference."""
    return anchored(_levels(recipe, unscaled))


def _levels(recipe: Recipe, scale: Scale) -> Recipe:
    """The recipe's levels with another scale."""
    by, parts = recipe.credit.func, dict(recipe.credit.keywords)
    parts["levels"] = tuple(replace(level, scale=scale) for level in parts["levels"])
    return replace(recipe, credit=partial(by, **parts))


PACE = 4
"""Training steps per further turn. With 16 episodes a step, the 12 turns of the task are reached
after 9 % of 48,000 steps, and all 24 after 37 %."""


def arms_of_tcod(teacher: str) -> dict[str, Arm]:
    """Return OPD, its curricula, and what a curriculum must be told from."""
    arm = partial(Arm, teacher=teacher, rate_of="OPD")
    own = partial(Arm, teacher=teacher)
    arms = (
        own(name="OPD", method="opd"),
        own(name="F2B", method="tcod_f2b", options={"every": PACE}),
        arm(name="F2B, half as fast", method="tcod_f2b", options={"every": 2 * PACE}),
        arm(name="OPD, tight turn limit", method="opd", env={"turns": 13}),
        arm(name="OPD, constant cut T/4", method="opd", plan={"max_turns": 6}),
        own(name="B2F, slack 1", method="tcod_b2f", options={"every": PACE}),
    )
    return {each.name: each for each in arms}


def whole_vocabulary(teacher: str) -> tuple[Arm, ...]:
    """Return OPD with less variance: the KL itself in place of one token's, and vOPD's baseline."""
    at = partial(Arm, teacher=teacher, rate_of="OPD")
    full = at(name="full reverse KL", method="gkd", options={"beta": 1.0})
    return full, at(name="vOPD", method="vopd")


WHOLE_PAIRS = tuple((arm.name, "OPD") for arm in whole_vocabulary(""))
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

GRPO = Arm(name="GRPO", method="grpo", change=anchored)
TURN_RLOO = Arm(name="turn_rloo", method="turn_rloo", options={"history_turns": 0})
HISTORIES = Arm(name="turn_rloo, histories", method="turn_rloo")
"""As the recipe stands: turns that share a history are compared with each other first."""
TOKEN_MEAN = Arm(name="GRPO, token mean", method="grpo", change=by_tokens, rate_of="GRPO")
"""SOD and the methods of turns have this mean, GRPO as it stands one over episodes first."""
CREDIT = (
    GRPO,
    TURN_RLOO,
    Arm(name="GiGPO", method="gigpo", change=anchored),
    Arm(name="HGPO", method="hgpo"),
)
NEAR = {"history_turns": 0, "gamma": 0.95}
CREDIT_APART = (
    Arm(name="GRPO, GiGPO's rate", method="grpo", change=anchored, rate_of="GiGPO"),
    Arm(
        name="turn_rloo, divided",
        method="turn_rloo",
        options={"history_turns": 0},
        change=divided,
        rate_of="GiGPO",
    ),
    Arm(name="turn_rloo, gamma .95", method="turn_rloo", options=NEAR, rate_of="GiGPO"),
    Arm(
        name="turn_rloo, gamma .95, divided",
        method="turn_rloo",
        options=NEAR,
        change=divided,
        rate_of="GiGPO",
    ),
    Arm(name="GiGPO, undivided", method="gigpo", change=undivided, rate_of="GiGPO"),
)
"""Between turn_rloo and GiGPO, what parts them put in or taken out one by one, at GiGPO's rate."""
CREDIT_APART_PAIRS = (
    ("GiGPO", "GRPO, GiGPO's rate"),
    ("turn_rloo", "GRPO, GiGPO's rate"),
    *((arm.name, "turn_rloo") for arm in CREDIT_APART[1:4]),
    ("GiGPO", "turn_rloo, gamma .95, divided"),
    ("GiGPO", "GiGPO, undivided"),
)


def arms_of_sod(teacher: str) -> dict[str, Arm]:
    """Return SOD, what it is made of, and its controls."""
    own = partial(Arm, method="sod", teacher=teacher)
    control = partial(own, rate_of="SOD")
    arms = (
        own(name="SOD"),
        own(name="OPD + GRPO", change=unweighted),
        GRPO,
        control(name="uniform weights", change=uniform),
        control(name="permuted weights", change=shuffled),
        own(name="OPD", change=unweighted, options={"reward": False}),
    )
    return {each.name: each for each in arms}


PIPELINE = "bridge, F2B + turn_rloo, turn_rloo"
ATTENTIVE = Guard(every=1 / 16, patience=2)
"""Of the bridge: it teaches within a few rounds."""


BRIDGE = {
    "learning_rate": 3e-3,
    "updates_per_step": 20,
    "max_new_tokens": 3,
    "tasks_per_step": 32,
    "group_size": 2,
}
"""Many tasks: what is learnt of one teacher's way must hold for others."""


def bridge(teacher: str) -> Arm:
    """Return who learns the teacher's distributions where the teacher acts; it ends its answers.

    Its plan has its rate, whatever that of the arm in `rate_of` is.
    """
    return Arm(
        name="bridge",
        method="dagger",
        options={"first": 1.0, "least": 1.0, "white_box": True, "batch": 24},
        teacher=teacher,
        plan=BRIDGE,
        rate_of="turn_rloo",
    )


def bridge_alone(teacher: str) -> Arm:
    """Return the bridge as a single method, at a rate of its own."""
    plan = {name: value for name, value in BRIDGE.items() if name != "learning_rate"}
    return replace(bridge(teacher), plan=plan, rate_of="", rates=(1e-3, 3e-3, 1e-2))


def pipeline(teacher: str) -> tuple[Arm, ...]:
    """Return the default pipeline's last three stages, and its parts alone."""
    alone = Arm(name="F2B", method="tcod_f2b", options={"every": 1}, teacher=teacher)
    paid = replace(alone, options={"every": 1, "reward": True}, then=TURN_RLOO)
    paid = replace(paid, guard=replace(ATTENTIVE, settle=0.15))
    whole = replace(bridge(teacher), name=PIPELINE, then=paid, guard=ATTENTIVE, rate_of="")
    return whole, alone, TURN_RLOO


def without_opd(teacher: str) -> Arm:
    """Return the pipeline without its middle stage: what the reward makes of the bridge alone."""
    whole, _, _ = pipeline(teacher)
    return replace(whole, name="bridge, turn_rloo", then=TURN_RLOO, rate_of=PIPELINE)


def at_the_rate_of(rival: str, arm: Arm) -> Arm:
    """Return `arm` once more, where a rival's rate is not its own."""
    return replace(arm, name=f"{arm.name}, at the rate of {rival}", rate_of=rival)


ROUNDS = 4


def imitation(
    name: str, method: str, labels: int, turns: float, slip: bool = True, **options: object
) -> Arm:
    """Return an arm of so many labels in all, within a few in a hundred, and of 160 updates.

    Args:
        turns: of an episode of this arm, as measured: each is a label.
    """
    return Arm(
        name=f"{name}, {labels} labels",
        method=method,
        options={"batch": 24, **options},
        env={} if slip else {"p_slip": 0.0},
        plan={
            "steps": ROUNDS,
            "tasks_per_step": round(labels / ROUNDS / 2 / turns),
            "group_size": 2,
            "updates_per_step": 160 // ROUNDS,
        },
    )


WITHOUT, WITH = "SFT, demonstrations without slips", "SFT, demonstrations with slips"
DAGGER = "DAgger, beta to .6"


def arms_of_dagger(labels: int) -> tuple[Arm, ...]:
    """Return DAgger and demonstrations, with and without the slips that it is tested under."""
    return (
        imitation(WITHOUT, "sft", labels, turns=8.0, slip=False),
        imitation(WITH, "sft", labels, turns=10.7),
        imitation(DAGGER, "dagger", labels, turns=12.4),
    )


def ways_of_dagger(labels: int) -> tuple[Arm, ...]:
    """Return DAgger as its parts are: who acts, and which rounds are learnt from; at its rate."""
    to_zero = {"fall": 1 / (ROUNDS - 1), "least": 0.0}
    prefix = {"handoff": 8.0, "always_handoff": True}
    arms = (
        imitation("DAgger, beta to 0", "dagger", labels, turns=13.0, **to_zero),
        imitation("DAgger, the student first", "dagger", labels, turns=12.4, **prefix),
        imitation("DAgger, the last round", "dagger", labels, turns=13.0, **to_zero, rounds=1),
    )
    return tuple(replace(arm, rate_of=f"{DAGGER}, {labels} labels") for arm in arms)


def arms_without_slips(labels: int) -> tuple[Arm, ...]:
    """Return DAgger and demonstrations where nothing slips."""
    return (
        imitation(WITH, "sft", labels, turns=8.0),
        imitation(DAGGER, "dagger", labels, turns=9.6),
    )


def dagger_pairs(labels: int) -> tuple[tuple[str, str], ...]:
    """Return DAgger against both kinds of demonstrations, and these against each other."""
    pairs = ((DAGGER, WITHOUT), (DAGGER, WITH), (WITH, WITHOUT))
    return tuple((f"{one}, {labels} labels", f"{other}, {labels} labels") for one, other in pairs)


def pairs_of_ways(labels: int) -> tuple[tuple[str, str], ...]:
    """Return each of `ways_of_dagger` against DAgger as it stands."""
    return tuple((arm.name, f"{DAGGER}, {labels} labels") for arm in ways_of_dagger(labels))


TCOD, TCOD_ROBUST = arms_of_tcod("clean"), arms_of_tcod("robust")
SOD, SOD_ROBUST = arms_of_sod("clean"), arms_of_sod("robust")
PIPELINE_PAIRS = (
    *((PIPELINE, rival) for rival in ("F2B", "turn_rloo", "OPD + GRPO", "bridge")),
    (PIPELINE, "bridge, turn_rloo"),
    ("bridge, turn_rloo", "bridge"),
)


def pipeline_and_rivals(teacher: str) -> tuple[Arm, ...]:
    """Return the pipeline, its parts alone, it without its middle, and OPD with the reward."""
    paid = arms_of_sod(teacher)["OPD + GRPO"]
    return *pipeline(teacher), bridge_alone(teacher), without_opd(teacher), paid
