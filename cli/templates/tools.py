"""MyEnv: say what a basket costs, with a price list to look things up in."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from turnwise.envs import EpisodeView, Task, ToolEnv, ToolFailed, derive, register, reward, tool

GOODS = ("apple", "bread", "cheese", "milk", "soap", "tea")


@dataclass(frozen=True, kw_only=True)
class Basket(Task):
    """What to solve: the fields decide the world, and equal fields are the same task."""

    seed: int
    size: int


@register("my-env/MyEnv-v1", tags=("tools",))
class MyEnv(ToolEnv):
    """Look up what the goods of a basket cost and submit the sum; the right one pays 1."""

    Task: ClassVar[type[Task]] = Basket
    fast = True  # a step takes less than a millisecond and never waits
    max_turns = 8

    def tasks(self, split: str) -> Sequence[Basket]:
        """Return the tasks of a split; no two splits share a seed."""
        first = 1000 * self.splits.index(self.known_split(split))
        return [Basket(seed=first + i, size=2 + i % 3) for i in range(1000)]

    def setup(self, task: Basket, rng: random.Random) -> str:
        """Make the world and return what the agent reads first."""
        luck = random.Random(derive("my-env", task.seed))
        self.prices = {good: luck.randrange(1, 100) for good in GOODS}
        self.basket = luck.sample(GOODS, task.size)
        self.seen: set[str] = set()
        self.answer = -1
        return f"What do these cost together: {', '.join(self.basket)}?"

    @tool
    def price(self, good: str) -> int:
        """Look up a price.

        Args:
            good: What costs it.
        """
        if good not in self.prices:
            raise ToolFailed(f"no price of {good[:40]!r}; goods: {', '.join(GOODS)}")
        self.seen.add(good)
        return self.prices[good]

    @tool(final=True)
    def submit(self, total: int) -> None:
        """Give the answer; ends the episode.

        Args:
            total: What the basket costs.
        """
        self.answer = total

    @reward()
    def right(self, episode: EpisodeView) -> float:
        """Pay for the right sum, once the episode has ended."""
        return float(self.answer == sum(self.prices[good] for good in self.basket))

    def expert(self) -> str:
        """Return the right action now: the proof that it can be done, and a teacher."""
        for good in self.basket:
            if good not in self.seen:
                return self.call_text("price", good=good)
        return self.call_text("submit", total=sum(self.prices[good] for good in self.basket))
