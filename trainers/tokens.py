"""The trained tokens of a batch as columns: what every distillation piece reads.

Filled once per rollout batch, before its first update, from what sampler and teacher said; so that
all weights stay what they were through several updates. NumPy only. Shape suffix: M tokens.
A score that is missing (a failed call, a token that the teacher does not have) is NaN: the token is
masked. It is never 0, which would be probability one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np


@dataclass(frozen=True, eq=False)
class TokenTable:
    """M trained tokens, each with what is known of it. Log-probabilities are in nats.

    Raises:
        ValueError: columns differ in length; the message names the column.
    """

    old_M: np.ndarray
    """float64: log pi_sampler of the sampled token."""
    teacher_M: np.ndarray
    """float64: log T of the sampled token; NaN where it is missing."""
    step_M: np.ndarray
    """int64: index of the token's turn in its trajectory, 0 at the first."""
    traj_M: np.ndarray
    """int64, dense: 0 .. number of trajectories - 1."""
    group_M: np.ndarray
    """int64: which attempts are at the same task."""
    success_M: np.ndarray
    """bool: whether the token's trajectory solved its task."""
    reward_M: np.ndarray
    """float64: the undiscounted return of the token's trajectory."""
    reference_M: np.ndarray | None = None
    """float64: log R0 of the sampled token, where a piece asks for it."""
    student_now_M: np.ndarray | None = None
    """float64: log pi of the trainer itself before the first update, where it was asked for."""
    reverse_kl_M: np.ndarray | None = None
    """float64: KL(pi || T) over the vocabulary at the token, where it was asked for."""
    entropy_M: np.ndarray | None = None
    """float64: entropy of pi at the token, nats, where it was asked for."""
    overlap_M: np.ndarray | None = None
    """float64: share of the student's top K that is in the teacher's, where it was asked for."""
    top_M: np.ndarray | None = None
    """float64: probability of the teacher's likeliest token, where it was asked for."""
    against_M: np.ndarray | None = None
    """float64: log T of the sampled token under a second, contrasting context."""
    kind_M: np.ndarray | None = None
    """str: kind of the token's turn, empty where the environment does not say."""
    valid_M: np.ndarray = field(init=False)
    """bool: the teacher's score is there."""

    def __post_init__(self) -> None:
        for column in fields(self):
            value = getattr(self, column.name, None)
            if value is not None and len(value) != len(self.old_M):
                raise ValueError(
                    f"column {column.name} has {len(value)} tokens and old_M {len(self.old_M)}"
                )
        object.__setattr__(self, "valid_M", np.isfinite(self.teacher_M))

    def __len__(self) -> int:
        return len(self.old_M)

    @property
    def turn_M(self) -> np.ndarray:
        """int64, dense: the turn of each token, unique in the batch. [M]"""
        steps = self.step_M.max(initial=-1) + 1
        return np.unique(self.traj_M * steps + self.step_M, return_inverse=True)[1]

    @property
    def scored_M(self) -> np.ndarray:
        """bool: some token of its trajectory has a score. Statistics over trajectories leave the
        others out: a missing one is as if it were not there. [M]"""
        return segment_sum(self.valid_M.astype(float), self.traj_M) > 0

    @property
    def drift_M(self) -> np.ndarray:
        """float64: |log pi_sampler - log T| of the sampled token, 0 where masked. [M]"""
        return np.where(self.valid_M, np.abs(self.old_M - self.teacher_M), 0.0)

    def column(self, name: str, why: str) -> np.ndarray:
        """Return an optional column.

        Raises:
            ValueError: it was not asked for; the message says who needs it.
        """
        if (value := getattr(self, name)) is None:
            raise ValueError(f"{why} needs the column {name}, and this batch was scored without it")
        return np.asarray(value)


def segment_sum(values_M: np.ndarray, labels_M: np.ndarray) -> np.ndarray:
    """The sum over all tokens with the same label, at each of them. [M]"""
    return np.bincount(labels_M, values_M)[labels_M] if len(labels_M) else values_M.astype(float)


def segment_mean(
    values_M: np.ndarray, labels_M: np.ndarray, where_M: np.ndarray | None = None
) -> np.ndarray:
    """The mean over the tokens with the same label, of those that count; 0 where none does. [M]"""
    ones_M = np.ones(len(labels_M)) if where_M is None else where_M.astype(float)
    return segment_sum(values_M * ones_M, labels_M) / np.maximum(segment_sum(ones_M, labels_M), 1)
