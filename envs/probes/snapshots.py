"""The law of saving: from a snapshot an episode goes on as it would have."""

from __future__ import annotations

import random
from collections.abc import Sequence

from turnwise.envs.base import Env
from turnwise.envs.playing import (
    Played,
    Skipped,
    Subject,
    advance,
    mixed,
    play,
    same,
    start,
    to_the_end,
)

_MEND = "save everything that the next step reads, the random generators included"


def snapshots_restore(subject: Subject) -> str:
    """From a snapshot, in the same, a used and a fresh environment, the episode goes on alike."""
    with subject.open() as env, subject.open() as fresh, subject.open() as used:
        if not all(callable(getattr(env, name, None)) for name in ("snapshot", "restore")):
            raise Skipped("no snapshot() and restore() are offered")
        play(used, subject.seeds[0] + 1)
        agent = mixed(env, start(env, subject.seeds[0]))
        played = _underway(env, subject.seeds)
        saved: bytes = env.snapshot()  # type: ignore[attr-defined]
        gone_on = to_the_end(env, played, agent, random.Random(7))
        for where, other in (("the same", env), ("a fresh", fresh), ("a used", used)):
            other.restore(saved)  # type: ignore[attr-defined]
            again = to_the_end(other, played, agent, random.Random(7))
            same(gone_on, again, f"after restore in {where} environment", _MEND)
    return f"{len(saved)} bytes"


def _underway(env: Env, seeds: Sequence[int]) -> Played:
    """Return an episode of some turns that goes on, or else one that has just begun."""
    for seed in seeds:
        played = start(env, seed)
        played = advance(env, played, mixed(env, played), random.Random(seed))
        if not played.ended:
            return played
    return start(env, seeds[0])
