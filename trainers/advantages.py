"""Turn-level credit: one number per turn, from leave-one-out baselines at several levels.

    A_l(i,t) = (R_l(i,t) - b_l(i,t)) / s_l(i,t)          at each level l (a key and a return)
    A(i,t)   = sum_l w_l A_l / sum_l w_l                 over the levels l that are present

A level is *present* at a turn if its group holds at least two distinct trajectories. With the
leave-one-out baseline, which excludes the whole own trajectory, neither presence nor baseline
depends on the own action, so every such mixture of returns-to-go gives an unbiased policy gradient.
A turn with no level present gets 0, never its raw reward.

Shape suffixes: N turns, L levels; a *unit* is a turn that counts in its group's statistics.
One segmented reduction (sort and bincount, O(N log N)); NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from turnwise.trainers.ranges import at_least
from turnwise.trainers.turns import Keys, Returns, trajectory
from turnwise.trainers.turns import TurnTable as TurnTable
from turnwise.trainers.turns import turn_table as turn_table

Credit = Callable[[TurnTable], np.ndarray]
"""float64 [N]: the advantage of each turn."""


@dataclass(frozen=True, eq=False)
class Grouping:
    """Who is compared with whom at one level."""

    key_N: np.ndarray
    """int64, dense: the group of the turn."""
    cell_N: np.ndarray
    """int64, dense: the turns of one trajectory within one group."""
    unit_N: np.ndarray
    """bool: the turn counts in the statistics of its group."""
    present_N: np.ndarray
    """bool: the group holds at least two distinct trajectories."""


Baseline = Callable[[np.ndarray, Grouping], np.ndarray]
"""(returns [N], grouping) -> what to subtract [N]."""
Scale = Callable[[np.ndarray, Grouping], np.ndarray]
"""(returns [N], grouping) -> what to divide by [N], positive."""
Combine = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(advantages [L, N], present [L, N], weights [L]) -> advantages [N]."""


def group_by(table: TurnTable, keys_N: np.ndarray, *, once: bool = False) -> Grouping:
    """Group turns by key; a negative key is in no group.

    Args:
        table: The turns.
        keys_N: int64 [N].
        once: Count every trajectory once in each group, by its earliest turn there, so that long
            episodes and revisited states weigh no more than others.
    """
    inside_N = keys_N >= 0
    key_N = np.unique(keys_N, return_inverse=True)[1]
    trajs = table.traj_N.max(initial=-1) + 1
    cell_N = np.unique(key_N * trajs + table.traj_N, return_inverse=True)[1]
    order_N = np.lexsort((table.turn_N, cell_N))
    first_N = np.zeros(len(table), bool)
    first_N[order_N[np.diff(cell_N[order_N], prepend=-1) != 0]] = True
    rivals_N = np.bincount(key_N, first_N)[key_N]
    return Grouping(key_N, cell_N, inside_N & (first_N | (not once)), inside_N & (rivals_N >= 2))


def _sums(values_N: np.ndarray, segment_N: np.ndarray, g: Grouping) -> np.ndarray:
    """The sum over the units of each segment, at each of its turns."""
    return np.bincount(segment_N, values_N * g.unit_N)[segment_N]


# Baselines


def mean(returns_N: np.ndarray, g: Grouping) -> np.ndarray:
    """The mean of the group, the own return included: shrinks A by (G-1)/G for G attempts."""
    count_N = _sums(np.ones_like(returns_N), g.key_N, g)
    return _sums(returns_N, g.key_N, g) / np.maximum(count_N, 1)


def leave_one_out(returns_N: np.ndarray, g: Grouping) -> np.ndarray:
    """The mean of the group without any turn of the own trajectory: sum_{j!=i} R_j / (n - n_i)."""
    centre_N = mean(returns_N, g)  # sums of deviations keep their digits when returns are large
    deviation_N, ones_N = returns_N - centre_N, np.ones_like(returns_N)
    others_N = _sums(ones_N, g.key_N, g) - _sums(ones_N, g.cell_N, g)
    rest_N = _sums(deviation_N, g.key_N, g) - _sums(deviation_N, g.cell_N, g)
    return centre_N + rest_N / np.maximum(others_N, 1)


def median(returns_N: np.ndarray, g: Grouping) -> np.ndarray:
    """The median of the group, the own return included (MC-GRPO, arXiv:2601.22582)."""
    rows = np.flatnonzero(g.unit_N)
    rows = rows[np.lexsort((returns_N[rows], g.key_N[rows]))]
    sorted_U = np.append(returns_N[rows], 0.0)  # the 0 stands for groups that hold no unit
    count_K = np.bincount(g.key_N[rows], minlength=g.key_N.max(initial=-1) + 1)
    start_K = np.cumsum(count_K) - count_K
    low_K, high_K = start_K + np.maximum(count_K - 1, 0) // 2, start_K + count_K // 2
    return ((sorted_U[low_K] + sorted_U[high_K]) / 2)[g.key_N]


def no_baseline(returns_N: np.ndarray, g: Grouping) -> np.ndarray:
    """Zero."""
    return np.zeros_like(returns_N)


# Scales


def unscaled(returns_N: np.ndarray, g: Grouping) -> np.ndarray:
    """One."""
    return np.ones_like(returns_N)


def std(ddof: int = 1, eps: float = 1e-6, floor: float = 0.0) -> Scale:
    """max(std of the group, floor) + eps, in which std = sqrt(sum (R - mean)^2 / (n - ddof)).

    A floor (about 1e-2 of the reward range) keeps groups apart that differ only by noise from
    groups that differ: without one, a spread of 1e-5 becomes advantages of order 1.
    """
    at_least(0, ddof=ddof, eps=eps, floor=floor)
    return partial(_std, ddof=ddof, eps=eps, floor=floor)


def _std(returns_N: np.ndarray, g: Grouping, ddof: int, eps: float, floor: float) -> np.ndarray:
    square_N = (returns_N - mean(returns_N, g)) ** 2
    count_N = _sums(np.ones_like(returns_N), g.key_N, g)
    variance_N = _sums(square_N, g.key_N, g) / np.maximum(count_N - ddof, 1)
    return np.maximum(np.sqrt(variance_N), floor) + eps


def batch_std(eps: float = 1e-6) -> Scale:
    """The population std of the level's returns over the whole batch + eps: one number for all."""
    return partial(_batch_std, eps=eps)


def _batch_std(returns_N: np.ndarray, g: Grouping, eps: float) -> np.ndarray:
    spread = returns_N[g.unit_N].std() if g.unit_N.any() else 0.0
    return np.full_like(returns_N, spread + eps)


def mad(eps: float = 1e-3) -> Scale:
    """median |R - median| of the group + eps; its std (ddof 1) where that median is 0.

    With binary rewards and an odd group the median deviation is always 0, and dividing by eps
    alone would give advantages of 1/eps (MC-GRPO as published).
    """
    return partial(_mad, eps=eps)


def _mad(returns_N: np.ndarray, g: Grouping, eps: float) -> np.ndarray:
    spread_N = median(np.abs(returns_N - median(returns_N, g)), g)
    return np.where(spread_N > 0, spread_N, _std(returns_N, g, ddof=1, eps=0.0, floor=0.0)) + eps


# Combination of levels


def renormalised(
    advantages_LN: np.ndarray, present_LN: np.ndarray, weight_L: np.ndarray
) -> np.ndarray:
    """sum_l w_l A_l / sum_l w_l over the levels present: unbiased with leave-one-out baselines."""
    return _weighted_mean(advantages_LN, weight_L[:, None] * present_LN)


def summed(advantages_LN: np.ndarray, present_LN: np.ndarray, weight_L: np.ndarray) -> np.ndarray:
    """sum_l w_l A_l, absent levels as 0 (GiGPO): turns seen by more levels weigh more."""
    return (weight_L[:, None] * present_LN * advantages_LN).sum(0)


def nonzero(advantages_LN: np.ndarray, present_LN: np.ndarray, weight_L: np.ndarray) -> np.ndarray:
    """HGPO's released renormalisation, over levels whose advantage is not 0.

    Biased: whether a level counts depends on the own return. For reproduction only.
    """
    counts_LN = present_LN & (advantages_LN != 0)
    return _weighted_mean(advantages_LN, weight_L[:, None] * counts_LN)


def finest(advantages_LN: np.ndarray, present_LN: np.ndarray, weight_L: np.ndarray) -> np.ndarray:
    """The last level that is present: unbiased, too, with leave-one-out baselines."""
    last_N = len(present_LN) - 1 - present_LN[::-1].argmax(0)
    return np.where(present_LN.any(0), advantages_LN[last_N, np.arange(len(last_N))], 0.0)


def _weighted_mean(values_LN: np.ndarray, weight_LN: np.ndarray) -> np.ndarray:
    total_N = weight_LN.sum(0)
    return (weight_LN * values_LN).sum(0) / np.where(total_N > 0, total_N, 1.0)


# Credit


@dataclass(frozen=True, kw_only=True)
class Level:
    """One comparison: the turns of a key, by a return, against a baseline, on a scale."""

    returns: Returns
    keys: Keys = trajectory
    baseline: Baseline = leave_one_out
    scale: Scale = unscaled
    weight: float = 1.0
    once: bool = False
    """Each trajectory counts once in a group (see `group_by`)."""

    def __post_init__(self) -> None:
        at_least(0, weight=self.weight)


def by_levels(*levels: Level, combine: Combine = renormalised) -> Credit:
    """Return the credit that combines `levels`; a turn that no level can judge gets 0."""
    return partial(_by_levels, levels=levels, combine=combine)


def _by_levels(table: TurnTable, levels: Sequence[Level], combine: Combine) -> np.ndarray:
    judged = [_judge(table, level) for level in levels]
    advantages_LN, present_LN = (np.stack(column) for column in zip(*judged, strict=True))
    return combine(advantages_LN, present_LN, np.array([level.weight for level in levels]))


def _judge(table: TurnTable, level: Level) -> tuple[np.ndarray, np.ndarray]:
    g = group_by(table, level.keys(table), once=level.once)
    returns_N = level.returns(table)
    centred_N, scale_N = returns_N - level.baseline(returns_N, g), level.scale(returns_N, g)
    zeros_N = np.zeros(len(table))
    return np.divide(centred_N, scale_N, out=zeros_N, where=g.present_N), g.present_N


def plus(*parts: tuple[float, Credit]) -> Credit:
    """sum_k w_k credit_k: credit for rewards of different kinds."""
    for weight, _ in parts:
        at_least(0, weight=weight)
    return partial(_plus, parts=parts)


def _plus(table: TurnTable, parts: Sequence[tuple[float, Credit]]) -> np.ndarray:
    return np.sum([weight * credit(table) for weight, credit in parts], axis=0)


def whitened(credit: Credit, eps: float = 1e-8) -> Credit:
    """(A - mean) / (std + eps) over the sampled tokens of the batch, population std."""
    return partial(_whitened, credit=credit, eps=eps)


def _whitened(table: TurnTable, credit: Credit, eps: float) -> np.ndarray:
    advantage_N, weight_N = credit(table), table.tokens_N
    if not weight_N.any():
        return np.zeros(len(table))
    deviation_N = advantage_N - np.average(advantage_N, weights=weight_N)
    return deviation_N / (np.sqrt(np.average(deviation_N**2, weights=weight_N)) + eps)
