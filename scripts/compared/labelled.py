"""Methods of imitation, by the number of their labels."""

from __future__ import annotations

from dataclasses import replace

from turnwise.trainers.contest import Arm

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
        imitation("DAgger, beta to 0", "dagger", labels, turns=13.6, **to_zero),
        imitation("DAgger, the student first", "dagger", labels, turns=11.1, **prefix),
        imitation("DAgger, the last round", "dagger", labels, turns=13.8, **to_zero, rounds=1),
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
    """Return each of `ways_of_dagger` against DAgger as it stands, one against demonstrations."""
    ways = [arm.name for arm in ways_of_dagger(labels)]
    pairs = tuple((name, f"{DAGGER}, {labels} labels") for name in ways)
    return (*pairs, (ways[1], f"{WITH}, {labels} labels"))
