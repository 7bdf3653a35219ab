"""How `check_env` plays: episodes as plain rows that can be compared, and how they differ."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from turnwise.envs import fuzz
from turnwise.envs.base import Env
from turnwise.envs.types import digest

MAX_TURNS = 200
"""Probes stop an episode here, whatever the environment allows."""
_KEPT = ("messages", "state", "rewards", "calls", "error", "outcome", "success")


class Broken(AssertionError):
    """A law does not hold: what was seen, and how to mend it."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.mend = mend


class Skipped(Exception):
    """The probe does not apply; the message says why."""


@dataclass(frozen=True)
class Named:
    """How another process makes the environment."""

    id: str
    """What `make` takes; empty where only the class can be named."""
    where: str
    """`module:Class`."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that go with `id`."""
    registered: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that the registry adds, which `where` alone does not know."""


@dataclass(frozen=True)
class Subject:
    """The environment under test."""

    name: str
    make: Callable[..., Env]
    """Makes a fresh one; keyword arguments go over those that were given to the checker."""
    seeds: Sequence[int]
    concurrency: int
    named: Named | None = None
    """None where no other process can make it."""
    seconds: float = 5.0
    """So long a law goes on to further seeds. It always looks at one."""

    @contextlib.contextmanager
    def open(self, **kwargs: Any) -> Iterator[Env]:
        """Make a fresh environment and close it afterwards."""
        env = self.make(**kwargs)
        try:
            yield env
        finally:
            env.close()

    def each_seed(self, seeds: Sequence[int] | None = None, *, share: float = 1.0) -> Iterator[int]:
        """Yield the first seed, and more of them while there is time, or a `share` of it."""
        end = time.monotonic() + self.seconds * share
        for count, seed in enumerate(self.seeds if seeds is None else seeds):
            if count and time.monotonic() > end:
                return
            yield seed


WORLD: dict[str, Any] = {}
"""What environments read from outside through their tape, by place: seed, task and actions so far.

At the same place the same is read again, in whichever environment: so an episode that asks for the
time is as repeatable as its replay is. `check_env` empties it.
"""


def remind(env: Env, place: Sequence[Any], actions: Sequence[str] = ()) -> None:
    """Let the next call of `env` read from outside what was read at this place before."""
    if WORLD and (reads := WORLD.get(_spot(place, actions))) is not None:
        env.feed(reads)


def _remember(info: Mapping[str, Any], place: Sequence[Any], actions: Sequence[str]) -> None:
    if reads := info.get("nondet"):
        WORLD[_spot(place, actions)] = reads


def _spot(place: Sequence[Any], actions: Sequence[str]) -> str:
    return digest([*place, ascii([*actions])])  # JSON cannot hold every text that an agent writes


@dataclass(frozen=True)
class Played:
    """One episode as a probe played it."""

    rows: list[dict[str, Any]]
    """What `reset` and then each `step` said, as plain JSON values."""
    actions: list[str]
    info: dict[str, Any]
    ended: bool
    place: tuple[Any, ...] = ()
    """Seed and, where it was given, the key of the task."""

    @property
    def reward(self) -> float:
        """The sum of the episode's rewards."""
        return sum(float(row.get("reward", 0.0)) for row in self.rows)


def _row(observation: str, info: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"observation": observation, **{name: info.get(name) for name in _KEPT}, **more}


def opened(value: tuple[str, dict[str, Any]], place: tuple[Any, ...]) -> Played:
    """Return the episode that begins with what `reset` returned."""
    observation, info = value
    _remember(info, place, ())
    row = _row(observation, info, task=info["task"].key)
    return Played([row], [], info, False, place)


def stepped(played: Played, action: str, value: tuple[Any, ...]) -> Played:
    """Return the episode with one more turn: an action, and what `step` returned."""
    observation, reward, terminated, truncated, info = value
    row = _row(observation, info, reward=reward, terminated=terminated, truncated=truncated)
    rows, actions = [*played.rows, row], [*played.actions, action]
    _remember(info, played.place, actions)
    return Played(rows, actions, info, terminated or truncated, played.place)


def start(env: Env, seed: int, options: dict[str, Any] | None = None) -> Played:
    """Reset `env` and return an episode without turns."""
    given = (options or {}).get("task")
    place = (seed, given.key if given else "")
    remind(env, place)
    return opened(env.reset(seed=seed, options=options), place)


def advance(env: Env, played: Played, agent: fuzz.Agent, rng: random.Random) -> Played:
    """Play one turn and return the episode with it."""
    action = agent(env, played.rows[-1]["observation"], rng)
    remind(env, played.place, [*played.actions, action])
    return stepped(played, action, env.step(action))


def play(env: Env, seed: int, agent: fuzz.Agent | None = None) -> Played:
    """Play an episode to its end; without an agent, by one that walks on and off the path."""
    played = start(env, seed)
    return to_the_end(env, played, agent or mixed(env, played), random.Random(seed))


def mixed(env: Env, opening: Played) -> fuzz.Agent:
    """Return the agent of `fuzz.mixed_agent` for an environment that has just been reset."""
    return fuzz.mixed_agent(opening.info["tools"], expert=hasattr(env, "expert"))


def to_the_end(env: Env, played: Played, agent: fuzz.Agent, rng: random.Random) -> Played:
    """Play on to the end of the episode."""
    while not played.ended and len(played.actions) < MAX_TURNS:
        played = advance(env, played, agent, rng)
    return played


def repeat(env: Env, seed: int, actions: Sequence[str]) -> Played:
    """Play the episode of these very actions, as far as it goes."""
    played, rng = start(env, seed), random.Random(0)
    for action in actions:
        if played.ended:
            break
        played = advance(env, played, fuzz.always(action), rng)
    return played


def difference(one: Played, other: Played) -> str | None:
    """Return the first place where two episodes differ, or None."""
    for turn, (a, b) in enumerate(zip(one.rows, other.rows, strict=False)):
        for name in a:
            if a[name] != b.get(name):
                was, now = _excerpts(str(a[name]), str(b.get(name)))
                return f"turn {turn}, {name}: {was}, then {now}"
    if len(one.rows) != len(other.rows):
        return f"{len(one.rows) - 1} turns, then {len(other.rows) - 1}"
    return None


def _excerpts(one: str, other: str, width: int = 80) -> tuple[str, str]:
    """Return both texts, cut to where they begin to differ."""
    pairs = enumerate(zip(one, other, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
    begin = max(0, at - width // 3)
    return repr(one[begin : begin + width]), repr(other[begin : begin + width])


def same(one: Played, other: Played, what: str, mend: str) -> None:
    """Require two equal episodes.

    Raises:
        Broken: they differ; it says where first.
    """
    if (where := difference(one, other)) is not None:
        raise Broken(f"{what}: {where}", mend)
