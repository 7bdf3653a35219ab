"""A recipe names the pieces of a method. Pieces are functions, so a variant is one you pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from turnwise.envs.types import Group
from turnwise.trainers.advantages import Credit, TurnTable
from turnwise.trainers.curriculum import Curriculum
from turnwise.trainers.distillation import Distillation
from turnwise.trainers.imitation import Imitation, every_episode, last
from turnwise.trainers.ranges import at_least
from turnwise.trainers.surrogates import (
    Aggregate,
    Divergence,
    Importance,
    Ratio,
    Surrogate,
    k3,
    token_mean,
    token_ratio,
    uncorrected,
)


def no_credit(table: TurnTable) -> np.ndarray:
    """Nothing from the reward. [N]"""
    return np.zeros(len(table))


def no_policy_gradient(log_ratio_M: Tensor, advantages_M: Tensor) -> tuple[Tensor, Tensor]:
    """Nothing from the student's own actions: imitation alone."""
    return 0.0 * log_ratio_M, torch.zeros_like(log_ratio_M)


GroupFilter = Callable[[Group], bool]
"""Whether to train on a group; False asks the loop for another one (dynamic sampling)."""


def every_group(group: Group) -> bool:
    """Train on whatever was sampled."""
    return True


def mixed_rewards(group: Group) -> bool:
    """Train on groups in which not all attempts earned the same (DAPO eq. 11)."""
    rewards = [episode.reward for episode in group.trainable]
    return bool(rewards) and max(rewards) - min(rewards) > 1e-9


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One method. `dataclasses.replace(recipe, ...)` exchanges a piece.

    Example:
        `replace(recipe("grpo"), kl_coefficient=0.0, surrogate=ppo(0.2, 0.28))`
    """

    name: str
    source: str
    """Paper and equation."""
    status: str
    """What differs from the published method, and why."""
    credit: Credit = no_credit
    """TurnTable -> advantage of each turn."""
    surrogate: Surrogate = no_policy_gradient
    distillation: Distillation | None = None
    """What a teacher has to say; not None asks for one."""
    history: int = 0
    """History columns that `credit` reads: `turn_table(groups, history=recipe.history)`."""
    ratio: Ratio = token_ratio
    importance: Importance = uncorrected
    """Acts only where the batch has `prox_M`."""
    aggregate: Aggregate = token_mean
    kl: Divergence = k3
    kl_coefficient: float = 0.0
    """Weight of KL(pi || reference) in the loss; not 0 asks for reference logprobs."""
    keep_group: GroupFilter = every_group
    curriculum: Curriculum | None = None
    """How deep attempts go, and where they begin; None is from the beginning to the end."""

    imitation: Imitation | None = None
    """What is learnt from a teacher's own actions; not None has it act, or label."""

    def __post_init__(self) -> None:
        at_least(0, history=self.history, kl_coefficient=self.kl_coefficient)
        if self.imitation is None and self.surrogate is no_policy_gradient:
            raise ValueError(f"recipe {self.name!r} needs a surrogate, or an imitation")
        if self.imitation is not None and self.learns_by_doing:
            self._require_own_round(self.imitation)

    def _require_own_round(self, how: Imitation) -> None:
        if how.keep is not last or how.learn_from is not every_episode or how.direct is not None:
            raise ValueError(
                f"recipe {self.name!r} learns from the student's own actions and from labels in "
                "the same updates: its imitation keeps the last round, learns from every episode "
                "and has no direct loss"
            )

    @property
    def learns_by_doing(self) -> bool:
        """Whether anything is learnt from what the student itself did."""
        return self.distillation is not None or self.credit is not no_credit

    @property
    def needs_reference(self) -> bool:
        """Whether the run must keep a copy of its first weights."""
        asked = self.distillation is not None and "reference" in self.distillation.needs
        return bool(self.kl_coefficient) or asked
