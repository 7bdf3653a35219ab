"""Methods on the student's own turns, and the controls without which they say nothing."""

from __future__ import annotations

from functools import partial

from compared.controls import (
    anchored,
    by_tokens,
    divided,
    shuffled,
    undivided,
    uniform,
    unweighted,
)
from turnwise.trainers.contest import Arm

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
GIGPO = Arm(name="GiGPO", method="gigpo", change=anchored)
CREDIT = (
    GRPO,
    TURN_RLOO,
    GIGPO,
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
    ("turn_rloo, gamma .95, divided", "turn_rloo, gamma .95"),
    ("turn_rloo, gamma .95, divided", "GRPO, GiGPO's rate"),
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


TCOD, TCOD_ROBUST = arms_of_tcod("clean"), arms_of_tcod("robust")
SOD, SOD_ROBUST = arms_of_sod("clean"), arms_of_sod("robust")
