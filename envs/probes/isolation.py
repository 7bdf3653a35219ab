"""Laws of company: what other environments do, and what befalls them, changes no episode."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from turnwise.envs.base import Env, TextEnv
from turnwise.envs.fuzz import Agent
from turnwise.envs.playing import (
    MAX_TURNS,
    Broken,
    Played,
    Subject,
    advance,
    mixed,
    opened,
    play,
    remind,
    same,
    start,
    stepped,
)
from turnwise.envs.pool import Answer, EnvPool, StepTimeout
from turnwise.envs.probes.deadline import side_by_side
from turnwise.envs.probes.randomness import OWN_RNG

FAULTY_S = 0.5
"""Deadline of a step that hangs."""
_OWN_STATE = "keep state and locks on the instance: nothing on the class or in the module"


def isolated_from_other_environments(subject: Subject) -> str:
    """An episode is the same while other environments are stepped between its turns."""
    for seed in subject.each_seed():
        with subject.open() as env:
            alone = play(env, seed)
        what = f"seed {seed} alone, then beside {subject.concurrency - 1} others"
        same(alone, _beside_others(subject, seed), what, OWN_RNG)
    return f"{subject.concurrency} environments, interleaved"


def _beside_others(subject: Subject, seed: int) -> Played:
    """Play `seed` while environments that were started later are stepped between its turns."""
    with contextlib.ExitStack() as stack:
        env = stack.enter_context(subject.open())
        played, rng = start(env, seed), random.Random(seed)
        agent = mixed(env, played)
        others = [stack.enter_context(subject.open()) for _ in range(subject.concurrency - 1)]
        crowd = [start(other, seed + 1 + i) for i, other in enumerate(others)]
        while not played.ended and len(played.actions) < MAX_TURNS:
            played = advance(env, played, agent, rng)
            for i, other in enumerate(others):
                if not crowd[i].ended:
                    crowd[i] = advance(other, crowd[i], agent, random.Random(i))
    return played


def isolated_across_threads(subject: Subject) -> str:
    """Episodes played at once on threads are those that are played alone."""

    def one(seed: int) -> Played:
        with subject.open() as env:
            return play(env, seed)

    alone = {seed: one(seed) for seed in subject.each_seed()}
    known = list(alone)
    seeds = [known[i % len(known)] for i in range(subject.concurrency)]
    for seed, played in zip(seeds, side_by_side(one, seeds), strict=True):
        same(alone[seed], played, f"seed {seed} alone, then among threads", OWN_RNG)
    return f"{subject.concurrency} threads"


def a_crash_stays_inside(subject: Subject) -> str:
    """A step that raises harms no other environment of the pool, nor its own successor."""

    def crash(*_: Any) -> Any:
        raise RuntimeError("a bug that the checker planted")

    answer = _beside_a_faulty_one(subject, crash, fast=None)
    if not isinstance(answer.error, RuntimeError):
        raise Broken(
            f"step raised RuntimeError and the pool was told {answer.error or answer.value!r:.80}",
            "let exceptions leave step: the rollout masks the episode and tries it again",
        )
    return f"{_crowd(subject)} environments of a pool, one of which raises"


def a_hang_stays_inside(subject: Subject) -> str:
    """A step that hangs is given up after its deadline, and harms no other environment."""
    release = threading.Event()
    try:
        answer = _beside_a_faulty_one(subject, lambda *_: release.wait(60), fast=False)
    finally:
        release.set()
    if not isinstance(answer.error, StepTimeout):
        raise Broken(
            f"step hung and the pool was told {answer.error or answer.value!r:.80}",
            "do not catch what interrupts a step",
        )
    return f"{_crowd(subject)} environments of a pool, one of which hangs"


def _crowd(subject: Subject) -> int:
    return min(subject.concurrency, 4)


@dataclass
class _Crowd:
    """Episodes of one pool, the first of which meets a fault at its first step."""

    pool: EnvPool
    seeds: list[int]
    played: dict[int, Played] = field(default_factory=dict)
    asked: dict[int, str] = field(default_factory=dict)
    """Actions that have not been answered."""
    rngs: dict[int, random.Random] = field(default_factory=dict)
    agents: dict[int, Agent] = field(default_factory=dict)
    fault: Answer | None = None

    def play(self) -> None:
        """Play every episode to its end, that of the faulty environment's successor, too."""
        for index in range(len(self.seeds)):
            self._reset(index)
        while not all(map(self._over, range(len(self.seeds)))):
            for answer in self.pool.recv(0.05):
                self._take(answer)

    def _over(self, index: int) -> bool:
        played = self.played.get(index)
        return played is not None and (played.ended or len(played.actions) == MAX_TURNS)

    def _reset(self, index: int) -> None:
        seed = self.seeds[index]
        self.rngs[index] = random.Random(seed)
        remind(self.pool.env(index), (seed, ""))
        self.pool.send(index, "reset", seed=seed)

    def _take(self, answer: Answer) -> None:
        index, action = answer.index, self.asked.pop(answer.index, None)
        if index == 0 and action is not None and self.fault is None:
            self.fault = answer
            self.pool.replace(0)
            self._reset(0)
            return
        self._refuse(answer)
        if action is None:
            self.played[index] = opened(answer.value, (self.seeds[index], ""))
            self.agents[index] = mixed(self.pool.env(index), self.played[index])
        else:
            self.played[index] = stepped(self.played[index], action, answer.value)
        if not self._over(index):
            self._act(index)

    def _refuse(self, answer: Answer) -> None:
        if (error := answer.error) is not None:
            others = f"environment {answer.index} of the same pool"
            who = others if answer.index else "the environment that replaced it"
            what = f"one step failed, and then {who} did: {type(error).__name__}: {error}"
            raise Broken(what, _OWN_STATE) from error

    def _act(self, index: int) -> None:
        env, played = self.pool.env(index), self.played[index]
        if index == 0 and self.fault is None:
            env.step_timeout_s = min(env.step_timeout_s, FAULTY_S)
        seen = played.rows[-1]["observation"]
        action = self.asked[index] = self.agents[index](env, seen, self.rngs[index])
        remind(env, played.place, [*played.actions, action])
        self.pool.send(index, "step", action)


def _beside_a_faulty_one(
    subject: Subject, fault: Callable[..., Any], *, fast: bool | None
) -> Answer:
    """Play a pool whose first environment has `fault` in place of a step; return what came of it.

    The other episodes, and that of the environment that replaces it, must be those played alone.
    """
    count = _crowd(subject)
    seeds = [subject.seeds[i % len(subject.seeds)] for i in range(count)]
    alone, patience_s = _alone(subject, seeds)
    planted: list[Env] = []

    def make() -> Env:
        env = subject.make()
        env.step_timeout_s = min(env.step_timeout_s, patience_s)
        if fast is not None:
            env.fast = fast  # type: ignore[misc]  # this one alone
        if not planted:
            planted.append(_plant(env, fault))
        return env

    with EnvPool(make, count) as pool:
        crowd = _Crowd(pool, seeds)
        crowd.play()
    for seed, index in zip(seeds, range(count), strict=True):
        what = f"seed {seed} alone, then beside an environment that fails"
        same(alone[seed], crowd.played[index], what, _OWN_STATE)
    assert crowd.fault is not None
    return crowd.fault


def _alone(subject: Subject, seeds: list[int]) -> tuple[dict[int, Played], float]:
    """Return the episodes, and how long a step may take: much longer than any of them took."""
    episodes, slowest = {}, 0.0
    for seed in set(seeds):
        began = time.perf_counter()
        with subject.open() as env:
            episodes[seed] = play(env, seed)
        slowest = max(slowest, time.perf_counter() - began)
    return episodes, max(8.0, 6 * slowest)


def _plant(env: Env, fault: Callable[..., Any]) -> Env:
    """Put `fault` where the environment's own code runs: within whatever its step holds."""
    own = env.unwrapped
    setattr(own, "respond" if isinstance(own, TextEnv) else "step", fault)
    return env
