"""How deep into a task an attempt goes, and where in it the agent begins.

    F2B    turns(n) = min(start + k(n), Tmax)                 the episode is cut there
    B2F    left(n)  = 1 + k(n); start(n) = max(0, L - left(n))   the expert plays until start(n)
    pace   k(n)     = floor(n / c), or one more whenever the student has come far enough

TCOD (arXiv:2604.24005) eq. 3-5. L is the length of the expert's way, Tmax the turn limit. All are
pure functions of how far the run is, and never go back.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from turnwise.envs.types import Task
from turnwise.trainers.mixes import Progress
from turnwise.trainers.ranges import above, at_least, shares


@dataclass(frozen=True, slots=True)
class Depth:
    """What part of a task an attempt covers."""

    turns: int | None = None
    """The agent's own turns, at most; None is as many as the environment allows."""
    left: int | None = None
    """Turns of the expert's way that are left to the agent: those before are played for it. None
    lets the agent start at the beginning."""
    slack: int | None = None
    """With `left`: turns that the agent has beyond what is left; None is no further limit."""

    def start(self, way: int) -> int:
        """Return the turn at which the agent begins, on a task that takes the expert `way`."""
        return 0 if self.left is None else max(0, way - self.left)

    def limit(self, way: int) -> int | None:
        """Return the most turns that the agent has of its own."""
        if self.left is None or self.slack is None:
            return self.turns
        return way - self.start(way) + self.slack


Curriculum = Callable[[Progress, Task], Depth]
"""The depth of every attempt at a task, now."""
Pace = Callable[[Progress], int]
"""Stages that have been climbed so far; never falls."""


def full_depth(progress: Progress, task: Task) -> Depth:
    """From the beginning to the end, always."""
    return Depth()


def constant_cut(turns: int) -> Curriculum:
    """`turns` turns, always: the control that tells a curriculum from a cut."""
    at_least(1, turns=turns)
    return partial(_constant_cut, turns=turns)


def _constant_cut(progress: Progress, task: Task, turns: int) -> Depth:
    return Depth(turns=turns)


def f2b(pace: Pace, most: int | None = None, start: int = 1) -> Curriculum:
    """Forward to backward: the first `start` turns, then one more with each stage.

    Args:
        pace: `steadily(c)` as published, or one that waits for the student.
        most: Tmax; None is the environment's own limit.
    """
    at_least(1, start=start)
    at_least(start, most=start if most is None else most)
    return partial(_f2b, pace=pace, most=most, start=start)


def _f2b(progress: Progress, task: Task, pace: Pace, most: int | None, start: int) -> Depth:
    turns = start + pace(progress)
    return Depth(turns=turns if most is None else min(turns, most))


def b2f(pace: Pace, slack: int | None = 1) -> Curriculum:
    """Backward to forward: the last turn of the expert's way, then one more with each stage.

    Args:
        pace: `steadily(c)` as published, or one that waits for the student.
        slack: turns beyond what is left of the expert's way. None, as published, lets the agent
            act up to the limit, and most of those turns lie where no expert goes.
    """
    at_least(0, slack=0 if slack is None else slack)
    return partial(_b2f, pace=pace, slack=slack)


def _b2f(progress: Progress, task: Task, pace: Pace, slack: int | None) -> Depth:
    return Depth(left=1 + pace(progress), slack=slack)


def steadily(every: int) -> Pace:
    """One stage each `every` steps: floor(n / c), TCOD eq. 4."""
    at_least(1, every=every)
    return partial(_steadily, every=every)


def _steadily(progress: Progress, every: int) -> int:
    return progress.step // every


def drift_below(bound: float, window: int = 3) -> Pace:
    """One stage each time that the student follows its teacher in the deepest third.

    Args:
        bound: nats; of the mean over `window` steps since the last stage.
    """
    above(0, drift=bound)
    at_least(1, window=window)
    return partial(_drift_below, bound=bound, window=window)


def _drift_below(progress: Progress, bound: float, window: int) -> int:
    return climbed(progress.deepest, partial(operator.gt, bound), window)


def success_above(bound: float, window: int = 3) -> Pace:
    """One stage each time that enough attempts succeed.

    An attempt that `f2b` cuts short has not succeeded: give that a `start` in which some tasks are
    solved, or another pace.

    Args:
        bound: the least mean success over `window` steps since the last stage that is enough.
    """
    shares(success=bound)
    at_least(1, window=window)
    return partial(_success_above, bound=bound, window=window)


def _success_above(progress: Progress, bound: float, window: int) -> int:
    return climbed(progress.success, partial(operator.le, bound), window)


def paced(every: int, drift: float | None, success: float | None, window: int) -> Pace:
    """Return the pace that a recipe's options name: a gate where one has a bound, else `steadily`.

    Raises:
        ValueError: both gates have one, or a number is out of range.
    """
    at_least(1, every=every, window=window)
    if drift is not None and success is not None:
        raise ValueError(f"one gate, drift={drift} or success={success}, and not both")
    if drift is not None:
        return drift_below(drift, window)
    return steadily(every) if success is None else success_above(success, window)


def climbed(seen: Sequence[float], far_enough: Callable[[float], bool], window: int) -> int:
    """Return how often the mean of `window` steps in a row was far enough, each counted once.

    A NaN among them is never far enough.
    """
    stages, since = 0, 0
    for end in range(1, len(seen) + 1):
        if end - since >= window and far_enough(sum(seen[end - window : end]) / window):
            stages, since = stages + 1, end
    return stages
