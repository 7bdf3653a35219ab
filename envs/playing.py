"""How `check_env` plays: episodes as plain rows that can be compared, and how they differ."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from turnwise.envs import fuzz
from turnwise.envs.base import Env

MAX_TURNS = 200
"""Probes stop an episode here, whatever the environment allows."""


class Broken(AssertionError):
    """A law does not hold: what was seen, and how to mend it."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.mend = mend


class Skipped(Exception):
    """The probe does not apply; the message says why."""


@dataclass(frozen=True)
class Subject:
    """The environment under test."""

    name: str
    make: Callable[[], Env]
    """Makes a fresh one."""
    seeds: Sequence[int]
    concurrency: int

    @contextlib.contextmanager
    def open(self) -> Iterator[Env]:
        """Make a fresh environment and close it afterwards."""
        env = self.make()
        try:
            yield env
        finally:
            env.close()


@dataclass(frozen=True)
class Played:
    """One episode as a probe played it."""

    rows: list[dict[str, Any]]
    """What `reset` and then each `step` said, as plain JSON values."""
    actions: list[str]
    info: dict[str, Any]
    ended: bool

    @property
    def reward(self) -> float:
        """The sum of the episode's rewards."""
        return sum(float(row.get("reward", 0.0)) for row in self.rows)


def _row(observation: str, info: dict[str, Any], **more: Any) -> dict[str, Any]:
    kept = {name: info.get(name) for name in ("messages", "state", "rewards", "error", "outcome")}
    return {"observation": observation, **kept, **more}


def start(env: Env, seed: int, options: dict[str, Any] | None = None) -> Played:
    """Reset `env` and return an episode without turns."""
    observation, info = env.reset(seed=seed, options=options)
    row = _row(observation, info, task=info["task"].key)
    return Played([row], [], info, False)


def advance(env: Env, played: Played, agent: fuzz.Agent, rng: random.Random) -> Played:
    """Play one turn and return the episode with it."""
    action = agent(env, played.rows[-1]["observation"], rng)
    observation, reward, terminated, truncated, info = env.step(action)
    row = _row(observation, info, reward=reward, terminated=terminated, truncated=truncated)
    rows, actions = [*played.rows, row], [*played.actions, action]
    return Played(rows, actions, info, terminated or truncated)


def play(env: Env, seed: int, agent: fuzz.Agent | None = None) -> Played:
    """Play an episode to its end; without an agent, by one that walks on and off the path."""
    played = start(env, seed)
    chosen = agent or mixed(env, played)
    rng = random.Random(seed)
    while not played.ended and len(played.actions) < MAX_TURNS:
        played = advance(env, played, chosen, rng)
    return played


def mixed(env: Env, opening: Played) -> fuzz.Agent:
    return fuzz.mixed_agent(opening.info["tools"], expert=hasattr(env, "expert"))


def difference(one: Played, other: Played) -> str | None:
    """Return the first place where two episodes differ, or None."""
    if len(one.rows) != len(other.rows):
        return f"{len(one.rows) - 1} turns, then {len(other.rows) - 1}"
    for turn, (a, b) in enumerate(zip(one.rows, other.rows, strict=True)):
        for name in a:
            if a[name] != b.get(name):
                return f"turn {turn}, {name}: {str(a[name])[:80]!r}, then {str(b[name])[:80]!r}"
    return None


def same(one: Played, other: Played, what: str, mend: str) -> None:
    if (where := difference(one, other)) is not None:
        raise Broken(f"{what}: {where}", mend)
