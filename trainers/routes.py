"""Which trajectories the teacher speaks to: a factor g_i and a shift h_i per trajectory.

Weights multiply the signal; shifts are added to it afterwards. A trajectory without any score takes
no share of what its group is given. Shape suffix: M tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from turnwise.trainers.tokens import TokenTable, segment_mean, segment_sum

Route = Callable[[TokenTable], tuple[np.ndarray, np.ndarray]]
"""(g, h), float64 [M] each, constant within a trajectory."""


def everywhere(table: TokenTable) -> tuple[np.ndarray, np.ndarray]:
    """Every trajectory alike."""
    return np.ones(len(table)), np.zeros(len(table))


def on_failure(table: TokenTable) -> tuple[np.ndarray, np.ndarray]:
    """Only those that failed."""
    return (~table.success_M).astype(float), np.zeros(len(table))


def on_success(table: TokenTable) -> tuple[np.ndarray, np.ndarray]:
    """Only those that succeeded (a quality gate; KEPO, arXiv:2602.00400)."""
    return table.success_M.astype(float), np.zeros(len(table))


def where_all_failed(table: TokenTable) -> tuple[np.ndarray, np.ndarray]:
    """Only the groups without a success: there the reward says nothing (AMPO, 2510.02227).

    A success that the teacher has no score for is a success none the less.
    """
    solved_M = segment_sum(table.success_M.astype(float), _dense(table.group_M))
    return (solved_M == 0).astype(float), np.zeros(len(table))


def failures_by_perplexity(temperature: float = 1.0) -> Route:
    """Failed trajectories by PPL_T^(-1/temperature), sum 1 in a group (SCOPE, arXiv:2604.10688).

    A failure that the teacher finds natural teaches more than one that is foreign to it.
    """
    return partial(_failures_by_perplexity, temperature=temperature)


def _failures_by_perplexity(table: TokenTable, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    score_M = segment_mean(np.nan_to_num(table.teacher_M), table.traj_M, table.valid_M)
    where_M = table.scored_M & ~table.success_M
    return _softmax(table, score_M / temperature, where_M), np.zeros(len(table))


def successes_by_perplexity(temperature: float = 1.0) -> Route:
    """Solved trajectories, weighted PPL_S^(1/temperature), sum 1 in each group (SCOPE)."""
    return partial(_successes_by_perplexity, temperature=temperature)


def _successes_by_perplexity(
    table: TokenTable, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    score_M = segment_mean(table.old_M, table.traj_M)
    where_M = table.scored_M & table.success_M
    return _softmax(table, -score_M / temperature, where_M), np.zeros(len(table))


def _softmax(table: TokenTable, score_M: np.ndarray, where_M: np.ndarray) -> np.ndarray:
    """exp(score) of each trajectory over that of its group, of those that count. [M]"""
    group_M, first = _dense(table.group_M), np.unique(table.traj_M, return_index=True)[1]
    top = np.full(group_M.max(initial=-1) + 1, -np.inf)
    np.maximum.at(top, group_M[where_M], score_M[where_M])
    raised_M = np.where(where_M, np.exp(score_M - np.where(where_M, top[group_M], 0.0)), 0.0)
    total = np.bincount(group_M[first], raised_M[first], minlength=len(top))
    return raised_M / np.maximum(total[group_M], 1e-300)


def margin(least: float = 0.4) -> Route:
    """Shift successes up and failures down until their mean signals in a group differ by `least`.

    Uni-OPD (arXiv:2605.03677): scope group, mode mean, direction both. Groups that differ enough,
    or hold only one kind, stay as they are.
    """
    return partial(_margin, least=least)


def _margin(table: TokenTable, least: float) -> tuple[np.ndarray, np.ndarray]:
    group_M, ones_M = _dense(table.group_M), np.ones(len(table))
    score_M = segment_mean(
        np.nan_to_num(table.teacher_M - table.old_M), table.traj_M, table.valid_M
    )
    first_M = np.zeros(len(table), bool)
    first_M[np.unique(table.traj_M, return_index=True)[1]] = True
    first_M &= table.scored_M
    won_M, lost_M = first_M & table.success_M, first_M & ~table.success_M
    gap_M = segment_mean(score_M, group_M, won_M) - segment_mean(score_M, group_M, lost_M)
    both_M = (segment_sum(won_M * ones_M, group_M) > 0) & (
        segment_sum(lost_M * ones_M, group_M) > 0
    )
    shift_M = np.where(both_M, np.maximum(least - gap_M, 0.0), 0.0) / 2
    return ones_M, np.where(table.success_M, shift_M, -shift_M)


def _dense(labels_M: np.ndarray) -> np.ndarray:
    return np.unique(labels_M, return_inverse=True)[1]
