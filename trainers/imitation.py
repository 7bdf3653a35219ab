"""What a recipe takes from a teacher's actions: who plays, what is labelled, what is kept.

`RollIns` gives the roll-in of a round: who acts at which turn, teacher or student. `Keep` says
which rounds are learnt from. Pieces are functions; a round is one step of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from turnwise.agents.executors import ByChance, Either, RollIn, StudentFirst
from turnwise.agents.labels import every_turn
from turnwise.envs.types import Episode
from turnwise.trainers.mixes import Progress, Schedule
from turnwise.trainers.ranges import at_least

if TYPE_CHECKING:
    from turnwise.agents.labels import Teacher
    from turnwise.agents.policy import Seat
    from turnwise.agents.renderer import Renderer
    from turnwise.trainers.divergences import Direct

RollIns = Callable[[Progress], RollIn]
"""How far the run is -> who acts in this round."""


def teacher_alone(progress: Progress) -> RollIn:
    """The teacher takes every turn: demonstrations."""
    return ByChance(1.0)


def by_chance(beta: Schedule) -> RollIns:
    """The teacher takes each turn with probability beta(i)."""
    return partial(_by_chance, beta=beta)


def _by_chance(progress: Progress, beta: Schedule) -> RollIn:
    return ByChance(beta(progress))


def student_first(most: Schedule) -> RollIns:
    """The student plays kappa ~ U{0 .. most(i)} turns, the teacher the others."""
    return partial(_student_first, most=most)


def _student_first(progress: Progress, most: Schedule) -> RollIn:
    return StudentFirst(round(most(progress)))


def either(*roll_ins: RollIns) -> RollIns:
    """Each episode goes by one of them, with equal odds."""
    return partial(_either, roll_ins=roll_ins)


def _either(progress: Progress, roll_ins: Sequence[RollIns]) -> RollIn:
    return Either(tuple(made(progress) for made in roll_ins))


Keep = Callable[[Sequence[list[Episode]]], Sequence[list[Episode]]]
"""The rounds so far, the newest last -> those that are learnt from."""


def union(rounds: Sequence[list[Episode]]) -> Sequence[list[Episode]]:
    """All of them: the aggregated data set of DAgger."""
    return rounds


def last(rounds: Sequence[list[Episode]]) -> Sequence[list[Episode]]:
    """The newest one."""
    return rounds[-1:]


def window(k: int) -> Keep:
    """The newest k."""
    if k < 1:
        raise ValueError(f"a window holds at least 1 round, got {k}")
    return partial(_window, k=k)


def _window(rounds: Sequence[list[Episode]], k: int) -> Sequence[list[Episode]]:
    return rounds[-k:]


def every_episode(episode: Episode) -> bool:
    """A label is right whatever became of its episode."""
    return True


def solved(episode: Episode) -> bool:
    """Episodes that solved their task: demonstrations by rejection."""
    return episode.success


@dataclass(frozen=True, kw_only=True)
class Imitation:
    """What is learnt from the teacher's actions. `dataclasses.replace` exchanges a piece.

    Raises:
        ValueError: `batch` or `cap` is below 1.
    """

    roll_in: RollIns = teacher_alone
    """Who acts."""
    wanted: Callable[[Seat], bool] = every_turn
    """Which of the student's turns the teacher labels; its own turns are labels anyway."""
    keep: Keep = union
    """Which rounds are learnt from."""
    learn_from: Callable[[Episode], bool] = every_episode
    """Which episodes of them."""
    distinct: bool = True
    """Use equal labels of equal histories once."""
    cap: int | None = None
    """At most so many labels of an episode, drawn at random; each of k out of T counts T/k."""
    batch: int = 16
    """Episodes of an update. With U updates a round they are each used U * batch / kept times."""
    direct: Direct | None = None
    """A divergence from the distributions of a neural teacher at the label's tokens, as
    `full(fkl)`; None is the cross-entropy of the label, for which any teacher serves."""
    temperature: float = 1.0
    """At which a neural teacher acts and labels; 0 is greedy."""
    teacher: Callable[[Renderer], Teacher] | None = None
    """Makes the teacher; None takes the model that the run names, or else the environment's own
    `expert()`."""

    def __post_init__(self) -> None:
        at_least(1, batch=self.batch, cap=1 if self.cap is None else self.cap)
        at_least(0, temperature=self.temperature)

    def kept(self, rounds: Sequence[list[Episode]]) -> list[Episode]:
        """Return the episodes of the rounds that are kept, without those not to be learnt from."""
        kept = self.keep(rounds)
        return [e for some in kept for e in some if e.trainable and self.learn_from(e)]
