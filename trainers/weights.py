"""How much of the teacher's signal a token receives: factors by token, by turn, by trajectory.

All are detached, computed once per rollout batch, and multiply. What has no score has a weight, as
every token has, but no part in the weights of others. Shape suffix: M tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from turnwise.trainers.ranges import above, at_least, shares
from turnwise.trainers.tokens import TokenTable, segment_mean, segment_sum

Weight = Callable[[TokenTable], np.ndarray]
"""float64 [M], not negative."""


def ones(table: TokenTable) -> np.ndarray:
    """Every token alike. [M]"""
    return np.ones(len(table))


def times(*weights: Weight) -> Weight:
    """The product of several weights."""
    return partial(_times, weights=weights)


def _times(table: TokenTable, weights: tuple[Weight, ...]) -> np.ndarray:
    return np.prod([np.ones(len(table)), *(weight(table) for weight in weights)], axis=0)


# By turn: constant inside a turn.


def sod(*, eps: float = 1e-6, delta: float = 0.2, floor: float = 0.25) -> Weight:
    """Step-wise weights: less where the student has drifted further than at its first turn.

        d_k = mean over the turn's tokens of |log pi_old - log T|
        w_1 = 1;  w_k = min((max(d_1, floor * median of d_1) + eps) / (d_k + eps), 1 + delta)

    SOD (arXiv:2605.07725) eq. 6-7; its product over steps telescopes to this ratio, and its cap
    acts on the result alone. The floor is ours: without one (`floor=0`), a first turn that agrees
    with the teacher by chance takes all later ones of its trajectory out. The median is over the
    trajectories of the batch. The first turn is the first that has a score; one without weighs 1.

    Args:
        delta: the most that a turn may count beyond the first.
        floor: share of the batch's median d_1 that a trajectory's d_1 counts at least.
    """
    above(0, eps=eps)
    at_least(0, delta=delta, floor=floor)
    return partial(_sod, eps=eps, delta=delta, floor=floor)


def _sod(table: TokenTable, eps: float, delta: float, floor: float) -> np.ndarray:
    drift_M = segment_mean(table.drift_M, table.turn_M, table.valid_M)
    first_M = _first_drift(table, drift_M)
    least = floor * _over_trajectories(np.median, table, first_M)
    weight_M = (np.maximum(first_M, least) + eps) / (drift_M + eps)
    return _after_the_first(table, np.minimum(weight_M, 1 + delta))


def batch_sod(*, eps: float = 1e-6, delta: float = 0.2) -> Weight:
    """`sod` with one d_1 for all, the mean over the batch's first turns.

    The published weights are free of scale within a trajectory: a trajectory that starts badly and
    goes on as badly counts in full. These compare it with what first turns are like.
    """
    above(0, eps=eps)
    at_least(0, delta=delta)
    return partial(_batch_sod, eps=eps, delta=delta)


def _batch_sod(table: TokenTable, eps: float, delta: float) -> np.ndarray:
    drift_M = segment_mean(table.drift_M, table.turn_M, table.valid_M)
    reference = _over_trajectories(np.mean, table, _first_drift(table, drift_M))
    return _after_the_first(table, np.minimum((reference + eps) / (drift_M + eps), 1 + delta))


def _first_step(table: TokenTable) -> np.ndarray:
    """The index of the first turn with a score in each token's trajectory. [M]"""
    firsts = np.full(table.traj_M.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(firsts, table.traj_M[table.valid_M], table.step_M[table.valid_M])
    return firsts[table.traj_M]


def _first_drift(table: TokenTable, drift_M: np.ndarray) -> np.ndarray:
    """The drift of that turn; 0 where the trajectory has none. [M]"""
    first_M = table.step_M == _first_step(table)
    return segment_mean(drift_M, table.traj_M, first_M)


def _over_trajectories(
    average: Callable[[np.ndarray], np.floating[Any]], table: TokenTable, values_M: np.ndarray
) -> float:
    """The average over the trajectories that have a score; 0 if none has."""
    here_M = table.scored_M
    firsts = np.unique(table.traj_M[here_M], return_index=True)[1]
    return float(average(values_M[here_M][firsts])) if len(firsts) else 0.0


def _after_the_first(table: TokenTable, weight_M: np.ndarray) -> np.ndarray:
    """`weight_M` at the later turns with a score; 1 at the first one, and where there is none."""
    return np.where(_scored_turn(table) & (table.step_M != _first_step(table)), weight_M, 1.0)


def _scored_turn(table: TokenTable) -> np.ndarray:
    """Whether some token of each token's turn has a score. [M]"""
    return segment_sum(table.valid_M.astype(float), table.turn_M) > 0


def first_turns(count: int) -> Weight:
    """1 in the first `count` turns, else 0 (TT-OPD, arXiv:2605.02943)."""
    at_least(1, count=count)
    return partial(_first_turns, count=count)


def _first_turns(table: TokenTable, count: int) -> np.ndarray:
    return (table.step_M < count).astype(float)


def uniform_like(weight: Weight) -> Weight:
    """The mean of `weight` everywhere: the control that tells weighting from scaling."""
    return partial(_uniform_like, weight=weight)


def _uniform_like(table: TokenTable, weight: Weight) -> np.ndarray:
    here_M = table.valid_M
    return np.full(len(table), weight(table)[here_M].mean() if here_M.any() else 1.0)


def permuted(weight: Weight, seed: int = 0) -> Weight:
    """`weight` dealt to turns at random: the control that tells which turns from how unequal.

    Turns without a score take no part and weigh 1.
    """
    at_least(0, seed=seed)
    return partial(_permuted, weight=weight, seed=seed)


def _permuted(table: TokenTable, weight: Weight, seed: int) -> np.ndarray:
    here_M, turn_M, dealt_M = _scored_turn(table), table.turn_M, np.ones(len(table))
    _, first, at = np.unique(turn_M[here_M], return_index=True, return_inverse=True)
    by_turn = segment_mean(weight(table), turn_M)[here_M][first]
    rng = np.random.default_rng([seed, int(here_M.sum()), len(by_turn)])
    dealt_M[here_M] = rng.permutation(by_turn)[at]
    return dealt_M


# By token.


def from_the_front(strength: float = 0.5) -> Weight:
    """w_t = 1 + strength (1 - drift before t / drift of the trajectory) (IW-OPD, 2606.22600)."""
    at_least(0, strength=strength)
    return partial(_from_the_front, strength=strength)


def _from_the_front(table: TokenTable, strength: float) -> np.ndarray:
    total_M = segment_sum(table.drift_M, table.traj_M)
    before_M = _running(table, table.drift_M) - table.drift_M
    return 1 + strength * (1 - before_M / np.maximum(total_M, 1e-12))


def towards_the_end(least: float = 0.25, at: float = 0.3, width: float = 0.1) -> Weight:
    """least + (1 - least) sigmoid((f - at) / width), f: place in the trajectory (2605.21606)."""
    shares(least=least, at=at)
    above(0, width=width)
    return partial(_towards_the_end, least=least, at=at, width=width)


def _towards_the_end(table: TokenTable, least: float, at: float, width: float) -> np.ndarray:
    ones_M = np.ones(len(table))
    place_M = (_running(table, ones_M) - 0.5) / np.maximum(segment_sum(ones_M, table.traj_M), 1)
    return least + (1 - least) / (1 + np.exp(-(place_M - at) / width))


def pruned(threshold: float = 0.7, drop: float = 0.01, base: float = 0.5) -> Weight:
    """base + clip(1 - drop * (bad tokens so far), 0, 1) (Prune-OPD, arXiv:2605.07804).

    A token is bad where the student's top K shares less than `threshold` with the teacher's.
    """
    at_least(0, threshold=threshold, drop=drop, base=base)
    return partial(_pruned, threshold=threshold, drop=drop, base=base)


def _pruned(table: TokenTable, threshold: float, drop: float, base: float) -> np.ndarray:
    bad_M = table.valid_M & (table.column("overlap_M", "pruned") < threshold)
    return base + np.clip(1 - drop * _running(table, bad_M.astype(float)), 0, 1)


def informative(keep: float = 0.5) -> Weight:
    """1 on the share `keep` of each trajectory's tokens with the highest h + d - h d, else 0.

    h: entropy of the student, d: drift from the teacher, each scaled to 0..1 over the batch after h
    is cut at its 98th percentile (TIP, arXiv:2604.14084). Tokens without a score are not counted.
    """
    shares(keep=keep)
    return partial(_informative, keep=keep)


def _informative(table: TokenTable, keep: float) -> np.ndarray:
    here_M, entropy_M = table.valid_M, table.column("entropy_M", "informative")
    most = np.quantile(entropy_M[here_M], 0.98) if here_M.any() else 0.0
    h_M = _scaled(np.minimum(entropy_M, most), here_M)
    d_M = _scaled(table.drift_M, here_M)
    score_M = np.where(here_M, h_M + d_M - h_M * d_M, -np.inf)
    order_M = np.lexsort((-score_M, table.traj_M))
    rank_M = np.empty(len(table))
    rank_M[order_M] = _running_over(np.ones(len(table)), table.traj_M[order_M]) - 1
    return (rank_M < np.ceil(keep * segment_sum(1.0 * here_M, table.traj_M))).astype(float)


def _scaled(values_M: np.ndarray, here_M: np.ndarray) -> np.ndarray:
    """Scaled so that those that count lie in 0..1."""
    low, high = values_M[here_M].min(initial=np.inf), values_M[here_M].max(initial=-np.inf)
    return (values_M - low) / (high - low) if high > low else np.zeros(len(values_M))


def _running(table: TokenTable, values_M: np.ndarray) -> np.ndarray:
    """The running sum within each trajectory, the token itself included. [M]

    Tokens of a trajectory stand in their order in the table; trajectories may lie anywhere.
    """
    order_M = np.lexsort((np.arange(len(table)), table.step_M, table.traj_M))
    running_M = np.empty(len(table))
    running_M[order_M] = _running_over(values_M[order_M], table.traj_M[order_M])
    return running_M


def _running_over(values_M: np.ndarray, labels_M: np.ndarray) -> np.ndarray:
    """Running sums that start anew where the label changes; equal labels lie side by side. [M]"""
    total_M = np.cumsum(values_M)
    starts_M = np.flatnonzero(np.diff(labels_M, prepend=-1))
    run_M = np.cumsum(np.diff(labels_M, prepend=-1) != 0) - 1
    before = (total_M - values_M)[starts_M]
    return total_M - before[run_M] if len(values_M) else total_M
