"""MyEnv: guess a number; every guess is answered with higher or lower."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from turnwise.envs import Response, Task, TextEnv, derive, register


@dataclass(frozen=True, kw_only=True)
class Secret(Task):
    """What to solve: the fields decide the world, and equal fields are the same task."""

    seed: int


@register("my-env/MyEnv-v1", tags=("text",))
class MyEnv(TextEnv):
    """Find a number from 0 to 99 within eight guesses; that pays 1."""

    Task: ClassVar[type[Task]] = Secret
    fast = True  # a step takes less than a millisecond and never waits
    max_turns = 8

    def tasks(self, split: str) -> Sequence[Secret]:
        """Return the tasks of a split; no two splits share a seed."""
        first = 1000 * self.splits.index(self.known_split(split))
        return [Secret(seed=first + i) for i in range(1000)]

    def setup(self, task: Secret, rng: random.Random) -> str:
        """Make the world and return what the agent reads first."""
        self.secret = derive("my-env", task.seed) % 100
        self.low, self.high = 0, 99
        return "I think of a number from 0 to 99. Answer with your guess, a number alone."

    def respond(self, action: str) -> Response | str:
        """Answer one action; a plain text is an observation without reward."""
        if not re.fullmatch(r"\s*[0-9]{1,2}\s*", action):
            return "Answer with a number from 0 to 99."
        guess = int(action)
        if guess == self.secret:
            return Response("right", reward=1.0, terminated=True, success=True)
        if guess < self.secret:
            self.low = max(self.low, guess + 1)
            return "higher"
        self.high = min(self.high, guess - 1)
        return "lower"

    def expert(self) -> str:
        """Return the right action now: the proof that it can be done, and a teacher."""
        return str((self.low + self.high) // 2)
