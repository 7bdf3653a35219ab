"""Toy environments for the scheduler, the pool and the trainer: what they pay and how they fail."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from turnwise.envs.base import Response, TextEnv
from turnwise.envs.types import Task


@dataclass(frozen=True, kw_only=True)
class Walk(Task):
    """One walk."""

    index: int
    split: str = "train"


class Walks(TextEnv):
    """A walk of `length` turns; each pays 1 / length if the action begins with a wanted letter.

    A random model begins so now and then, and learns to do it within seconds.
    """

    Task: ClassVar[type[Task]] = Walk
    fast = True
    wanted = frozenset("aeiou")

    def __init__(self, *, length: int = 2) -> None:
        self.length = length

    def tasks(self, split: str) -> Sequence[Walk]:
        return [Walk(index=i, split=self.known_split(split)) for i in range(200)]

    def setup(self, task: Walk, rng: random.Random) -> str:
        self.name, self.right = f"{rng.randrange(100)}", 0
        return f"walk {self.name}"

    def respond(self, action: str) -> Response:
        right = action[:1] in self.wanted
        self.right += right
        return Response(
            f"{self.name} is at mile {self.turn}" + (" ok" if right else ""),
            reward=right / self.length,
            terminated=self.turn == self.length,
            success=self.right == self.length,
        )

    def expert(self) -> str:
        return "a step"

    def state_hash(self) -> str:
        return f"{self.name}:{self.turn}:{self.right}"


@dataclass
class Fault:
    """What goes wrong in a walk: `act` is called at turn `turn` (0 is the reset), `left` times."""

    turn: int
    act: Callable[[], object]
    left: int = 99


class Faulty(Walks):
    """Walks of which some go wrong, by the index of their task.

    Args:
        faults: task index to what happens; shared by the environments of a pool.
        fast: False has the pool call it on a thread.
        pace_s: seconds of one step, where it is not fast.
    """

    def __init__(
        self, faults: Mapping[int, Fault] = {}, *, fast=True, pace_s=0.0, length=3, made=None
    ) -> None:
        super().__init__(length=length)
        self.faults, self.fast, self.pace_s, self.closed = faults, fast, pace_s, 0
        if made is not None:
            made.append(self)

    def setup(self, task: Walk, rng: random.Random) -> str:
        self._go_wrong()
        return super().setup(task, rng)

    def respond(self, action: str) -> Response:
        self._go_wrong()
        if self.pace_s:
            time.sleep(self.pace_s * self.rng.random())
        return super().respond(action)

    def close(self) -> None:
        self.closed += 1

    def _go_wrong(self) -> None:
        fault = self.faults.get(self.task.index)
        if fault is not None and fault.turn == self.turn and fault.left > 0:
            fault.left -= 1
            fault.act()


def crash() -> None:
    """A bug of the environment."""
    raise ZeroDivisionError("a bug")
