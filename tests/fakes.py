"""Small environments for tests: real ones, only small. No registration, no sandbox, no network."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from turnwise.envs.base import Response, TextEnv
from turnwise.envs.tool_env import EpisodeView, ToolEnv
from turnwise.envs.tools import ToolFailed, metric, reward, tool
from turnwise.envs.types import Task, digest


@dataclass(frozen=True, kw_only=True)
class Secret(Task):
    """A number to be guessed, up to `limit`."""

    index: int
    limit: int = 20


class Guess(ToolEnv):
    """Guess a number; `look` compares, `submit` ends. Solved by bisection."""

    Task: ClassVar[type[Task]] = Secret
    fast = True
    max_turns = 10
    chance_reward = 0.05
    """Of one guess."""

    def tasks(self, split: str) -> Sequence[Secret]:
        first = 100 * self.splits.index(self.known_split(split))
        return [Secret(index=first + i) for i in range(50)]

    def setup(self, task: Secret, rng: random.Random) -> str:
        self.secret = rng.randrange(task.limit)
        self.low, self.high, self.answer = 0, task.limit - 1, -1
        return f"Café: guess my number, 0 to {self.high}."

    @tool
    def look(self, number: int) -> str:
        """Compare a number with the secret.

        Args:
            number: What to compare.
        """
        if not 0 <= number < self.task.limit:
            raise ToolFailed(f"out of range: {number}")
        if number < self.secret:
            self.low = max(self.low, number + 1)
            return "higher"
        self.high = min(self.high, number if number == self.secret else number - 1)
        self.low = max(self.low, number) if number == self.secret else self.low
        return "equal" if number == self.secret else "lower"

    @tool(final=True)
    def submit(self, number: int) -> None:
        """Give the answer; ends the episode."""
        self.answer = number

    @reward(weight=1.0)
    def solved(self, episode: EpisodeView) -> float:
        return float(self.answer == self.secret)

    @metric
    def width(self, episode: EpisodeView) -> float:
        return self.high - self.low + 1

    def expert(self) -> str:
        middle = (self.low + self.high) // 2
        return self.call_text("submit" if self.low == self.high else "look", number=middle)

    def state_hash(self) -> str:
        return digest([self.task.key, self.secret, self.low, self.high, self.answer])


class Parrot(TextEnv):
    """Say the word once more: a `TextEnv` of one turn."""

    fast = True

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(hidden={"split": self.known_split(split), "i": i}) for i in range(3)]

    def setup(self, task: Task, rng: random.Random) -> str:
        self.word = rng.choice(["naïve", "日本", "plain"])
        return f"Say {self.word}"

    def respond(self, action: str) -> Response:
        right = action == self.word
        return Response("", float(right), terminated=True, success=right)

    def expert(self) -> str:
        return self.word
