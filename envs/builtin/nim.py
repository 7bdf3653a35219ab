"""Nim: take sticks from piles in turn; whoever takes the last one wins.

`Nim` is the game of two; `NimSeat` is a seat in it against an opponent, registered as
`turnwise/Nim-v1`. The expert follows the theory of Bouton (1901): leave a position whose pile
sizes, as binary numbers, xor to zero.

    piles 3 5 7          the agent reads this,
    take 1 1             calls this (one stick from the first pile),
    piles 2 3 7          and reads what its opponent has left of it
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import xor
from typing import Any, ClassVar

from turnwise.envs.knobs import count, share, span
from turnwise.envs.multi_agent import MultiAgentEnv
from turnwise.envs.names import UnknownName, hint
from turnwise.envs.seat import OtherPolicy, SingleAgentEnv
from turnwise.envs.seeds import derive
from turnwise.envs.task_range import TaskRange
from turnwise.envs.tools import ToolFailed, tool
from turnwise.envs.types import Message, Task, digest

SIZES = {"train": 1_000_000, "dev": 10_000, "test": 10_000}
MAX_DRAWS = 10_000
SHARES = {"train": range(8), "dev": range(8, 9), "test": range(9, 10)}
"""Of ten parts of all positions, so that no split has a position of another one."""


@dataclass(frozen=True, kw_only=True)
class Piles(Task):
    """One starting position."""

    piles: tuple[int, ...]
    index: int = 0
    """Tells positions apart that were drawn more than once."""


class Nim(MultiAgentEnv):
    """The game of two.

    Args:
        piles: How many there are, or (least, most); 2 to 6.
        sticks: At most so many in each at the start; 3 to 15.
        winner: Who wins if both play well; the positions are chosen so.
        actions: How calls are written: a name in `FORMATS`.

    Raises:
        ValueError: a number is out of range, or no position of that kind is left for a split.
        UnknownName: there is no such winner or format.
    """

    Task: ClassVar[type[Task]] = Piles
    agents = ("first", "second")
    rules = "Take sticks from one pile. Whoever takes the last stick wins."

    def __init__(
        self,
        *,
        piles: int | Sequence[int] = (3, 4),
        sticks: int = 9,
        winner: str = "first",
        actions: str = "command",
    ) -> None:
        super().__init__(actions=actions)
        self.counts = span("piles", piles, 2, 6)
        self.sticks = count("sticks", sticks, 3, 15)
        if winner not in self.agents:
            raise UnknownName(f"no agent {winner!r}; {hint(winner, self.agents)}")
        self.winner = winner
        self.max_turns = 2 * self.counts[1] * sticks
        for split in self.splits:
            self._drawn(split, 0)

    def tasks(self, split: str) -> Sequence[Piles]:
        """Return the positions of a split, drawn on demand."""
        return TaskRange(lambda i: self._drawn(split, i), SIZES[split])

    def _drawn(self, split: str, index: int) -> Piles:
        rng = random.Random(derive("nim", split, index))
        for _ in range(MAX_DRAWS):
            count = rng.randint(*self.counts)
            piles = tuple(rng.randint(1, self.sticks) for _ in range(count))
            part = derive("nim", "part", *sorted(piles)) % 10
            won_by_first = reduce(xor, piles) != 0
            if part in SHARES[split] and won_by_first == (self.winner == "first"):
                return Piles(piles=piles, index=index)
        raise ValueError(
            f"split {split!r} has no position of {self.counts} piles of up to {self.sticks} sticks "
            f"that {self.winner} wins; allow more piles or sticks"
        )

    def setup(self, task: Piles, rng: random.Random) -> None:
        """Lay the sticks out."""
        self.piles = list(task.piles)

    def observe(self, agent: str) -> str:
        """Return the sizes of all piles."""
        return f"piles {' '.join(map(str, self.piles))}"

    @tool
    def take(self, pile: int, count: int) -> None:
        """Take sticks from one pile.

        Args:
            pile: Which, counted from 1.
            count: How many.
        """
        if not 1 <= pile <= len(self.piles):
            raise ToolFailed(f"no pile {pile}; there are {len(self.piles)}")
        if not 1 <= count <= self.piles[pile - 1]:
            raise ToolFailed(f"pile {pile} has {self.piles[pile - 1]}; cannot take {count}")
        self.piles[pile - 1] -= count
        if any(self.piles):
            self.next_agent()
        else:
            self.pay(self.agent_selection, 1.0)
            self.finish()

    def expert(self) -> str:
        """Return a winning move, or where there is none the smallest from the largest pile."""
        return self.move(*best(self.piles))

    def move(self, pile: int, count: int) -> str:
        """Return the action that takes `count` from pile number `pile`, counted from 0."""
        return self.call_text("take", pile=pile + 1, count=count)

    def state_hash(self) -> str:
        """Return the hash of the piles and of who is next."""
        return digest([self.piles, self.agent_selection])


def best(piles: Sequence[int]) -> tuple[int, int]:
    """Return (pile from 0, count) of the first winning move, else one from the largest pile."""
    total = reduce(xor, piles)
    for index, size in enumerate(piles):
        if size ^ total < size:
            return index, size - (size ^ total)
    return piles.index(max(piles)), 1


def opponent(game: Nim, blunder: float) -> OtherPolicy:
    """Return a policy that plays well, but with probability `blunder` any legal move."""

    def play(conversation: Sequence[Message], rng: random.Random) -> str:
        piles = [int(word) for word in conversation[-1]["content"].split()[1:]]
        if rng.random() >= blunder:
            return game.move(*best(piles))
        moves = [(i, count) for i, size in enumerate(piles) for count in range(1, size + 1)]
        return game.move(*rng.choice(moves))

    return play


class NimSeat(SingleAgentEnv):
    """A seat in `Nim`: win against an opponent from a position that can be won.

    The reward is 1 for taking the last stick. One wrong move gives the game away to an opponent
    that does not blunder.

    Args:
        seat: `first` or `second`, in the order of play.
        blunder: Probability that a move of the opponent is any legal one.
        piles, sticks, actions: See `Nim`.
    """

    def __init__(
        self,
        *,
        seat: str = "first",
        blunder: float = 0.0,
        piles: int | Sequence[int] = (3, 4),
        sticks: int = 9,
        actions: str = "command",
    ) -> None:
        share("blunder", blunder)
        game: Any = Nim(piles=piles, sticks=sticks, winner=seat, actions=actions)
        (other,) = (name for name in game.agents if name != seat)
        super().__init__(game, agent=seat, others={other: opponent(game, blunder)})
        # Random legal moves won 0.01, 0.27 and 0.52 of 400 games at blunder 0, 0.5 and 1.
        self.chance_reward = 0.02 + 0.52 * blunder
