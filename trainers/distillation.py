"""One formula for learning from a teacher, and how it meets the reward.

    W_t = valid_t * weight_t * route_i                 detached, once per rollout batch
    B_t = W_t * signal_t + valid_t * shift_i
    A_t = mix(A_RL,t ; B_t ; c(n))                     an advantage like any other
    L   = sum_t w_t [-S(rho_t, A_t) + c(n) W_t D_t]    D: a direct loss, in place of a signal

w_t divides by the number of trained tokens, not by the sum of W_t: a batch that is far from its
teacher shall weigh less, not be scaled up. Shape suffix: M tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from turnwise.trainers.divergences import Direct
from turnwise.trainers.mixes import ALWAYS, Mix, Progress, Schedule, signal_alone
from turnwise.trainers.routes import Route, everywhere
from turnwise.trainers.signals import Signal
from turnwise.trainers.tokens import TokenTable, segment_mean
from turnwise.trainers.weights import Weight, ones

if TYPE_CHECKING:
    from turnwise.trainers.contexts import Context
    from turnwise.trainers.teachers import Teacher

    Source = Callable[[Any, int], Teacher]

Column = Literal["reference", "reverse_kl", "entropy", "overlap", "top", "against"]
"""What the pieces read besides the sampled token's scores; each costs a pass or a sum."""


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What a recipe takes from a teacher. `dataclasses.replace` exchanges a piece.

    Raises:
        ValueError: it has neither a signal nor a direct loss.
    """

    signal: Signal | None = None
    """The advantage of a token; None for a direct loss alone."""
    direct: Direct | None = None
    """A loss that the gradient flows through."""
    weight: Weight = ones
    """By token and by turn; `weights.times` multiplies several."""
    route: Route = everywhere
    """By trajectory."""
    mix: Mix = signal_alone
    """With the advantage of the reward."""
    schedule: Schedule = ALWAYS
    """c(n)."""
    trust: float = 1.0
    """a in ratio = pi / (pi_old^a T^(1 - a)): below 1 the teacher moves the trust region (RLAD,
    arXiv:2602.22495)."""
    needs: tuple[Column, ...] = ()
    """Columns that the pieces read."""
    source: Source | None = None
    """(student, longest sequence) to the teacher, for one that is made of the student; None is the
    model that the run names."""
    context: Context | None = None
    """What the teacher is told besides the history."""

    def __post_init__(self) -> None:
        if self.signal is None and self.direct is None and self.trust == 1.0:
            raise ValueError("a distillation needs a signal, a direct loss or trust below 1")
        if not 0.0 <= self.trust <= 1.0:
            raise ValueError(f"trust is a share from 0 to 1, got {self.trust}")

    def is_silent(self, progress: Progress) -> bool:
        """Return whether no score can matter now: c is 0, and neither loss nor ratio reads one."""
        return self.direct is None and self.trust == 1.0 and self.schedule(progress) == 0


@dataclass(frozen=True, eq=False)
class Taught:
    """What the teacher makes of the M trained tokens of a batch."""

    advantage_M: np.ndarray
    """float64: A_t."""
    direct_M: np.ndarray
    """float64: c(n) W_t, the factor of the direct loss."""
    metrics: dict[str, float]
    """Counts and means of the weights, for the log."""


def teach(table: TokenTable, rl_M: np.ndarray, how: Distillation, progress: Progress) -> Taught:
    """Return advantages and weights of a batch.

    Args:
        table: What sampler and teacher said.
        rl_M: float64 [M], the advantage of the reward; zeros where there is none.
        how: The pieces.
        progress: For the schedule.
    """
    c = how.schedule(progress)
    route_M, shift_M = how.route(table)
    weight_M = np.where(table.valid_M, how.weight(table) * route_M, 0.0)
    signal_M = np.zeros(len(table)) if how.signal is None else how.signal(table)
    signal_M = np.where(np.isfinite(signal_M), signal_M, 0.0)
    taught_M = weight_M * signal_M + np.where(table.valid_M, shift_M, 0.0)
    has_signal = how.signal is not None
    advantage_M = how.mix(rl_M, taught_M, c) if has_signal else rl_M
    metrics = _metrics(table, weight_M, signal_M) | {"teacher_coefficient": c}
    return Taught(advantage_M, c * weight_M, metrics)


def _metrics(table: TokenTable, weight_M: np.ndarray, signal_M: np.ndarray) -> dict[str, float]:
    if not len(table):
        return {}
    total, square = weight_M.sum(), (weight_M**2).sum()
    return {
        "teacher_missing": float(1 - table.valid_M.mean()),
        "teacher_drift": float(table.drift_M.sum() / max(table.valid_M.sum(), 1)),
        "teacher_signal": float((weight_M * signal_M).sum() / max(total, 1e-12)),
        "teacher_weight": float(weight_M.mean()),
        "teacher_ess": float(total**2 / max(square * len(table), 1e-12)),
        **_by_third(table, weight_M),
        **_by_kind(table, weight_M),
    }


def _by_kind(table: TokenTable, weight_M: np.ndarray) -> dict[str, float]:
    """Mean weight of a token, and KL of a turn, of each kind of turn that the environment tells.

    The KL is the mean over turns of log pi_old - log T, summed over the turn's tokens: an unbiased
    estimate of KL(pi || T), in nats per turn.
    """
    if table.kind_M is None:
        return {}
    found, lead_M = {}, np.where(table.valid_M, table.old_M - table.teacher_M, 0.0)
    for kind in np.unique(table.kind_M[table.kind_M != ""]):
        here_M = table.kind_M == kind
        found[f"teacher_weight_{kind}"] = float(weight_M[here_M].mean())
        turns = len(np.unique(table.turn_M[here_M]))
        found[f"teacher_kl_{kind}"] = float(lead_M[here_M].sum() / turns)
    return found


def _by_third(table: TokenTable, weight_M: np.ndarray) -> dict[str, float]:
    """Mean weight and drift in each third of the turns: early, middle, late."""
    last_M = np.zeros(table.traj_M.max(initial=-1) + 1, np.int64)
    np.maximum.at(last_M, table.traj_M, table.step_M)
    third_M = 3 * (2 * table.step_M + 1) // (2 * (last_M[table.traj_M] + 1))
    found = {}
    for third, name in enumerate(("early", "middle", "late")):
        here_M = third_M == third
        if here_M.any():
            found[f"teacher_weight_{name}"] = float(weight_M[here_M].mean())
            drift_M = segment_mean(table.drift_M, np.zeros(len(table), np.int64), here_M)
            found[f"teacher_drift_{name}"] = float(drift_M[0])
    return found
