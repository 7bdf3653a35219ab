"""The one objective of every method, on the flat sampled tokens of a micro-batch.

    L = sum_j w_j c_j * -S(rho_j, A_j)  +  sum_j w_j W_j D_j  +  beta * sum_j w_j KL_j

w_j: weight of the token in the batch mean, c_j: importance correction (both detached), rho_j: ratio
to the proximal policy, S: surrogate, W_j D_j: the teacher's weight and direct loss (what it has to
say as an advantage is in A_j already), KL_j: divergence from a reference. Because w_j already holds
the denominators of the whole batch, losses and gradients of micro-batches add up exactly.
Shape suffix: M tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from turnwise.trainers.recipe import Recipe
from turnwise.trainers.surrogates import k3

THIRDS = ("early", "middle", "late")

Metrics = dict[str, tuple[float, float]]
"""name -> (numerator, denominator). Over micro-batches both are summed, except that names starting
with `max_` keep the largest numerator; `merge` does both."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """M sampled tokens of a micro-batch and what the loss must know of each. Nothing has a grad."""

    old_M: Tensor
    """float: log pi_sampler of the token, as recorded when it was sampled."""
    advantages_M: Tensor
    """float: the advantage of the token's turn."""
    weight_M: Tensor
    """float: weight of the token in the batch mean, 0 to leave it out (`recipe.aggregate`)."""
    turn_M: Tensor
    """int64: label of the turn, unique in the batch."""
    traj_M: Tensor
    """int64: label of the trajectory."""
    prox_M: Tensor | None = None
    """float: log pi_prox, the trainer's own forward pass before the first step; if None, the
    sampler is the proximal policy and there is nothing to correct."""
    ref_M: Tensor | None = None
    """float: log pi of the reference model; needed if `recipe.kl_coefficient` is not 0."""
    direct_M: Tensor | None = None
    """float: factor of the direct loss; needed if the recipe's distillation has one."""
    teacher_M: Tensor | None = None
    """float: log T of the token, NaN where it is missing; moves the trust region if asked to."""


def objective(
    logprobs_M: Tensor,
    tokens: TokenBatch,
    recipe: Recipe,
    entropy_M: Tensor | None = None,
    divergence_M: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Return the scalar loss of a micro-batch and its metrics.

    Args:
        logprobs_M: log pi_theta of each token, with its graph.
        tokens: The rest of what is known of them.
        recipe: The pieces.
        entropy_M: Entropy at each token in nats, for the metrics alone.
        divergence_M: D_j, the direct loss of each token, with its graph.

    Raises:
        ValueError: the recipe has a KL term and the batch no reference logprobs.
    """
    prox_M = tokens.old_M if tokens.prox_M is None else tokens.prox_M
    log_w_M = prox_M - tokens.old_M
    correction_M = recipe.importance(log_w_M, tokens.turn_M, tokens.traj_M)
    log_ratio_M = recipe.ratio(
        logprobs_M - _centre(prox_M, tokens, recipe), tokens.turn_M, tokens.traj_M
    )
    gain_M, bounded_M = recipe.surrogate(log_ratio_M, tokens.advantages_M)

    loss = -(tokens.weight_M * correction_M * gain_M).sum()
    watched = {
        "clip_fraction": bounded_M,
        "approx_kl": k3(prox_M - logprobs_M.detach()),
        "engine_kl": k3(-log_w_M),
        "importance": correction_M,
        "max_ratio": log_ratio_M.detach().exp(),
    }
    if divergence_M is not None:
        loss = loss + (tokens.weight_M * _given(tokens.direct_M, "direct_M") * divergence_M).sum()
        watched["direct_loss"] = divergence_M.detach()
    if recipe.kl_coefficient:
        kl_M = recipe.kl(logprobs_M - _reference(tokens, recipe))
        loss = loss + recipe.kl_coefficient * (tokens.weight_M * kl_M).sum()
        watched["reference_kl"] = kl_M.detach()
    if entropy_M is not None:
        watched["entropy"] = entropy_M.detach()
    drift_M = k3(tokens.old_M - logprobs_M.detach())
    return loss, _totals(watched) | kl_by_turn(drift_M, tokens.turn_M, tokens.traj_M)


def kl_by_turn(kl_M: Tensor, turn_M: Tensor, traj_M: Tensor) -> Metrics:
    """Return `kl_early`, `kl_middle`, `kl_late`: the mean of `kl_M` in each third of the turns.

    A turn belongs to the third of its trajectory in which its own middle lies: of two turns one is
    early and one late, a lone one is in the middle. Labels of turns grow within a trajectory.

    Args:
        kl_M: nats per token between two policies; here the present one and the sampler.
    """
    if not len(kl_M):
        return {}
    trajs, at_M = traj_M.unique(return_inverse=True)
    ends = turn_M.new_zeros(len(trajs))
    first_M = ends.scatter_reduce(0, at_M, turn_M, "amin", include_self=False)[at_M]
    last_M = ends.scatter_reduce(0, at_M, turn_M, "amax", include_self=False)[at_M]
    third_M = 3 * (2 * (turn_M - first_M) + 1) // (2 * (last_M - first_M + 1))
    sums = kl_M.new_zeros(3, dtype=torch.float64).index_add(0, third_M, kl_M.double())
    pairs = torch.stack([sums, third_M.bincount(minlength=3)], 1).tolist()
    return {
        f"kl_{third}": (total, count) for third, (total, count) in zip(THIRDS, pairs, strict=True)
    }


def cross_entropy(logprobs_M: Tensor, weight_M: Tensor) -> tuple[Tensor, Metrics]:
    """Return the loss of imitation, sum_j w_j * -log pi_theta(j), and its metrics."""
    return -(weight_M * logprobs_M).sum(), _totals({"nll": -logprobs_M.detach()})


def merge(parts: Iterable[Metrics]) -> dict[str, float]:
    """Return the metrics of a batch from those of its micro-batches."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for part in parts:
        for name, pair in part.items():
            pairs.setdefault(name, []).append(pair)
    return {name: _merge(name, found) for name, found in pairs.items()}


def _merge(name: str, pairs: list[tuple[float, float]]) -> float:
    if name.startswith("max_"):
        return max(numerator for numerator, _ in pairs)
    return sum(n for n, _ in pairs) / max(sum(d for _, d in pairs), 1.0)


def _centre(prox_M: Tensor, tokens: TokenBatch, recipe: Recipe) -> Tensor:
    """What the ratio is taken to: log pi_prox^a T^(1 - a), where the teacher has a score."""
    trust = 1.0 if recipe.distillation is None else recipe.distillation.trust
    if trust == 1.0:
        return prox_M
    teacher_M = _given(tokens.teacher_M, "teacher_M")
    return torch.where(teacher_M.isnan(), prox_M, trust * prox_M + (1 - trust) * teacher_M)


def _given(column_M: Tensor | None, name: str) -> Tensor:
    if column_M is None:
        raise ValueError(f"the recipe learns from a teacher, and the batch has no {name}")
    return column_M


def _reference(tokens: TokenBatch, recipe: Recipe) -> Tensor:
    if tokens.ref_M is None:
        raise ValueError(
            f"recipe {recipe.name!r} has a KL term (kl_coefficient={recipe.kl_coefficient}) and "
            "the batch has no reference logprobs: give TokenBatch ref_M, or set kl_coefficient=0"
        )
    return tokens.ref_M


def _totals(watched: dict[str, Tensor]) -> Metrics:
    """Sums (or maxima) in one transfer from the device."""
    if not watched or not len(next(iter(watched.values()))):
        return {}
    numbers = torch.stack(
        [v.max() if k.startswith("max_") else v.double().sum() for k, v in watched.items()]
    )
    return {k: (n, len(watched[k])) for k, n in zip(watched, numbers.tolist(), strict=True)}
