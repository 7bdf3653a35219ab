"""What a recipe needs once its batches were sampled by older weights: a clip and a correction.

    L = sum_j c_j * -S(pi / pi_prox, A_j)      c_j from pi_prox / pi_sampler, S with a bound

pi_prox are the weights as the step begins: the trainer scores the batch once more (decoupled PPO,
arXiv:2505.24298). With `pipeline_depth` the sampler is older than they are by so many steps, and a
surrogate without a bound, or a sum without c_j, would follow samples that the policy has left.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from turnwise.trainers.batch import Row
from turnwise.trainers.recipe import Recipe, no_policy_gradient
from turnwise.trainers.recipes.turn_rloo import IMPORTANCE
from turnwise.trainers.surrogates import LOG_RATIO_LIMIT, Surrogate, uncorrected

log = logging.getLogger("turnwise")
FAR = 10.0
"""A log-ratio beyond every bound that anybody would set: e^10 is 22026."""


class OnPolicyOnly(ValueError):
    """The recipe cannot learn from what older weights have played."""


def clipped(surrogate: Surrogate) -> bool:
    """Return whether a bound holds an action that has become far likelier and was good."""
    _, bounded_M = surrogate(torch.tensor([FAR]), torch.tensor([1.0]))
    return bool(bounded_M.any())


def held(surrogate: Surrogate, low: float = 0.2, high: float = 0.28) -> Surrogate:
    """Return `surrogate` without its gradient where a token has gone too far already.

    Too far is a ratio above 1 + high where A > 0, and below 1 - low where A < 0: where `ppo` stops.
    Everywhere else value and gradient are those of `surrogate`.
    """
    return partial(_held, surrogate=surrogate, low=low, high=high)


def _held(
    log_ratio_M: Tensor, advantages_M: Tensor, surrogate: Surrogate, low: float, high: float
) -> tuple[Tensor, Tensor]:
    gain_M, bounded_M = surrogate(log_ratio_M, advantages_M)
    ratio_M = log_ratio_M.detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    far_M = torch.where(advantages_M < 0, ratio_M < 1 - low, ratio_M > 1 + high)
    return torch.where(far_M, gain_M.detach(), gain_M), bounded_M | far_M


def for_depth(recipe: Recipe, depth: int) -> Recipe:
    """Return the recipe as batches that are `depth` steps old need it.

    A surrogate without a bound is `held`, and turn-RLOO's correction stands where there is none.

    Raises:
        OnPolicyOnly: `depth` is above 0 and the recipe plays rounds with a teacher.
    """
    if not depth:
        return recipe
    if recipe.imitation is not None:
        raise OnPolicyOnly(
            f"pipeline_depth {depth}: recipe {recipe.name!r} plays rounds with a teacher, and each "
            "follows from what the last one taught; set pipeline_depth to 0, or take a recipe that "
            "learns from the student's own actions alone"
        )
    changes: dict[str, object] = {}
    if recipe.surrogate is not no_policy_gradient and not clipped(recipe.surrogate):
        changes["surrogate"] = held(recipe.surrogate)
    if recipe.importance is uncorrected:
        changes["importance"] = IMPORTANCE
    if changes:
        what = " and ".join(changes)
        log.info("pipeline_depth %d: recipe %r gets a bounded %s", depth, recipe.name, what)
    return replace(recipe, **changes)  # type: ignore[arg-type]


def staleness(rows: Sequence[Row], version: int) -> dict[str, float]:
    """Return by how many optimizer steps the tokens of `rows` are older than weights `version`."""
    ages = [version - sampled for row in rows for sampled in row.version]
    if not ages:
        return {}
    return {"staleness": sum(ages) / len(ages), "max_staleness": float(max(ages))}
