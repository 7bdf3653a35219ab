"""Direct losses of a token: divergences between student and teacher that a gradient flows through.

An estimator is named by the gradient that it gives, because its value does not tell: on samples of
the student, `k3` written as a loss pulls towards the *forward* KL, and k1 towards nothing at all.

Shape suffixes: M tokens, V vocabulary, K of its entries. `student` carries the gradient; `teacher`
is data. A token without a teacher's score (NaN) gives 0 and no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from turnwise.trainers.ranges import above, at_least
from turnwise.trainers.surrogates import LOG_RATIO_LIMIT


@dataclass(frozen=True, eq=False)
class Scores:
    """What student and teacher say at M tokens."""

    student_MV: Tensor
    """float: log pi over the vocabulary, with its graph."""
    teacher_MV: Tensor
    """float: log T over the vocabulary; NaN rows where it is missing."""
    target_M: Tensor
    """int64: the token that was sampled (or, for imitation, shown)."""
    old_M: Tensor
    """float: log pi_sampler of that token."""

    @property
    def chosen_M(self) -> Tensor:
        """log pi of the sampled token, with its graph."""
        return self.student_MV.gather(-1, self.target_M[:, None])[:, 0]

    @property
    def taught_M(self) -> Tensor:
        """log T of the sampled token."""
        return self.teacher_MV.gather(-1, self.target_M[:, None])[:, 0]


Direct = Callable[[Scores], Tensor]
"""float [M]: D_t, with its graph."""
Entries = Callable[[Tensor, Tensor], Tensor]
"""(log p_MK with its graph, log q_MK) -> the terms of the divergence, [M, K]."""


def rkl(p_MK: Tensor, q_MK: Tensor) -> Tensor:
    """p (log p - log q): summed, KL(pi || T), which seeks a mode."""
    return p_MK.exp() * (p_MK - q_MK)


def fkl(p_MK: Tensor, q_MK: Tensor) -> Tensor:
    """q (log q - log p): summed, KL(T || pi), which covers all modes."""
    return _times_log(q_MK.exp(), q_MK - p_MK)


def jsd(beta: float = 0.5) -> Entries:
    """beta KL(T || M) + (1 - beta) KL(pi || M), M = (1 - beta) pi + beta T (GKD, 2306.13649).

    Divided by beta it tends to `fkl` as beta tends to 0, by 1 - beta to `rkl` as beta tends to 1.

    Raises:
        ValueError: `beta` does not lie between 0 and 1.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta must lie between 0 and 1, got {beta}; at the ends take fkl or rkl")
    return partial(_jsd, beta=beta)


def _jsd(p_MK: Tensor, q_MK: Tensor, beta: float) -> Tensor:
    mixed = torch.logaddexp(p_MK + math.log(1 - beta), q_MK + math.log(beta))
    return beta * _times_log(q_MK.exp(), q_MK - mixed) + (1 - beta) * p_MK.exp() * (p_MK - mixed)


def _times_log(weight: Tensor, log: Tensor) -> Tensor:
    """weight * log, 0 where the weight is 0 and the log infinite."""
    return torch.where(weight > 0, weight * log, 0.0)


def full(entries: Entries = rkl, *, entry_limit: float = math.inf) -> Direct:
    """The divergence over the whole vocabulary.

    Args:
        entry_limit: each entry of the sum counts at most so much (OPSD clips at .05).
    """
    above(0, entry_limit=entry_limit)
    return partial(_full, entries=entries, entry_limit=entry_limit)


def _full(scores: Scores, entries: Entries, entry_limit: float) -> Tensor:
    p_MV, q_MV, there_M = _where_known(scores)
    return entries(p_MV, q_MV).clamp(max=entry_limit).sum(-1) * there_M


Support = Callable[[Tensor, Tensor, int], Tensor]
"""(log p_MV, log q_MV, k) -> int64 [M, k]: which entries are looked at."""


def of_student(p_MV: Tensor, q_MV: Tensor, k: int) -> Tensor:
    """The student's likeliest k."""
    return p_MV.detach().topk(k, -1).indices


def of_teacher(p_MV: Tensor, q_MV: Tensor, k: int) -> Tensor:
    """The teacher's likeliest k."""
    return q_MV.topk(k, -1).indices


Close = Callable[[Tensor, Tensor, Entries], Tensor]
"""(log p_MK, log q_MK on the support, entries) -> [M]: what becomes of the mass outside."""


def tail_bucket(p_MK: Tensor, q_MK: Tensor, entries: Entries) -> Tensor:
    """All other tokens count as one more."""
    return entries(_with_tail(p_MK), _with_tail(q_MK)).sum(-1)


def _with_tail(log_MK: Tensor) -> Tensor:
    rest_M = (1 - log_MK.exp().sum(-1, keepdim=True)).clamp(min=1e-8)
    return torch.cat((log_MK, rest_M.log()), -1)


def renormalised(p_MK: Tensor, q_MK: Tensor, entries: Entries) -> Tensor:
    """Both distributions are those given that a token of the support comes."""
    return entries(p_MK.log_softmax(-1), q_MK.log_softmax(-1)).sum(-1)


def stop_gradient(p_MK: Tensor, q_MK: Tensor, entries: Entries) -> Tensor:
    """The sum over the support, with the gradient sum sg[entry] grad log p.

    The plain sum of `rkl` also carries the gradient of the support's own mass, which has nothing to
    do with the teacher and collapses training (arXiv:2605.11182).
    """
    held_MK = entries(p_MK, q_MK).detach()
    return (held_MK * (1 + p_MK - p_MK.detach())).sum(-1)


def top_k(
    entries: Entries = rkl,
    *,
    k: int = 20,
    support: Support = of_student,
    close: Close = tail_bucket,
) -> Direct:
    """The divergence over k entries of the vocabulary; k = V gives that of `full`."""
    at_least(1, k=k)
    return partial(_top_k, entries=entries, k=k, support=support, close=close)


def _top_k(scores: Scores, entries: Entries, k: int, support: Support, close: Close) -> Tensor:
    p_MV, q_MV, there_M = _where_known(scores)
    ids_MK = support(p_MV, q_MV, min(k, p_MV.shape[-1]))
    return close(p_MV.gather(-1, ids_MK), q_MV.gather(-1, ids_MK), entries) * there_M


def k2(scores: Scores) -> Tensor:
    """(log pi - log T)^2 / 2 of the sampled token: on policy, the gradient of KL(pi || T)."""
    return _masked(scores.chosen_M - scores.taught_M).square() / 2


def rho_k3(scores: Scores) -> Tensor:
    """rho (e^-d - 1 + d), d = log pi - log T, gradient through rho, too (Skill-SD, 2604.10674).

    On policy the gradient of KL(pi || T). Without rho it would be that of KL(T || pi).
    """
    d_M = _masked(scores.chosen_M - scores.taught_M)
    rho_M = _bounded_exp(scores.chosen_M - scores.old_M)
    return rho_M * (_bounded_exp(-d_M) - 1 + d_M)


def likelihood(scores: Scores) -> Tensor:
    """-log pi of the token: imitation of what was sampled or shown."""
    return -scores.chosen_M


def entries_read(direct: Direct) -> float:
    """Return how many of the teacher's likeliest tokens a loss reads, besides the token itself.

    Infinity for all of the vocabulary; also for a loss that is not of this file.
    """
    if direct in (k2, rho_k3, likelihood):
        return 0
    if not isinstance(direct, partial) or direct.func is not _top_k:
        return math.inf
    return int(direct.keywords["k"]) if direct.keywords["support"] is of_teacher else math.inf


def _bounded_exp(log_M: Tensor) -> Tensor:
    return log_M.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def _masked(d_M: Tensor) -> Tensor:
    """d, 0 and without a gradient where it is NaN."""
    return torch.where(d_M.detach().isfinite(), d_M, torch.zeros_like(d_M))


def _where_known(scores: Scores) -> tuple[Tensor, Tensor, Tensor]:
    """Return (log p, log q, known [M, 0 or 1]); where the teacher is missing, q stands for p."""
    known_M = ~scores.teacher_MV.isnan().any(-1)
    q_MV = torch.where(known_M[:, None], scores.teacher_MV, scores.student_MV.detach())
    return scores.student_MV, q_MV, known_M.to(q_MV.dtype)
