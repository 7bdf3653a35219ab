"""How the teacher's signal meets the reward's advantage, and when.

`Mix` combines them; `Schedule` gives the coefficient c(n). Shape suffix: M tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from turnwise.trainers.ranges import above, at_least, shares

Mix = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""(RL advantage [M], weighted signal [M], c) -> advantage [M]."""


def signal_alone(rl_M: np.ndarray, signal_M: np.ndarray, c: float) -> np.ndarray:
    """c B: distillation without a reward."""
    return c * signal_M


def added(rl_M: np.ndarray, signal_M: np.ndarray, c: float) -> np.ndarray:
    """A_RL + c B (SOD eq. 10, dGRPO)."""
    return rl_M + c * signal_M


def convex(rl_M: np.ndarray, signal_M: np.ndarray, c: float) -> np.ndarray:
    """(1 - c) A_RL + c B. At c of 1 and 0 this is the hard switch from teacher to reward."""
    return (1 - c) * rl_M + c * signal_M


def modulated(bound: float = 0.2) -> Mix:
    """A_RL [(1 - c) + c clip(exp(sign(A_RL) B), 1 - bound, 1 + bound)] (RLSD, arXiv:2604.03128).

    The reward keeps the sign of every advantage; the teacher only says how much.
    """
    shares(bound=bound)
    return partial(_modulated, bound=bound)


def _modulated(rl_M: np.ndarray, signal_M: np.ndarray, c: float, bound: float) -> np.ndarray:
    raised_M = np.exp(np.clip(np.sign(rl_M) * signal_M, -20, 20))
    return rl_M * ((1 - c) + c * np.clip(raised_M, 1 - bound, 1 + bound))


@dataclass(frozen=True)
class Progress:
    """How far a run is: what a schedule may depend on."""

    step: int
    """Steps done."""
    steps: int
    """Steps of the whole run."""
    success: tuple[float, ...] = ()
    """Success rate of each step's attempts so far; NaN where all were lost."""
    drift: tuple[float, ...] = ()
    """Mean |log pi - log T| of each step so far, nats; NaN where nothing was taught."""
    deepest: tuple[float, ...] = ()
    """The same in the last third of each episode's turns; NaN where nobody measured it."""


Schedule = Callable[[Progress], float]
"""c(n) >= 0."""


def constant(c: float = 1.0) -> Schedule:
    """c, always."""
    at_least(0, c=c)
    return partial(_constant, c=c)


def _constant(progress: Progress, c: float) -> float:
    return c


ALWAYS = constant(1.0)


def linear(first: float, last: float, over: float = 1.0) -> Schedule:
    """From `first` to `last` over the share `over` of the run, then `last`."""
    at_least(0, first=first, last=last)
    above(0, over=over)
    return partial(_linear, first=first, last=last, over=over)


def _linear(progress: Progress, first: float, last: float, over: float) -> float:
    share = min(1.0, progress.step / max(over * progress.steps, 1))
    return first + (last - first) * share


def through(first: float, last: float) -> Schedule:
    """From `first` in the first step to `last` in the last one, where `linear` would end behind it.

    A run of one step has `last`.
    """
    at_least(0, first=first, last=last)
    return partial(_through, first=first, last=last)


def _through(progress: Progress, first: float, last: float) -> float:
    steps = progress.steps - 1
    return first + (last - first) * min(1.0, progress.step / steps) if steps > 0 else last


def cosine(first: float, last: float, over: float = 1.0) -> Schedule:
    """From `first` to `last` over the share `over` of the run along half a cosine, then `last`."""
    at_least(0, first=first, last=last)
    above(0, over=over)
    return partial(_cosine, first=first, last=last, over=over)


def _cosine(progress: Progress, first: float, last: float, over: float) -> float:
    share = min(1.0, progress.step / max(over * progress.steps, 1))
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def falling(first: float = 1.0, by: float = 0.2, least: float = 0.6) -> Schedule:
    """max(least, first - by n): a step down each time (arXiv:2605.12913).

    Raises:
        ValueError: a number is negative, or `first` is below `least`, to which it could not fall.
    """
    at_least(0, first=first, by=by, least=least)
    if first < least:
        raise ValueError(f"first is at least {least:g}, to which it falls, got {first:g}")
    return partial(_falling, first=first, by=by, least=least)


def _falling(progress: Progress, first: float, by: float, least: float) -> float:
    return max(least, first - by * progress.step)


def until(step: int, then: float = 0.0) -> Schedule:
    """1 in the first `step` steps, then `then` (OPD-then-RL)."""
    at_least(0, step=step, then=then)
    return partial(_until, step=step, then=then)


def _until(progress: Progress, step: int, then: float) -> float:
    return 1.0 if progress.step < step else then


def until_plateau(patience: int = 5, gain: float = 0.01, then: float = 0.0) -> Schedule:
    """1 until success has not risen by `gain` for `patience` steps, then `then`, for good.

    What is compared is the mean of the last `patience` steps with the best mean of as many steps in
    a row before them. It never goes back: a teacher that returns after long meets another student.
    """
    at_least(1, patience=patience)
    at_least(0, gain=gain, then=then)
    return partial(_until_plateau, patience=patience, gain=gain, then=then)


def _until_plateau(progress: Progress, patience: int, gain: float, then: float) -> float:
    seen = progress.success
    best = -math.inf
    for end in range(patience, len(seen) + 1):
        mean = sum(seen[end - patience : end]) / patience
        if end >= 2 * patience:
            before = sum(seen[end - 2 * patience : end - patience]) / patience
            best = max(best, before)
            if mean < best + gain:
                return then
    return 1.0
