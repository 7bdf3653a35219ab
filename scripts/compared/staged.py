"""Methods in stages: a bridge from the teacher's turns to the student's own, and pipelines."""

from __future__ import annotations

from dataclasses import replace

from compared.arms import TURN_RLOO, arms_of_sod
from turnwise.trainers.contest import Arm
from turnwise.trainers.guard import Guard

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


PIPELINE_PAIRS = (
    *((PIPELINE, rival) for rival in ("F2B", "turn_rloo", "OPD + GRPO", "bridge")),
    (PIPELINE, "bridge, turn_rloo"),
    ("bridge, turn_rloo", "bridge"),
)


def pipeline_and_rivals(teacher: str) -> tuple[Arm, ...]:
    """Return the pipeline, its parts alone, it without its middle, and OPD with the reward."""
    paid = arms_of_sod(teacher)["OPD + GRPO"]
    return *pipeline(teacher), bridge_alone(teacher), without_opd(teacher), paid
