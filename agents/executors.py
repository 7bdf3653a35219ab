"""Who acts at a turn, teacher or student: by chance, or the student first and then the teacher.

Every choice follows from the seed of the seat and its turn alone (`derive`), so that it is the same
under any concurrency, in a second attempt, and when a run is resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from turnwise.agents.policy import Seat, bernoulli
from turnwise.envs.seeds import derive


class RollIn(Protocol):
    """Says whether the teacher takes the turn of a seat that is about to act."""

    def __call__(self, seat: Seat) -> bool:
        """Return whether the teacher acts."""
        ...

    def odds(self, turn: int) -> float:
        """Return the probability that it acts at turn `turn`, 0 at the first."""
        ...


@dataclass(frozen=True)
class ByChance:
    """The teacher takes each turn with probability `beta`, independently."""

    beta: float

    def __post_init__(self) -> None:
        bernoulli(self.beta)  # refuses what is no probability

    def __call__(self, seat: Seat) -> bool:
        """Return whether the teacher acts."""
        return bernoulli(self.beta)(seat)

    def odds(self, turn: int) -> float:
        """Return `beta`."""
        return self.beta


@dataclass(frozen=True)
class StudentFirst:
    """The student plays kappa turns, the teacher all others; kappa is uniform on 0 .. `most`.

    At beta .6 by chance five turns of the student in a row are seen once in a hundred times; here
    its own chains of errors are visited. An episode that ends before kappa is the student's alone.
    """

    most: int

    def __post_init__(self) -> None:
        if self.most < 0:
            raise ValueError(f"most is a number of turns, 0 or more, got {self.most}")

    def __call__(self, seat: Seat) -> bool:
        """Return whether the teacher acts."""
        return seat.turn >= derive(seat.seed, "handoff") % (self.most + 1)

    def odds(self, turn: int) -> float:
        """Return the probability that kappa is at most `turn`."""
        return min(1.0, (turn + 1) / (self.most + 1))


@dataclass(frozen=True)
class Either:
    """Each episode goes by one of several rules, with equal odds."""

    rules: tuple[RollIn, ...]

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("there must be at least one rule to choose from")

    def __call__(self, seat: Seat) -> bool:
        """Return whether the teacher acts."""
        return self.rules[derive(seat.seed, "rule") % len(self.rules)](seat)

    def odds(self, turn: int) -> float:
        """Return the mean over the rules."""
        return sum(rule.odds(turn) for rule in self.rules) / len(self.rules)
