"""What a token contributes to the loss: ratio, surrogate, correction, KL, weight in the mean.

Everything works on the flat sampled tokens of a micro-batch, so padding does not exist.
Shape suffix: M tokens. `turn_M` and `traj_M` are int64 labels (any values) of the turn and the
trajectory of a token. A micro-batch holds whole turns for `turn_ratio`, and whole trajectories for
`sequence_ratio` and for the corrections that look at a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from turnwise.trainers.ranges import above, at_least

LOG_RATIO_LIMIT = 20.0
"""exp never sees more than this in absolute value: e^20 is a number, and e^89 is inf in float32."""


def _exp(log_M: Tensor) -> Tensor:
    return log_M.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def _segment_sum(values_M: Tensor, labels_M: Tensor) -> Tensor:
    """The sum over all tokens with the same label, at each of them. [M]"""
    labels, index_M = labels_M.unique(return_inverse=True)
    return values_M.new_zeros(len(labels)).index_add(0, index_M, values_M)[index_M]


def _segment_mean(values_M: Tensor, labels_M: Tensor) -> Tensor:
    return _segment_sum(values_M, labels_M) / _segment_sum(torch.ones_like(values_M), labels_M)


# Ratios: (log_ratio_M by token, turn_M, traj_M) -> log_ratio_M at the level of the ratio.

Ratio = Callable[[Tensor, Tensor, Tensor], Tensor]


def token_ratio(log_ratio_M: Tensor, turn_M: Tensor, traj_M: Tensor) -> Tensor:
    """rho_j = pi(j) / pi_old(j)."""
    return log_ratio_M


def turn_ratio(log_ratio_M: Tensor, turn_M: Tensor, traj_M: Tensor) -> Tensor:
    """Geometric mean over the turn, each token keeping its own gradient (arXiv:2511.20718)."""
    return _own_gradient(log_ratio_M, turn_M)


def sequence_ratio(log_ratio_M: Tensor, turn_M: Tensor, traj_M: Tensor) -> Tensor:
    """Geometric mean over the trajectory: s_ij = sg[s_i] pi(j) / sg[pi(j)] (GSPO, eq. 7 and 13)."""
    return _own_gradient(log_ratio_M, traj_M)


def _own_gradient(log_ratio_M: Tensor, labels_M: Tensor) -> Tensor:
    level_M = _segment_mean(log_ratio_M.detach(), labels_M)
    return level_M + (log_ratio_M - log_ratio_M.detach())


# Surrogates: (log_ratio_M, advantages_M) -> (gain_M to maximise, bounded_M: a bound is active).

Surrogate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def ppo(low: float = 0.2, high: float = 0.2) -> Surrogate:
    """min(rho A, clip(rho, 1 - low, 1 + high) A) (arXiv:1707.06347 eq. 7)."""
    at_least(0, low=low, high=high)
    return partial(_ppo, low=low, high=high)


def _ppo(
    log_ratio_M: Tensor, advantages_M: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    ratio_M = _exp(log_ratio_M)
    free_M, held_M = ratio_M * advantages_M, ratio_M.clamp(1 - low, 1 + high) * advantages_M
    return torch.minimum(free_M, held_M), held_M < free_M


def dual_clip(surrogate: Surrogate, bound: float = 3.0) -> Surrogate:
    """`surrogate`, but at least `bound` * A where A < 0 (arXiv:1912.09729)."""
    at_least(1, bound=bound)
    return partial(_dual_clip, surrogate=surrogate, bound=bound)


def _dual_clip(
    log_ratio_M: Tensor, advantages_M: Tensor, surrogate: Surrogate, bound: float
) -> tuple[Tensor, Tensor]:
    value_M, bounded_M = surrogate(log_ratio_M, advantages_M)
    floor_M = bound * advantages_M
    held_M = (advantages_M < 0) & (value_M < floor_M)
    return torch.where(held_M, floor_M, value_M), bounded_M | held_M


def weight_clip(
    positive: tuple[float, float] = (0.0, math.inf), negative: tuple[float, float] = (0.0, math.inf)
) -> Surrogate:
    """sg[clip(rho, lo, hi)] A log pi, with bounds by the sign of A: no token loses its gradient.

    CISPO is (0, 1 + eps) twice; DISPO is (.8, 11) and (0, 101). The value is the weighted
    advantage, as in the other surrogates; only its gradient is that of log pi.
    """
    for low, high in (positive, negative):
        at_least(0, low=low)
        at_least(low, high=high)
    return partial(_weight_clip, positive=positive, negative=negative)


def _weight_clip(
    log_ratio_M: Tensor,
    advantages_M: Tensor,
    positive: tuple[float, float],
    negative: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    ratio_M = _exp(log_ratio_M.detach())
    weight_M = torch.where(advantages_M < 0, ratio_M.clamp(*negative), ratio_M.clamp(*positive))
    return weight_M * _score(log_ratio_M, advantages_M), weight_M != ratio_M


def policy_gradient(log_ratio_M: Tensor, advantages_M: Tensor) -> tuple[Tensor, Tensor]:
    """A log pi, without a ratio (REINFORCE); the value is A."""
    return _score(log_ratio_M, advantages_M), torch.zeros_like(advantages_M, dtype=torch.bool)


def _score(log_ratio_M: Tensor, advantages_M: Tensor) -> Tensor:
    """A, with the gradient of A log pi."""
    return advantages_M * (1 + (log_ratio_M - log_ratio_M.detach()))


# Importance corrections: (log w_M, turn_M, traj_M) -> factor_M, in which w = pi_prox / pi_sampler
# is how far the trainer's own forward pass at the old weights is from what the engine reported.

Importance = Callable[[Tensor, Tensor, Tensor], Tensor]


def uncorrected(log_w_M: Tensor, turn_M: Tensor, traj_M: Tensor) -> Tensor:
    """One."""
    return torch.ones_like(log_w_M)


def truncated(bound: float = 2.0) -> Importance:
    """min(w, bound) by token (TIS)."""
    above(0, bound=bound)
    return partial(_truncated, bound=bound)


def _truncated(log_w_M: Tensor, turn_M: Tensor, traj_M: Tensor, bound: float) -> Tensor:
    return _exp(log_w_M).clamp(max=bound)


def token_mask(low: float = 0.5, high: float = 2.0) -> Importance:
    """w where low <= w <= high, else 0 (IcePop)."""
    at_least(0, low=low)
    at_least(low, high=high)
    return partial(_token_mask, low=low, high=high)


def _token_mask(log_w_M: Tensor, turn_M: Tensor, traj_M: Tensor, low: float, high: float) -> Tensor:
    w_M = _exp(log_w_M)
    return torch.where((w_M >= low) & (w_M <= high), w_M, 0.0)


def turn_mask(low: float = 0.5, high: float = 2.0) -> Importance:
    """1 where the geometric mean of w over the turn is in [low, high], else 0."""
    at_least(0, low=low)
    at_least(low, high=high)
    return partial(_turn_mask, low=low, high=high)


def _turn_mask(log_w_M: Tensor, turn_M: Tensor, traj_M: Tensor, low: float, high: float) -> Tensor:
    return _within(_segment_mean(log_w_M, turn_M), low, high)


def sequence_mask(low: float = 0.0, high: float = 3.0) -> Importance:
    """1 where the product of w over the trajectory is in [low, high], else 0 (MIS)."""
    at_least(0, low=low)
    at_least(low, high=high)
    return partial(_sequence_mask, low=low, high=high)


def _sequence_mask(
    log_w_M: Tensor, turn_M: Tensor, traj_M: Tensor, low: float, high: float
) -> Tensor:
    return _within(_segment_sum(log_w_M, traj_M), low, high)


def _within(log_M: Tensor, low: float, high: float) -> Tensor:
    return ((log_M.exp() >= low) & (log_M.exp() <= high)).to(log_M.dtype)


def veto(least: float = 1e-4) -> Importance:
    """0 on every token of a trajectory that holds a token with w < least, else 1."""
    above(0, least=least)
    return partial(_veto, least=least)


def _veto(log_w_M: Tensor, turn_M: Tensor, traj_M: Tensor, least: float) -> Tensor:
    broken_M = (log_w_M < math.log(least)).to(log_w_M.dtype)
    return (_segment_sum(broken_M, traj_M) == 0).to(log_w_M.dtype)


def both(*corrections: Importance) -> Importance:
    """The product of the corrections."""
    return partial(_both, corrections=corrections)


def _both(
    log_w_M: Tensor, turn_M: Tensor, traj_M: Tensor, corrections: tuple[Importance, ...]
) -> Tensor:
    factors = (correction(log_w_M, turn_M, traj_M) for correction in corrections)
    return math.prod(factors, start=torch.ones_like(log_w_M))


# KL(pi || ref) by token, from samples of pi: d_M = log pi - log ref (Schulman, "Approximating KL").

Divergence = Callable[[Tensor], Tensor]


def k1(d_M: Tensor) -> Tensor:
    """d: unbiased in value; its gradient as a loss has mean zero, so use it in rewards or logs."""
    return d_M


def k2(d_M: Tensor) -> Tensor:
    """d^2 / 2: biased in value, and its on-policy gradient is the true gradient of the KL."""
    return d_M.square() / 2


def k3(d_M: Tensor) -> Tensor:
    """exp(-d) - 1 + d: unbiased in value and never negative."""
    return (-d_M).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).expm1() + d_M


# Aggregations: (traj_M, turn_M, totals) -> weight_M. Called once for the whole batch and then
# split, so that micro-batches and ranks add up to exactly the loss of the batch.


@dataclass(frozen=True)
class Totals:
    """How much the whole batch holds: over micro-batches, and over ranks once added up."""

    tokens: int
    turns: int
    trajs: int

    @classmethod
    def of(cls, traj_M: Tensor, turn_M: Tensor) -> Totals:
        """Count tokens, turns and trajectories; `turn_M` labels differ between trajectories."""
        return cls(len(traj_M), len(turn_M.unique()), len(traj_M.unique()))

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.tokens + other.tokens, self.turns + other.turns, self.trajs + other.trajs
        )


Aggregate = Callable[[Tensor, Tensor, Totals], Tensor]


def token_mean(traj_M: Tensor, turn_M: Tensor, totals: Totals) -> Tensor:
    """1 / tokens: every token alike (DAPO)."""
    return torch.full(traj_M.shape, 1 / max(totals.tokens, 1), device=traj_M.device)


def seq_mean_token_mean(traj_M: Tensor, turn_M: Tensor, totals: Totals) -> Tensor:
    """1 / (trajs * tokens of the trajectory): every trajectory alike (GRPO)."""
    return 1 / (totals.trajs * _lengths(traj_M))


def turn_mean(traj_M: Tensor, turn_M: Tensor, totals: Totals) -> Tensor:
    """1 / (turns * tokens of the turn): every turn alike (Turn-PPO)."""
    return 1 / (totals.turns * _lengths(turn_M))


def seq_sum(length: float = 1.0) -> Aggregate:
    """1 / (trajs * length): sums over trajectories, by a constant length (RLOO 1, Dr. GRPO max)."""
    above(0, length=length)
    return partial(_seq_sum, length=length)


def _seq_sum(traj_M: Tensor, turn_M: Tensor, totals: Totals, length: float) -> Tensor:
    return torch.full(traj_M.shape, 1 / (max(totals.trajs, 1) * length), device=traj_M.device)


def _lengths(labels_M: Tensor) -> Tensor:
    return _segment_sum(torch.ones(labels_M.shape, device=labels_M.device), labels_M)
