"""Students that begin at equal progress: small models learn suddenly, so steps are no measure.

A fixed number of imitation steps ends at 1 % or at 76 % success depending on the seed. Here a
student imitates until its progress has passed a target, and the weights between the last two
checkpoints are searched for the point where it is met:

    theta(a) = (1 - a) theta_before + a theta_after,   progress(theta(a)) = target
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from turnwise.envs.types import Episode
from turnwise.trainers.comparison import crossing
from turnwise.trainers.learner import Learner
from turnwise.trainers.sft import imitate

Weights = Mapping[str, Tensor]
Measure = Callable[[nn.Module], float]
"""A model's progress, 0 to 1."""


class TargetMissed(RuntimeError):
    """Imitation ended before the student's progress reached the target."""


@dataclass(frozen=True, kw_only=True)
class StartPlan:
    """How a student is brought to where the methods begin."""

    target: float
    """Progress on dev tasks."""
    tolerance: float = 0.03
    """How near the target the search stops."""
    steps: int = 400
    batch: int = 32
    learning_rate: float = 5e-3
    check_every: int = 10
    check_below: float = 0.25
    """Progress is measured only while the loss is below this, nats per token; it costs more than a
    step."""
    halvings: int = 5
    """Most measurements of the search."""


def equal_start(
    model: nn.Module, shown: Sequence[Episode], measure: Measure, plan: StartPlan, *, seed: int
) -> dict[str, float]:
    """Train `model` in place until its progress is `plan.target`.

    Returns:
        `steps` of imitation and the `progress` that was measured last.

    Raises:
        TargetMissed: `plan.steps` were not enough.
    """
    learner = Learner(model, learning_rate=plan.learning_rate, schedule=_rising, weight_decay=0.01)
    before, low = copied(model), 0.0
    rows = imitate(learner, shown, steps=plan.steps, batch=plan.batch, seed=seed)
    for row in rows:
        step = int(row["step"])
        if step % plan.check_every:
            continue
        high = measure(model) if row["loss"] < plan.check_below else 0.0
        if high >= plan.target:
            reached = _between(model, before, copied(model), (low, high), measure, plan)
            return {"steps": float(step), "progress": reached}
        before, low = copied(model), high
    raise TargetMissed(
        f"progress {low:.2f} after {plan.steps} steps of imitation, and {plan.target:g} was asked "
        "for: give more steps or demonstrations, or a lower target"
    )


def _rising(step: int) -> float:
    """Return the factor of the learning rate: up over 20 steps, then level."""
    return min(1.0, (step + 1) / 20)


def _between(
    model: nn.Module,
    before: Weights,
    after: Weights,
    ends: tuple[float, float],
    measure: Measure,
    plan: StartPlan,
) -> float:
    """Load the weights between two checkpoints whose progress is the target; return it."""
    (low, high), (a, b), reached = ends, (0.0, 1.0), ends[1]
    for turn in range(plan.halvings):
        if abs(reached - plan.target) <= plan.tolerance:
            break
        # A straight line first; progress rises suddenly, and then halves are safer.
        share = crossing(low, high, plan.target) if turn == 0 else 0.5
        at = a + share * (b - a)
        model.load_state_dict(interpolated(before, after, at))
        reached = measure(model)
        a, b = (at, b) if reached < plan.target else (a, at)
    return reached


def copied(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a model's weights."""
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


@torch.no_grad()
def interpolated(before: Weights, after: Weights, share: float) -> dict[str, Tensor]:
    """Return (1 - share) `before` + share `after`; at 0 and 1 exactly the one or the other."""
    if share in (0.0, 1.0):
        return dict(after if share else before)
    return {name: torch.lerp(before[name], after[name], share) for name in before}
